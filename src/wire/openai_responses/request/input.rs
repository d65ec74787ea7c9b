//! `input`: the conversation as a list of items.

use serde_json::{Value, json};

use super::decode::tools as decode_tools;
use crate::domain::chat::{
    Image, Media, Message, Part, Reasoning, Role, Seal, ToolCall, ToolDef, ToolKind, ToolResult, Upload,
};
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{At, Fields};
use crate::wire::convert::{media, names, seal};

/// Reads `items`, which stand `at`, into turns: one turn of a model is several items here. Tools that are offered in
/// the middle of a conversation join the others.
pub(super) fn decode(
    items: Vec<Value>,
    at: At<'_>,
    messages: &mut Vec<Message>,
    tools: &mut Vec<ToolDef>,
    dropped: &mut Dropped,
) -> Result<(), ConvertError> {
    for (index, item) in items.into_iter().enumerate() {
        let mut item = Fields::new(item, at.index(index))?;
        let kind = item.str("type")?.unwrap_or_else(|| "message".into());
        match kind.as_str() {
            "message" => {
                let role = role(&mut item)?;
                let parts = content(&mut item, "content", dropped)?;
                if role == Role::Assistant {
                    extend(messages, Role::Assistant, parts);
                } else {
                    messages.push(Message::new(role, parts));
                }
            }
            "function_call" => {
                let part = call(&mut item, "arguments", ToolKind::Function)?;
                extend(messages, Role::Assistant, vec![part]);
            }
            "custom_tool_call" => {
                let part = call(&mut item, "input", ToolKind::Custom)?;
                extend(messages, Role::Assistant, vec![part]);
            }
            "function_call_output" | "custom_tool_call_output" => {
                let call_id = item.require_str("call_id")?;
                let content = content(&mut item, "output", dropped)?;
                let result = ToolResult { call_id, content, is_error: false };
                extend(messages, Role::Tool, vec![Part::ToolResult(result)]);
            }
            "reasoning" => {
                let part = Part::Reasoning(reasoning(&mut item)?);
                extend(messages, Role::Assistant, vec![part]);
            }
            "additional_tools" => {
                let at = item.at();
                for more in decode_tools(item.array("tools")?.unwrap_or_default(), at.key("tools"), dropped)?
                {
                    match tools.iter_mut().find(|tool| tool.name() == more.name()) {
                        Some(known) => *known = more,
                        None => tools.push(more),
                    }
                }
                item.ignore(&["role"]);
            }
            "item_reference" => {
                let problem = "refers to an item that is stored at OpenAI and cannot be used with this model's \
                               provider";
                return Err(item.error("id", problem));
            }
            kind if PROVIDERS_OWN.contains(&kind) => {
                dropped.add(format!("input.{kind}"));
                continue;
            }
            other => return Err(item.error("type", format_args!("has the unknown value {other:?}"))),
        }
        // Fields that OpenAI adds to its items, and clients send back unread.
        item.ignore(&["id", "status", "phase", "caller", "name"]);
        item.drop_rest(dropped);
    }
    Ok(())
}

/// Items about tools that run at OpenAI or that only its models know; the resulting text has items of its own.
const PROVIDERS_OWN: [&str; 21] = [
    "apply_patch_call",
    "apply_patch_call_output",
    "code_interpreter_call",
    "compaction",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "file_search_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "program",
    "shell_call",
    "shell_call_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
];

/// Adds to the last turn if it is of this role, else begins one.
fn extend(messages: &mut Vec<Message>, role: Role, parts: Vec<Part>) {
    match messages.last_mut() {
        Some(last) if last.role == role => last.parts.extend(parts),
        _ => messages.push(Message::new(role, parts)),
    }
}

fn role(item: &mut Fields<'_>) -> Result<Role, ConvertError> {
    match item.require_str("role")?.as_str() {
        "system" => Ok(Role::System),
        "developer" => Ok(Role::Developer),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        other => Err(item.error("role", format_args!("has the unknown value {other:?}"))),
    }
}

fn call(item: &mut Fields<'_>, input: &str, kind: ToolKind) -> Result<Part, ConvertError> {
    let id = item.require_str("call_id")?;
    let arguments = item.str(input)?.unwrap_or_default();
    let namespace = item.str("namespace")?;
    let name = names::within(namespace.as_deref(), item.require_str("name")?);
    Ok(Part::ToolCall(ToolCall { id, name, arguments, kind }))
}

