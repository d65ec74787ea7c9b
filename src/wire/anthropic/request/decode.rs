//! Reading a client's request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::thinking;
use crate::domain::chat::{
    ChatRequest, Image, Media, Message, OutputFormat, Part, Reasoning, Role, ToolCall, ToolChoice, ToolDef,
    ToolKind, ToolResult, Upload,
};
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{At, Fields};
use crate::wire::convert::{schema, seal};
use crate::wire::error::{THREAD_NOT_FOUND, THREAD_UNSUPPORTED};

/// A conversation that is stored at Anthropic is not available elsewhere. SDKs that ask for one act on the code: they
/// send all of it again, or do without.
fn refuse_threads(fields: &mut Fields<'_>) -> Result<(), ConvertError> {
    let Some(thread) = fields.take("thread") else { return Ok(()) };
    let code = if thread["type"] == "continue" { THREAD_NOT_FOUND } else { THREAD_UNSUPPORTED };
    let problem =
        "asks for a conversation that is stored at Anthropic, and this model's provider stores none";
    Err(fields.error("thread", problem).with_code(code))
}

/// Reads `body`, noting fields that the domain cannot express.
pub(crate) fn decode(body: &[u8], dropped: &mut Dropped) -> Result<ChatRequest, ConvertError> {
    let mut fields = Fields::parse(body)?;
    fields.ignore(&["model", "stream"]);
    refuse_threads(&mut fields)?;
    let (tool_choice, parallel_tool_calls) = tool_choice(&mut fields, dropped)?;
    let mut output_config = fields.take("output_config");
    let mut request = ChatRequest {
        tools: tools(&mut fields, dropped)?,
        tool_choice,
        parallel_tool_calls,
        max_tokens: fields.u64("max_tokens")?,
        temperature: fields.f64("temperature")?,
        top_p: fields.f64("top_p")?,
        top_k: fields.u64("top_k")?,
        stop: fields.strings("stop_sequences")?.unwrap_or_default(),
        format: output_format(&mut fields, output_config.as_mut(), dropped)?,
        user: user(&mut fields, dropped)?,
        service_tier: service_tier(&mut fields)?,
        ..ChatRequest::default()
    };
    request.reasoning = thinking::decode(&mut fields, output_config, dropped)?;
    if let Some(system) = fields.take("system") {
        let parts = content(system, fields.at().key("system"), dropped)?;
        request.messages.push(Message::new(Role::System, parts));
    }
    messages(&mut fields, &mut request.messages, dropped)?;
    fields.drop_rest(dropped);
    Ok(request)
}

fn messages(
    fields: &mut Fields<'_>,
    messages: &mut Vec<Message>,
    dropped: &mut Dropped,
) -> Result<(), ConvertError> {
    let items = fields.array("messages")?.ok_or_else(|| fields.error("messages", "is required"))?;
    let at = fields.at();
    let at = at.key("messages");
    for (index, item) in items.into_iter().enumerate() {
        let at = at.index(index);
        let mut message = Fields::new(item, at)?;
        let role = match message.require_str("role")?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            other => return Err(message.error("role", format_args!("has the unknown value {other:?}"))),
        };
        let value = message.take("content").ok_or_else(|| message.error("content", "is required"))?;
        let parts = content(value, at.key("content"), dropped)?;
        message.drop_rest(dropped);
        if role != Role::User {
            messages.push(Message::new(role, parts));
            continue;
        }
        // The other formats want the results of tool calls right behind the calls, and in a turn of their own.
        let (results, said): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|part| matches!(part, Part::ToolResult(_)));
        let has_results = !results.is_empty();
        if has_results {
            messages.push(Message::new(Role::Tool, results));
        }
        if !said.is_empty() || !has_results {
            messages.push(Message::new(Role::User, said));
        }
    }
    Ok(())
}

/// Text, or a list of blocks.
fn content(value: Value, at: At<'_>, dropped: &mut Dropped) -> Result<Vec<Part>, ConvertError> {
    let items = match value {
        Value::String(text) if text.is_empty() => return Ok(Vec::new()),
        Value::String(text) => return Ok(vec![Part::Text(text)]),
        Value::Array(items) => items,
        _ => return Err(ConvertError::at(&at, "must be a string or an array")),
    };
    let mut parts = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        block(Fields::new(item, at.index(index))?, &mut parts, dropped)?;
    }
    Ok(parts)
}

