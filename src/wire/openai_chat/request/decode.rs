//! Reading a client's request.

use serde_json::{Value, json};

use crate::domain::chat::{
    ChatRequest, Effort, Image, Media, Message, OutputFormat, Part, ReasoningConfig, Role, ToolCall,
    ToolChoice, ToolDef, ToolKind, ToolResult, Upload,
};
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{Fields, Object};
use crate::wire::convert::{OPENAI_SHARED, media};
use crate::wire::openai_chat::reasoning;

/// Reads `body`, noting fields that the domain cannot express.
pub(crate) fn decode(body: &[u8], dropped: &mut Dropped) -> Result<ChatRequest, ConvertError> {
    let mut fields = Fields::parse(body)?;
    fields.ignore(&["model", "stream", "stream_options"]);
    refuse_what_changes_the_answer(&mut fields)?;

    let mut request = ChatRequest {
        messages: messages(&mut fields, dropped)?,
        tools: tools(&mut fields, dropped)?,
        tool_choice: tool_choice(&mut fields, dropped)?,
        parallel_tool_calls: fields.bool("parallel_tool_calls")?,
        max_tokens: fields.u64("max_completion_tokens")?,
        temperature: fields.f64("temperature")?,
        top_p: fields.f64("top_p")?,
        top_k: fields.u64("top_k")?,
        frequency_penalty: fields.f64("frequency_penalty")?,
        presence_penalty: fields.f64("presence_penalty")?,
        seed: fields.i64("seed")?,
        stop: stop(&mut fields)?,
        format: response_format(&mut fields, dropped)?,
        verbosity: fields.str("verbosity")?,
        reasoning: reasoning_effort(&mut fields, dropped)?,
        user: fields.str("user")?,
        service_tier: fields.str("service_tier")?,
        openai: Default::default(),
    };
    let older_max_tokens = fields.u64("max_tokens")?;
    request.max_tokens = request.max_tokens.or(older_max_tokens);
    for key in OPENAI_SHARED {
        if let Some(value) = fields.take(key) {
            request.openai.insert((*key).to_owned(), value);
        }
    }
    fields.drop_rest(dropped);
    Ok(request)
}

/// Refuses fields that change the shape of the answer: without them the answer would be wrong, not just poorer.
fn refuse_what_changes_the_answer(fields: &mut Fields<'_>) -> Result<(), ConvertError> {
    if fields.u64("n")?.is_some_and(|n| n > 1) {
        return Err(fields.error("n", "cannot be more than 1 with this model's provider"));
    }
    let modalities = fields.strings("modalities")?.unwrap_or_default();
    if modalities.iter().any(|modality| modality == "audio") {
        return Err(fields.error("modalities", "cannot include \"audio\" with this model's provider"));
    }
    fields.ignore(&["audio"]);
    for key in ["functions", "function_call"] {
        if fields.take(key).is_some() {
            let problem = "is the deprecated form and not supported with this model's provider; use `tools`";
            return Err(fields.error(key, problem));
        }
    }
    Ok(())
}

fn messages(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Vec<Message>, ConvertError> {
    let items = fields.array("messages")?.ok_or_else(|| fields.error("messages", "is required"))?;
    let at = fields.at();
    let at = at.key("messages");
    let mut messages: Vec<Message> = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let message = message(Fields::new(item, at.index(index))?, dropped)?;
        // The results of parallel calls are one message each here, one turn in the domain.
        match messages.last_mut() {
            Some(last) if last.role == Role::Tool && message.role == Role::Tool => {
                last.parts.extend(message.parts)
            }
            _ => messages.push(message),
        }
    }
    Ok(messages)
}

fn message(mut fields: Fields<'_>, dropped: &mut Dropped) -> Result<Message, ConvertError> {
    let role = fields.require_str("role")?;
    let role = match role.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => return Err(fields.error("role", format_args!("has the unknown value {other:?}"))),
    };
    let mut parts = match role {
        Role::Assistant => assistant(&mut fields, dropped)?,
        Role::Tool => {
            let call_id = fields.require_str("tool_call_id")?;
            let content = content(&mut fields, dropped)?;
            vec![Part::ToolResult(ToolResult { call_id, content, is_error: false })]
        }
        Role::System | Role::Developer | Role::User => content(&mut fields, dropped)?,
    };
    parts.extend(cache_point(&mut fields)?);
    let name = fields.str("name")?.filter(|_| role != Role::Tool);
    fields.drop_rest(dropped);
    Ok(Message { role, parts, name })
}