fn reasoning(item: &mut Fields<'_>) -> Result<Reasoning, ConvertError> {
    let id = item.str("id")?.unwrap_or_default();
    let encrypted = item.str("encrypted_content")?;
    let texts = |items: Option<Vec<Value>>| {
        let texts = items.unwrap_or_default();
        let texts: Vec<&str> = texts.iter().filter_map(|item| item["text"].as_str()).collect();
        texts.join("\n\n")
    };
    let (summary, content) = (texts(item.array("summary")?), texts(item.array("content")?));
    let text = if summary.is_empty() { content } else { summary };
    Ok(Reasoning { text, seal: seal::of_item(id, encrypted) })
}

/// The field `key`: text, or a list of parts.
fn content(item: &mut Fields<'_>, key: &str, dropped: &mut Dropped) -> Result<Vec<Part>, ConvertError> {
    let at = item.at();
    let items = match item.take(key) {
        None => return Err(item.error(key, "is required")),
        Some(Value::String(text)) if text.is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => return Ok(vec![Part::Text(text)]),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(item.error(key, "must be a string or an array")),
    };
    let at = at.key(key);
    let mut parts = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let mut item = Fields::new(item, at.index(index))?;
        let part = part(&mut item, dropped)?;
        if part != Part::Text(String::new()) {
            parts.push(part);
        }
        item.ignore(&["annotations", "logprobs"]);
        item.drop_rest(dropped);
    }
    Ok(parts)
}