fn block(mut fields: Fields<'_>, parts: &mut Vec<Part>, dropped: &mut Dropped) -> Result<(), ConvertError> {
    let kind = fields.require_str("type")?;
    let at = fields.at();
    match kind.as_str() {
        "text" => {
            let text = fields.require_str("text")?;
            if !text.is_empty() {
                parts.push(Part::Text(text));
            }
        }
        "image" => parts.push(Part::Image(Image { source: source(&mut fields, dropped)?, detail: None })),
        "document" => document(&mut fields, parts, dropped)?,
        "search_result" => parts.push(Part::Text(search_result(&mut fields, dropped)?)),
        "thinking" => {
            let text = fields.require_str("thinking")?;
            let seal = fields.str("signature")?.and_then(seal::of_signature);
            parts.push(Part::Reasoning(Reasoning { text, seal }));
        }
        "redacted_thinking" => {
            let seal = Some(seal::of_redacted(fields.require_str("data")?));
            parts.push(Part::Reasoning(Reasoning { text: String::new(), seal }));
        }
        "tool_use" => {
            let input = fields.take("input").unwrap_or_else(|| Value::Object(Default::default()));
            parts.push(Part::ToolCall(ToolCall {
                id: fields.require_str("id")?,
                name: fields.require_str("name")?,
                arguments: input.to_string(),
                kind: ToolKind::Function,
            }));
            fields.ignore(&["caller"]);
        }
        "tool_result" => {
            let value = fields.take("content").unwrap_or_else(|| "".into());
            parts.push(Part::ToolResult(ToolResult {
                call_id: fields.require_str("tool_use_id")?,
                content: content(value, at.key("content"), dropped)?,
                is_error: fields.bool("is_error")?.unwrap_or(false),
            }));
        }
        // Work of Anthropic's own servers in an earlier turn; the resulting text is a block of its own.
        kind if kind == "server_tool_use"
            || kind.ends_with("_tool_result")
            || PROVIDERS_OWN.contains(&kind) =>
        {
            dropped.add(format!("{}.{kind}", at.name()));
            return Ok(());
        }
        other => return Err(fields.error("type", format_args!("has the unknown value {other:?}"))),
    }
    fields.drop_rest(dropped);
    Ok(())
}

/// Blocks that mean something only to Anthropic, besides server tools and their results.
const PROVIDERS_OWN: [&str; 5] =
    ["container_upload", "compaction", "tool_reference", "browser_state", "mcp_tool_use"];

