//! Reading a client's request: everything but its input.

use serde_json::{Value, json};

use super::input;
use crate::domain::chat::{
    ChatRequest, Effort, Message, OutputFormat, Part, ReasoningConfig, Role, ToolChoice, ToolDef,
};
use crate::wire::convert::OPENAI_SHARED;
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{At, Fields};
use crate::wire::convert::names;

/// Reads `body`, noting fields that the domain cannot express.
pub(crate) fn decode(body: &[u8], dropped: &mut Dropped) -> Result<ChatRequest, ConvertError> {
    let mut fields = Fields::parse(body)?;
    fields.ignore(&["model", "stream", "stream_options"]);
    refuse_what_only_openai_has(&mut fields)?;

    let mut tools = match fields.array("tools")? {
        Some(items) => tools(items, fields.at().key("tools"), dropped)?,
        None => Vec::new(),
    };
    let mut request = ChatRequest {
        messages: messages(&mut fields, &mut tools, dropped)?,
        tools,
        tool_choice: tool_choice(&mut fields, dropped)?,
        parallel_tool_calls: fields.bool("parallel_tool_calls")?,
        max_tokens: fields.u64("max_output_tokens")?,
        temperature: fields.f64("temperature")?,
        top_p: fields.f64("top_p")?,
        reasoning: reasoning(&mut fields, dropped)?,
        user: fields.str("user")?,
        service_tier: fields.str("service_tier")?,
        ..ChatRequest::default()
    };
    (request.format, request.verbosity) = text(&mut fields, dropped)?;
    for key in OPENAI_SHARED {
        if let Some(value) = fields.take(key) {
            request.openai.insert((*key).to_owned(), value);
        }
    }
    let include = fields.strings("include")?.unwrap_or_default();
    // Encrypted reasoning is returned unasked.
    if include.iter().any(|what| what != "reasoning.encrypted_content") {
        dropped.add("include");
    }
    if fields.str("truncation")?.is_some_and(|truncation| truncation != "disabled") {
        dropped.add("truncation");
    }
    fields.drop_rest(dropped);
    Ok(request)
}

/// Refuses references to context that only OpenAI stores: without it the model would answer another question.
fn refuse_what_only_openai_has(fields: &mut Fields<'_>) -> Result<(), ConvertError> {
    for key in ["previous_response_id", "conversation", "prompt"] {
        if fields.take(key).is_some() {
            let problem = "refers to what is stored at OpenAI and cannot be used with this model's provider";
            return Err(fields.error(key, problem));
        }
    }
    if fields.bool("background")? == Some(true) {
        return Err(fields.error("background", "cannot be true with this model's provider"));
    }
    Ok(())
}

fn messages(
    fields: &mut Fields<'_>,
    tools: &mut Vec<ToolDef>,
    dropped: &mut Dropped,
) -> Result<Vec<Message>, ConvertError> {
    let mut messages = Vec::new();
    if let Some(instructions) = fields.str("instructions")?.filter(|text| !text.is_empty()) {
        messages.push(Message::new(Role::System, vec![Part::Text(instructions)]));
    }
    let at = fields.at();
    match fields.take("input") {
        None => return Err(fields.error("input", "is required")),
        Some(Value::String(text)) => messages.push(Message::new(Role::User, vec![Part::Text(text)])),
        Some(Value::Array(items)) => input::decode(items, at.key("input"), &mut messages, tools, dropped)?,
        Some(_) => return Err(fields.error("input", "must be a string or an array")),
    }
    Ok(messages)
}

/// The tools in `items`, which stand `at`, including the ones in namespaces.
pub(super) fn tools(
    items: Vec<Value>,
    at: At<'_>,
    dropped: &mut Dropped,
) -> Result<Vec<ToolDef>, ConvertError> {
    let mut tools = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let mut item = Fields::new(item, at.index(index))?;
        if item.is("type", "namespace") {
            let (namespace, at) = (item.require_str("name")?, item.at());
            let at = at.key("tools");
            for (index, inner) in item.array("tools")?.unwrap_or_default().into_iter().enumerate() {
                tools.extend(tool(Fields::new(inner, at.index(index))?, Some(&namespace), dropped)?);
            }
            item.ignore(&["type"]);
            item.drop_rest(dropped);
        } else {
            tools.extend(tool(item, None, dropped)?);
        }
    }
    Ok(tools)
}