/// The parts of an assistant's turn, in the order in which they must have been generated: reasoning, text, calls.
fn assistant(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Vec<Part>, ConvertError> {
    for key in ["function_call", "audio"] {
        if fields.take(key).is_some() {
            return Err(fields.error(key, "cannot be sent to this model's provider"));
        }
    }
    let mut parts = reasoning::decode(fields, dropped)?;
    parts.extend(content(fields, dropped)?);
    if let Some(refusal) = fields.str("refusal")?.filter(|text| !text.is_empty()) {
        parts.push(Part::Refusal(refusal));
    }
    let calls = fields.array("tool_calls")?.unwrap_or_default();
    let at = fields.at();
    let at = at.key("tool_calls");
    for (index, call) in calls.into_iter().enumerate() {
        parts.push(Part::ToolCall(tool_call(Fields::new(call, at.index(index))?)?));
    }
    Ok(parts)
}

fn tool_call(mut fields: Fields<'_>) -> Result<ToolCall, ConvertError> {
    let id = fields.require_str("id")?;
    let (key, input, kind) = match fields.str("type")?.as_deref() {
        None | Some("function") => ("function", "arguments", ToolKind::Function),
        Some("custom") => ("custom", "input", ToolKind::Custom),
        Some(other) => return Err(fields.error("type", format_args!("has the unknown value {other:?}"))),
    };
    let at = fields.at();
    let inner = fields.take(key).ok_or_else(|| fields.error(key, "is required"))?;
    let mut inner = Fields::new(inner, at.key(key))?;
    let name = inner.require_str("name")?;
    let arguments = match inner.take(input) {
        None => String::new(),
        Some(Value::String(text)) => text,
        // Not OpenAI's format, but some clients send it.
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return Err(inner.error(input, "must be a string")),
    };
    Ok(ToolCall { id, name, arguments, kind })
}

/// `content`: text, or a list of parts.
fn content(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Vec<Part>, ConvertError> {
    let items = match fields.take("content") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) if text.is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => return Ok(vec![Part::Text(text)]),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(fields.error("content", "must be a string or an array")),
    };
    let at = fields.at();
    let at = at.key("content");
    let mut parts = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let mut fields = Fields::new(item, at.index(index))?;
        parts.extend(part(&mut fields, dropped)?);
        parts.extend(cache_point(&mut fields)?);
        fields.drop_rest(dropped);
    }
    Ok(parts)
}

/// `cache_control` as OpenRouter's and LiteLLM's clients send it for Claude, on a part or on a whole message.
fn cache_point(fields: &mut Fields<'_>) -> Result<Option<Part>, ConvertError> {
    Ok(fields.object("cache_control")?.map(|control| Part::CachePoint(Value::Object(control))))
}