/// `source` of an image or a document.
fn source(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Media, ConvertError> {
    let at = fields.at();
    let mut source = Fields::new(fields.take("source").unwrap_or_default(), at.key("source"))?;
    let kind = source.require_str("type")?;
    let media = match kind.as_str() {
        "base64" => {
            Media::Inline { media_type: source.require_str("media_type")?, data: source.require_str("data")? }
        }
        "url" => Media::Url(source.require_str("url")?),
        "file" => {
            let problem = "refers to a file that is stored at Anthropic and cannot be used with this model's \
                           provider; send its data";
            return Err(source.error("file_id", problem));
        }
        "text" => Media::Inline {
            media_type: source.str("media_type")?.unwrap_or_else(|| "text/plain".into()),
            data: STANDARD.encode(source.require_str("data")?),
        },
        other => return Err(source.error("type", format_args!("has the unknown value {other:?}"))),
    };
    source.drop_rest(dropped);
    Ok(media)
}

fn document(
    fields: &mut Fields<'_>,
    parts: &mut Vec<Part>,
    dropped: &mut Dropped,
) -> Result<(), ConvertError> {
    let at = fields.at();
    let name = fields.str("title")?;
    let is_content = |source: &Value| source.get("type").is_some_and(|kind| kind == "content");
    match fields.take("source") {
        // A document made of blocks is replaced by its blocks.
        Some(mut source) if is_content(&source) => {
            parts.extend(name.map(Part::Text));
            let inner = source.get_mut("content").map(Value::take).unwrap_or_default();
            let at = at.key("source");
            parts.extend(content(inner, at.key("content"), dropped)?);
        }
        source => {
            let mut only = Fields::new(serde_json::json!({"source": source}), at)?;
            parts.push(Part::File(Upload { source: self::source(&mut only, dropped)?, name }));
        }
    }
    Ok(())
}

/// A search result as text: its title, source and content.
fn search_result(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<String, ConvertError> {
    let mut text = format!("{}\n{}\n", fields.require_str("title")?, fields.require_str("source")?);
    let at = fields.at();
    let inner = fields.take("content").unwrap_or_else(|| "".into());
    for part in content(inner, at.key("content"), dropped)? {
        if let Part::Text(piece) = part {
            text.push_str(&piece);
        }
    }
    Ok(text)
}

fn tools(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Vec<ToolDef>, ConvertError> {
    let at = fields.at();
    let at = at.key("tools");
    let mut tools = Vec::new();
    for (index, item) in fields.array("tools")?.unwrap_or_default().into_iter().enumerate() {
        let mut tool = Fields::new(item, at.index(index))?;
        match tool.str("type")?.as_deref() {
            None | Some("custom") => {
                tools.push(ToolDef::Function {
                    name: tool.require_str("name")?,
                    description: tool.str("description")?,
                    parameters: tool.object("input_schema")?.map(Value::Object),
                    strict: tool.bool("strict")?,
                });
                tool.drop_rest(dropped);
            }
            // Run by Anthropic's servers, or known to Claude without a schema.
            Some(kind) => dropped.add(format!("tools.{kind}")),
        }
    }
    Ok(tools)
}

/// The tool choice, and whether several calls are allowed: one object in this format.
fn tool_choice(
    fields: &mut Fields<'_>,
    dropped: &mut Dropped,
) -> Result<(Option<ToolChoice>, Option<bool>), ConvertError> {
    let Some(value) = fields.take("tool_choice") else { return Ok((None, None)) };
    let at = fields.at();
    let mut choice = Fields::new(value, at.key("tool_choice"))?;
    let read = match choice.require_str("type")?.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(choice.require_str("name")?),
        other => return Err(choice.error("type", format_args!("has the unknown value {other:?}"))),
    };
    let parallel = choice.bool("disable_parallel_tool_use")?.map(|disabled| !disabled);
    choice.drop_rest(dropped);
    Ok((Some(read), parallel))
}

/// `output_config.format`, or `output_format` as it was called in beta.
fn output_format(
    fields: &mut Fields<'_>,
    output_config: Option<&mut Value>,
    dropped: &mut Dropped,
) -> Result<Option<OutputFormat>, ConvertError> {
    let newer = output_config.and_then(|config| config.get_mut("format")).map(Value::take);
    let older = fields.take("output_format");
    let Some(value) = newer.filter(|value| !value.is_null()).or(older) else { return Ok(None) };
    let at = fields.at();
    let at = at.key("output_config");
    let mut format = Fields::new(value, at.key("format"))?;
    let kind = format.require_str("type")?;
    if kind != "json_schema" {
        return Err(format.error("type", format_args!("has the unknown value {kind:?}")));
    }
    let schema = format.take("schema").ok_or_else(|| format.error("schema", "is required"))?;
    format.drop_rest(dropped);
    // Anthropic enforces every schema; OpenAI only those that follow its rules.
    let strict = schema::can_be_strict(&schema).then_some(true);
    Ok(Some(OutputFormat::JsonSchema { name: None, description: None, schema, strict }))
}

fn user(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Option<String>, ConvertError> {
    let Some(value) = fields.take("metadata") else { return Ok(None) };
    let at = fields.at();
    let mut metadata = Fields::new(value, at.key("metadata"))?;
    let user = metadata.str("user_id")?;
    metadata.drop_rest(dropped);
    Ok(user)
}

/// In OpenAI's words.
fn service_tier(fields: &mut Fields<'_>) -> Result<Option<String>, ConvertError> {
    Ok(fields.str("service_tier")?.map(|tier| if tier == "standard_only" { "default".into() } else { tier }))
}