/// One tool; `None` if the client does not run it.
fn tool(
    mut tool: Fields<'_>,
    namespace: Option<&str>,
    dropped: &mut Dropped,
) -> Result<Option<ToolDef>, ConvertError> {
    let name = |tool: &mut Fields<'_>| Ok(names::within(namespace, tool.require_str("name")?));
    let read = match tool.require_str("type")?.as_str() {
        "function" => ToolDef::Function {
            name: name(&mut tool)?,
            description: tool.str("description")?,
            parameters: tool.object("parameters")?.map(Value::Object),
            strict: tool.bool("strict")?,
        },
        "custom" => ToolDef::Custom {
            name: name(&mut tool)?,
            description: tool.str("description")?,
            format: tool.object("format")?.map(Value::Object),
        },
        // Run by OpenAI's servers, or known to its models without a schema.
        kind => {
            dropped.add(format!("tools.{kind}"));
            return Ok(None);
        }
    };
    tool.drop_rest(dropped);
    Ok(Some(read))
}

fn tool_choice(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Option<ToolChoice>, ConvertError> {
    let value = match fields.take("tool_choice") {
        None => return Ok(None),
        Some(Value::String(word)) => {
            return match word.as_str() {
                "auto" => Ok(Some(ToolChoice::Auto)),
                "none" => Ok(Some(ToolChoice::None)),
                "required" => Ok(Some(ToolChoice::Required)),
                other => Err(fields.error("tool_choice", format_args!("has the unknown value {other:?}"))),
            };
        }
        Some(value) => value,
    };
    let at = fields.at();
    let mut choice = Fields::new(value, at.key("tool_choice"))?;
    let read = match choice.require_str("type")?.as_str() {
        "function" | "custom" => {
            let namespace = choice.str("namespace")?;
            ToolChoice::Named(names::within(namespace.as_deref(), choice.require_str("name")?))
        }
        "allowed_tools" => {
            let required = match choice.require_str("mode")?.as_str() {
                "auto" => false,
                "required" => true,
                other => return Err(choice.error("mode", format_args!("has the unknown value {other:?}"))),
            };
            let names = choice
                .array("tools")?
                .unwrap_or_default()
                .iter()
                .filter_map(|tool| {
                    Some(names::within(tool["namespace"].as_str(), tool["name"].as_str()?.to_owned()))
                })
                .collect();
            ToolChoice::Allowed { required, names }
        }
        // A tool that OpenAI's servers run.
        _ => {
            dropped.add("tool_choice");
            return Ok(None);
        }
    };
    choice.drop_rest(dropped);
    Ok(Some(read))
}

/// `text`: the format and the verbosity of the answer.
fn text(
    fields: &mut Fields<'_>,
    dropped: &mut Dropped,
) -> Result<(Option<OutputFormat>, Option<String>), ConvertError> {
    let Some(value) = fields.take("text") else { return Ok((None, None)) };
    let at = fields.at();
    let at = at.key("text");
    let mut text = Fields::new(value, at)?;
    let verbosity = text.str("verbosity")?;
    let format = match text.take("format") {
        None => None,
        Some(value) => {
            let mut format = Fields::new(value, at.key("format"))?;
            let read = match format.require_str("type")?.as_str() {
                "text" => OutputFormat::Text,
                "json_object" => OutputFormat::JsonObject,
                "json_schema" => OutputFormat::JsonSchema {
                    name: format.str("name")?,
                    description: format.str("description")?,
                    schema: format.take("schema").unwrap_or_else(|| json!({})),
                    strict: format.bool("strict")?,
                },
                other => return Err(format.error("type", format_args!("has the unknown value {other:?}"))),
            };
            format.drop_rest(dropped);
            Some(read)
        }
    };
    text.drop_rest(dropped);
    Ok((format, verbosity))
}

fn reasoning(
    fields: &mut Fields<'_>,
    dropped: &mut Dropped,
) -> Result<Option<ReasoningConfig>, ConvertError> {
    let Some(value) = fields.take("reasoning") else { return Ok(None) };
    let at = fields.at();
    let mut reasoning = Fields::new(value, at.key("reasoning"))?;
    let older = reasoning.str("generate_summary")?;
    let summary = reasoning.str("summary")?.or(older);
    let word = reasoning.str("effort")?;
    reasoning.drop_rest(dropped);
    let effort = word.as_deref().and_then(Effort::parse);
    if word.is_some() && effort.is_none() {
        dropped.add("reasoning.effort");
    }
    if effort.is_none() && summary.is_none() {
        return Ok(None);
    }
    Ok(Some(ReasoningConfig { effort, budget_tokens: None, visible: Some(summary.is_some()) }))
}