fn part(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Option<Part>, ConvertError> {
    let kind = fields.require_str("type")?;
    let part = match kind.as_str() {
        "text" => {
            Some(Part::Text(fields.require_str("text")?)).filter(|part| *part != Part::Text(String::new()))
        }
        "refusal" => Some(Part::Refusal(fields.require_str("refusal")?)),
        "image_url" => Some(Part::Image(image(fields, dropped)?)),
        "file" => Some(Part::File(file(fields, dropped)?)),
        "input_audio" => {
            let at = fields.at();
            let mut audio =
                Fields::new(fields.take("input_audio").unwrap_or_default(), at.key("input_audio"))?;
            Some(Part::Audio { data: audio.require_str("data")?, format: audio.require_str("format")? })
        }
        other => return Err(fields.error("type", format_args!("has the unknown value {other:?}"))),
    };
    Ok(part)
}

fn image(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Image, ConvertError> {
    let at = fields.at();
    let at = at.key("image_url");
    let (url, detail) = match fields.take("image_url") {
        Some(Value::String(url)) => (url, None),
        value => {
            let mut inner = Fields::new(value.unwrap_or_default(), at)?;
            let (url, detail) = (inner.require_str("url")?, inner.str("detail")?);
            inner.drop_rest(dropped);
            (url, detail)
        }
    };
    Ok(Image { source: media::from_url(url, &at)?, detail: detail.filter(|detail| detail != "auto") })
}

fn file(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Upload, ConvertError> {
    let at = fields.at();
    let at = at.key("file");
    let mut inner = Fields::new(fields.take("file").unwrap_or_default(), at)?;
    let name = inner.str("filename")?;
    let source = match (inner.str("file_data")?, inner.str("file_id")?) {
        (Some(data), _) if data.starts_with("data:") => media::from_url(data, &at.key("file_data"))?,
        // OpenAI also takes the bare base64 of a PDF.
        (Some(data), _) => Media::Inline { media_type: "application/pdf".into(), data },
        (None, Some(id)) => Media::Id(id),
        (None, None) => return Err(inner.error("file_data", "is required")),
    };
    inner.drop_rest(dropped);
    Ok(Upload { source, name })
}

fn tools(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Vec<ToolDef>, ConvertError> {
    let at = fields.at();
    let at = at.key("tools");
    let mut tools = Vec::new();
    for (index, item) in fields.array("tools")?.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(index);
        let mut fields = Fields::new(item, at)?;
        let kind = fields.require_str("type")?;
        let mut inner = Fields::new(fields.take(&kind).unwrap_or_default(), at.key(&kind))?;
        match kind.as_str() {
            "function" => {
                tools.push(ToolDef::Function {
                    name: inner.require_str("name")?,
                    description: inner.str("description")?,
                    parameters: inner.object("parameters")?.map(Value::Object),
                    strict: inner.bool("strict")?,
                });
            }
            "custom" => {
                tools.push(ToolDef::Custom {
                    name: inner.require_str("name")?,
                    description: inner.str("description")?,
                    format: inner.object("format")?.map(flat_grammar),
                });
            }
            other => return Err(fields.error("type", format_args!("has the unknown value {other:?}"))),
        }
        inner.drop_rest(dropped);
        fields.drop_rest(dropped);
    }
    Ok(tools)
}

/// `{type: grammar, grammar: {syntax, definition}}` as the Responses format writes it: without the inner object.
fn flat_grammar(mut format: Object) -> Value {
    if let Some(Value::Object(grammar)) = format.shift_remove("grammar") {
        format.extend(grammar);
    }
    Value::Object(format)
}

fn tool_choice(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Option<ToolChoice>, ConvertError> {
    let value = match fields.take("tool_choice") {
        None => return Ok(None),
        Some(Value::String(word)) => {
            return match word.as_str() {
                "auto" => Ok(Some(ToolChoice::Auto)),
                "none" => Ok(Some(ToolChoice::None)),
                // `any` is Mistral's word.
                "required" | "any" => Ok(Some(ToolChoice::Required)),
                other => Err(fields.error("tool_choice", format_args!("has the unknown value {other:?}"))),
            };
        }
        Some(value) => value,
    };
    let at = fields.at();
    let at = at.key("tool_choice");
    let mut choice = Fields::new(value, at)?;
    let kind = choice.require_str("type")?;
    let mut inner = Fields::new(choice.take(&kind).unwrap_or_default(), at.key(&kind))?;
    let read = match kind.as_str() {
        "function" | "custom" => ToolChoice::Named(inner.require_str("name")?),
        "allowed_tools" => {
            let required = match inner.require_str("mode")?.as_str() {
                "auto" => false,
                "required" => true,
                other => return Err(inner.error("mode", format_args!("has the unknown value {other:?}"))),
            };
            let names = inner
                .array("tools")?
                .unwrap_or_default()
                .iter()
                .filter_map(|tool| tool[tool["type"].as_str()?]["name"].as_str().map(str::to_owned))
                .collect();
            ToolChoice::Allowed { required, names }
        }
        other => return Err(choice.error("type", format_args!("has the unknown value {other:?}"))),
    };
    inner.drop_rest(dropped);
    Ok(Some(read))
}

fn stop(fields: &mut Fields<'_>) -> Result<Vec<String>, ConvertError> {
    match fields.take("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err(fields.error("stop", "must be a string or an array of strings")),
            })
            .collect(),
        Some(_) => Err(fields.error("stop", "must be a string or an array of strings")),
    }
}

fn response_format(
    fields: &mut Fields<'_>,
    dropped: &mut Dropped,
) -> Result<Option<OutputFormat>, ConvertError> {
    let Some(value) = fields.take("response_format") else { return Ok(None) };
    let at = fields.at();
    let at = at.key("response_format");
    let mut format = Fields::new(value, at)?;
    let kind = format.require_str("type")?;
    let read = match kind.as_str() {
        "text" => OutputFormat::Text,
        "json_object" => OutputFormat::JsonObject,
        "json_schema" => {
            let mut inner =
                Fields::new(format.take("json_schema").unwrap_or_default(), at.key("json_schema"))?;
            let read = OutputFormat::JsonSchema {
                name: inner.str("name")?,
                description: inner.str("description")?,
                schema: inner.take("schema").unwrap_or_else(|| json!({})),
                strict: inner.bool("strict")?,
            };
            inner.drop_rest(dropped);
            read
        }
        other => return Err(format.error("type", format_args!("has the unknown value {other:?}"))),
    };
    format.drop_rest(dropped);
    Ok(Some(read))
}

fn reasoning_effort(
    fields: &mut Fields<'_>,
    dropped: &mut Dropped,
) -> Result<Option<ReasoningConfig>, ConvertError> {
    let Some(word) = fields.str("reasoning_effort")? else { return Ok(None) };
    let effort = Effort::parse(&word);
    if effort.is_none() {
        dropped.add("reasoning_effort");
    }
    Ok(effort.map(|effort| ReasoningConfig { effort: Some(effort), ..ReasoningConfig::default() }))
}