fn part(item: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Part, ConvertError> {
    let at = item.at();
    Ok(match item.require_str("type")?.as_str() {
        "input_text" | "output_text" | "text" => Part::Text(item.require_str("text")?),
        "refusal" => Part::Refusal(item.require_str("refusal")?),
        "input_image" => {
            let detail = item.str("detail")?.filter(|detail| detail != "auto");
            let source = match (item.str("image_url")?, item.str("file_id")?) {
                (Some(url), _) => media::from_url(url, &at.key("image_url"))?,
                (None, Some(id)) => Media::Id(id),
                (None, None) => return Err(item.error("image_url", "is required")),
            };
            Part::Image(Image { source, detail })
        }
        "input_file" => {
            let name = item.str("filename")?;
            let source = match (item.str("file_data")?, item.str("file_url")?, item.str("file_id")?) {
                (Some(data), ..) if data.starts_with("data:") => media::from_url(data, &at.key("file_data"))?,
                // OpenAI also takes the bare base64 of a PDF.
                (Some(data), ..) => Media::Inline { media_type: "application/pdf".into(), data },
                (None, Some(url), _) => Media::Url(url),
                (None, None, Some(id)) => Media::Id(id),
                (None, None, None) => return Err(item.error("file_data", "is required")),
            };
            Part::File(Upload { source, name })
        }
        "input_audio" => {
            let mut audio = Fields::new(item.take("input_audio").unwrap_or_default(), at.key("input_audio"))?;
            let part = Part::Audio { data: audio.require_str("data")?, format: audio.require_str("format")? };
            audio.drop_rest(dropped);
            part
        }
        other => return Err(item.error("type", format_args!("has the unknown value {other:?}"))),
    })
}

/// Writes `messages` as items, noting fields that cannot be expressed.
pub(super) fn encode(messages: &[Message], dropped: &mut Dropped) -> Result<Vec<Value>, ConvertError> {
    let mut items = Vec::with_capacity(messages.len());
    let mut custom_calls: Vec<&str> = Vec::new();
    for message in messages {
        if message.name.is_some() {
            dropped.add("messages.name");
        }
        let role = match message.role {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => {
                for part in &message.parts {
                    if let Part::ToolCall(ToolCall { id, kind: ToolKind::Custom, .. }) = part {
                        custom_calls.push(id);
                    }
                }
                assistant(&message.parts, &mut items, dropped)?;
                continue;
            }
            Role::Tool => {
                tool_results(&message.parts, &custom_calls, &mut items, dropped)?;
                continue;
            }
        };
        items.push(json!({"type": "message", "role": role, "content": written(&message.parts, input_part)?}));
    }
    Ok(items)
}

/// One text as a string, anything else as a list.
fn written(parts: &[Part], part: fn(&Part) -> Result<Value, ConvertError>) -> Result<Value, ConvertError> {
    match parts {
        [] => Ok("".into()),
        [Part::Text(text)] => Ok(text.as_str().into()),
        parts => Ok(parts.iter().map(part).collect::<Result<Vec<_>, _>>()?.into()),
    }
}

/// The parts that the model generated, in their order; neighbouring texts are one message.
fn assistant(parts: &[Part], items: &mut Vec<Value>, dropped: &mut Dropped) -> Result<(), ConvertError> {
    let is_said = |part: &Part| matches!(part, Part::Text(_) | Part::Refusal(_));
    for group in parts.chunk_by(|a, b| is_said(a) && is_said(b)) {
        match group {
            [Part::Reasoning(reasoning)] => match &reasoning.seal {
                Some(Seal::OpenAi { id, encrypted: Some(encrypted) }) => {
                    items.push(reasoning_item(id, &reasoning.text, Some(encrypted)));
                }
                // OpenAI takes only its own reasoning, and here only encrypted: without that it refers to a stored
                // response.
                _ => dropped.add("messages.reasoning"),
            },
            [Part::ToolCall(call)] => items.push(call_item(call)),
            said => {
                let content = written(said, output_part)?;
                items.push(json!({"type": "message", "role": "assistant", "content": content}));
            }
        }
    }
    Ok(())
}

/// A `reasoning` item; its text as one summary.
pub(crate) fn reasoning_item(id: &str, text: &str, encrypted: Option<&str>) -> Value {
    let mut summary = Vec::new();
    if !text.is_empty() {
        summary.push(json!({"type": "summary_text", "text": text}));
    }
    let mut item = json!({"id": id, "type": "reasoning", "summary": summary});
    if let Some(encrypted) = encrypted {
        item["encrypted_content"] = encrypted.into();
    }
    item
}

fn call_item(call: &ToolCall) -> Value {
    match call.kind {
        ToolKind::Function => {
            let arguments = if call.arguments.is_empty() { "{}" } else { &call.arguments };
            json!({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments})
        }
        ToolKind::Custom => json!({
            "type": "custom_tool_call", "call_id": call.id, "name": call.name, "input": call.arguments,
        }),
    }
}

fn tool_results(
    parts: &[Part],
    custom_calls: &[&str],
    items: &mut Vec<Value>,
    dropped: &mut Dropped,
) -> Result<(), ConvertError> {
    for part in parts {
        let Part::ToolResult(ToolResult { call_id, content, is_error }) = part else { continue };
        if *is_error {
            dropped.add("tool_result.is_error");
        }
        let custom = custom_calls.contains(&call_id.as_str());
        let kind = if custom { "custom_tool_call_output" } else { "function_call_output" };
        items.push(json!({"type": kind, "call_id": call_id, "output": written(content, input_part)?}));
    }
    Ok(())
}

fn output_part(part: &Part) -> Result<Value, ConvertError> {
    match part {
        Part::Text(text) => Ok(json!({"type": "output_text", "text": text, "annotations": []})),
        Part::Refusal(text) => Ok(json!({"type": "refusal", "refusal": text})),
        _ => Err(misplaced()),
    }
}

fn input_part(part: &Part) -> Result<Value, ConvertError> {
    Ok(match part {
        Part::Text(text) => json!({"type": "input_text", "text": text}),
        Part::Image(image) => {
            let mut written = json!({"type": "input_image"});
            match &image.source {
                Media::Url(url) => written["image_url"] = url.as_str().into(),
                Media::Inline { media_type, data } => {
                    written["image_url"] = media::data_url(media_type, data).into();
                }
                Media::Id(_) => {
                    return Err(ConvertError::new(
                        "An image given by file id cannot be sent to this model's provider; send its URL or its \
                         data",
                    ));
                }
            }
            written["detail"] = image.detail.as_deref().unwrap_or("auto").into();
            written
        }
        Part::File(file) => {
            let mut written = json!({"type": "input_file"});
            if let Some(name) = media::file_name(file).filter(|_| !matches!(file.source, Media::Url(_))) {
                written["filename"] = name.into();
            }
            match &file.source {
                Media::Url(url) => written["file_url"] = url.as_str().into(),
                Media::Inline { media_type, data } => {
                    written["file_data"] = media::data_url(media_type, data).into();
                }
                Media::Id(id) => written["file_id"] = id.as_str().into(),
            }
            written
        }
        Part::Audio { .. } => {
            return Err(ConvertError::new(
                "`input_audio` content cannot be sent to this model's provider, which takes no audio",
            ));
        }
        Part::Refusal(_)
        | Part::Reasoning(_)
        | Part::ToolCall(_)
        | Part::ToolResult(_)
        | Part::CachePoint(_) => {
            return Err(misplaced());
        }
    })
}

fn misplaced() -> ConvertError {
    ConvertError::new("A message holds a kind of content that does not belong to its role")
}
