//! Writing a request for a provider.

use serde_json::{Value, json};

use crate::domain::chat::{
    ChatRequest, Effort, Image, Media, Message, OutputFormat, Part, ReasoningConfig, Role, ToolCall,
    ToolChoice, ToolDef, ToolKind, ToolResult, Upload,
};
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::Object;
use crate::wire::convert::{RequestOptions, media, signed};
use crate::wire::openai_models as models;

/// Writes `request`, noting fields that this format cannot express.
pub(crate) fn encode(
    request: &ChatRequest,
    options: &RequestOptions<'_>,
    dropped: &mut Dropped,
) -> Result<Vec<u8>, ConvertError> {
    let mut body = Object::new();
    body.insert("model".into(), options.model.into());
    body.insert("messages".into(), messages(request, options.known_as, dropped)?.into());
    tools(request, &mut body);
    if let Some(max) = request.max_tokens {
        let newer = models::wants_max_completion_tokens(options.known_as);
        body.insert(if newer { "max_completion_tokens" } else { "max_tokens" }.into(), max.into());
    }
    for (key, value) in [
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("frequency_penalty", request.frequency_penalty),
        ("presence_penalty", request.presence_penalty),
    ] {
        if let Some(value) = value {
            body.insert(key.into(), value.into());
        }
    }
    if request.top_k.is_some() {
        dropped.add("top_k");
    }
    if let Some(seed) = request.seed {
        body.insert("seed".into(), seed.into());
    }
    if !request.stop.is_empty() {
        body.insert("stop".into(), request.stop.clone().into());
    }
    if let Some(format) = &request.format {
        body.insert("response_format".into(), response_format(format));
    }
    if let Some(verbosity) = &request.verbosity {
        body.insert("verbosity".into(), verbosity.as_str().into());
    }
    if let Some(effort) = effort(request.reasoning.as_ref(), options.known_as, dropped) {
        body.insert("reasoning_effort".into(), effort.as_str().into());
    }
    shared(request, &mut body, dropped);
    if options.stream {
        body.insert("stream".into(), true.into());
        if options.ask_usage {
            body.insert("stream_options".into(), json!({"include_usage": true}));
        }
    }
    serde_json::to_vec(&body).map_err(|error| ConvertError::new(error.to_string()))
}

/// OpenAI allows ids of end users of at most this many characters, and refuses longer ones.
const USER_MAX: usize = 64;

/// Fields that both OpenAI formats write alike.
pub(crate) fn shared(request: &ChatRequest, body: &mut Object, dropped: &mut Dropped) {
    match &request.user {
        Some(user) if user.chars().count() > USER_MAX => dropped.add("user"),
        Some(user) => drop(body.insert("user".into(), user.as_str().into())),
        None => {}
    }
    if let Some(tier) = &request.service_tier {
        body.insert("service_tier".into(), tier.as_str().into());
    }
    for (key, value) in &request.openai {
        body.insert(key.clone(), value.clone());
    }
}

/// The reasoning effort, in OpenAI's words; `None` if the model decides or cannot reason.
pub(crate) fn effort(config: Option<&ReasoningConfig>, model: &str, dropped: &mut Dropped) -> Option<Effort> {
    let config = config?;
    let effort = config.effort.or(config.budget_tokens.map(Effort::from_budget))?;
    if models::refuses_reasoning(model) {
        if effort != Effort::Off {
            dropped.add("reasoning");
        }
        return None;
    }
    Some(effort)
}

fn messages(request: &ChatRequest, model: &str, dropped: &mut Dropped) -> Result<Vec<Value>, ConvertError> {
    let mut messages = Vec::with_capacity(request.messages.len());
    for message in &request.messages {
        let written = match message.role {
            Role::System => instructions("system", message)?,
            // Only OpenAI itself knows the newer name; every provider knows the older.
            Role::Developer if models::is_openai(model) => instructions("developer", message)?,
            Role::Developer => instructions("system", message)?,
            Role::User => json!({"role": "user", "content": content(&message.parts)?}),
            Role::Assistant => match assistant(message, model, dropped)? {
                Some(written) => written,
                None => continue,
            },
            Role::Tool => {
                tool_results(message, &mut messages, dropped)?;
                continue;
            }
        };
        messages.push(with_name(written, message));
    }
    Ok(messages)
}

fn with_name(mut written: Value, message: &Message) -> Value {
    if let Some(name) = &message.name {
        written["name"] = name.as_str().into();
    }
    written
}

fn instructions(role: &str, message: &Message) -> Result<Value, ConvertError> {
    Ok(json!({"role": role, "content": content(&message.parts)?}))
}

/// One text as a string, which every provider takes; anything else as a list of parts.
fn content(parts: &[Part]) -> Result<Value, ConvertError> {
    match parts {
        [] => Ok("".into()),
        [Part::Text(text)] => Ok(text.as_str().into()),
        parts => Ok(parts.iter().map(part).collect::<Result<Vec<_>, _>>()?.into()),
    }
}

fn part(part: &Part) -> Result<Value, ConvertError> {
    Ok(match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Refusal(text) => json!({"type": "refusal", "refusal": text}),
        Part::Image(image) => json!({"type": "image_url", "image_url": image_url(image)?}),
        Part::File(file) => json!({"type": "file", "file": upload(file)?}),
        Part::Audio { data, format } => {
            json!({"type": "input_audio", "input_audio": {"data": data, "format": format}})
        }
        Part::Reasoning(_) | Part::ToolCall(_) | Part::ToolResult(_) | Part::CachePoint(_) => {
            return Err(ConvertError::new(
                "A message holds a kind of content that does not belong to its role",
            ));
        }
    })
}

fn image_url(image: &Image) -> Result<Value, ConvertError> {
    let url = match &image.source {
        Media::Url(url) => url.clone(),
        Media::Inline { media_type, data } => media::data_url(media_type, data),
        Media::Id(_) => {
            return Err(ConvertError::new(
                "An image given by file id cannot be sent to this model's provider; send its URL or its data",
            ));
        }
    };
    let mut written = json!({"url": url});
    if let Some(detail) = &image.detail {
        written["detail"] = detail.as_str().into();
    }
    Ok(written)
}

fn upload(file: &Upload) -> Result<Value, ConvertError> {
    let mut written = match &file.source {
        Media::Inline { media_type, data } => json!({"file_data": media::data_url(media_type, data)}),
        Media::Id(id) => json!({"file_id": id}),
        Media::Url(_) => {
            return Err(ConvertError::new(
                "A document given by URL cannot be sent to this model's provider; send its data",
            ));
        }
    };
    if let Some(name) = media::file_name(file) {
        written["filename"] = name.into();
    }
    Ok(written)
}

/// An assistant's turn; `None` if no part of it can be expressed here.
fn assistant(message: &Message, model: &str, dropped: &mut Dropped) -> Result<Option<Value>, ConvertError> {
    let (mut said, mut calls, mut thought, mut refusal) =
        (Vec::new(), Vec::new(), String::new(), String::new());
    for part in &message.parts {
        match part {
            Part::ToolCall(call) => calls.push(tool_call(call)),
            // Reasoning without a seal came from a provider of this kind, and some want it back (DeepSeek after tool calls);
            // OpenAI itself has no such field.
            Part::Reasoning(reasoning) if reasoning.seal.is_none() && !models::is_openai(model) => {
                thought.push_str(&reasoning.text);
            }
            Part::Reasoning(_) => dropped.add("messages.reasoning"),
            Part::Refusal(text) => refusal.push_str(text),
            other => said.push(other.clone()),
        }
    }
    if said.is_empty() && calls.is_empty() && thought.is_empty() && refusal.is_empty() {
        return Ok(None);
    }
    let nothing_said = said.is_empty() && (!calls.is_empty() || !refusal.is_empty());
    let content = if nothing_said { Value::Null } else { content(&said)? };
    let mut written = json!({"role": "assistant", "content": content});
    if !thought.is_empty() {
        written["reasoning_content"] = thought.into();
    }
    if !refusal.is_empty() {
        written["refusal"] = refusal.into();
    }
    if !calls.is_empty() {
        written["tool_calls"] = calls.into();
    }
    Ok(Some(written))
}

/// A call as requests and answers write it.
pub(crate) fn tool_call(call: &ToolCall) -> Value {
    let id = signed::bare(&call.id);
    let mut written = match call.kind {
        ToolKind::Function => {
            let arguments = if call.arguments.is_empty() { "{}" } else { &call.arguments };
            json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
        }
        ToolKind::Custom => {
            json!({"id": id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}})
        }
    };
    if let Some(extra) = signed::extra_content(&call.id) {
        written["extra_content"] = extra;
    }
    written
}

/// One message for each result. They can only hold text, so images and documents follow in a message of the user.
fn tool_results(
    message: &Message,
    messages: &mut Vec<Value>,
    dropped: &mut Dropped,
) -> Result<(), ConvertError> {
    let mut media = Vec::new();
    for part in &message.parts {
        let Part::ToolResult(ToolResult { call_id, content: parts, is_error }) = part else { continue };
        let call_id = signed::bare(call_id);
        if *is_error {
            dropped.add("tool_result.is_error");
        }
        let (texts, others): (Vec<Part>, Vec<Part>) =
            parts.iter().cloned().partition(|part| matches!(part, Part::Text(_)));
        messages.push(json!({"role": "tool", "tool_call_id": call_id, "content": content(&texts)?}));
        if !others.is_empty() {
            media.push(Part::Text(format!("Output of the tool call {call_id}:")));
            media.extend(others);
        }
    }
    if !media.is_empty() {
        messages.push(json!({"role": "user", "content": content(&media)?}));
    }
    Ok(())
}

fn tools(request: &ChatRequest, body: &mut Object) {
    if request.tools.is_empty() {
        return;
    }
    body.insert("tools".into(), request.tools.iter().map(tool).collect());
    if let Some(choice) = &request.tool_choice {
        body.insert("tool_choice".into(), tool_choice(choice, &request.tools));
    }
    if let Some(parallel) = request.parallel_tool_calls {
        body.insert("parallel_tool_calls".into(), parallel.into());
    }
}

fn tool(tool: &ToolDef) -> Value {
    let mut inner = json!({"name": tool.name()});
    match tool {
        ToolDef::Function { description, parameters, strict, .. } => {
            if let Some(description) = description {
                inner["description"] = description.as_str().into();
            }
            if let Some(parameters) = parameters {
                inner["parameters"] = parameters.clone();
            }
            if let Some(strict) = strict {
                inner["strict"] = (*strict).into();
            }
            json!({"type": "function", "function": inner})
        }
        ToolDef::Custom { description, format, .. } => {
            if let Some(description) = description {
                inner["description"] = description.as_str().into();
            }
            if let Some(format) = format {
                inner["format"] = nested_grammar(format);
            }
            json!({"type": "custom", "custom": inner})
        }
    }
}

/// `{type: grammar, syntax, definition}` as this format writes it: with an inner object.
fn nested_grammar(format: &Value) -> Value {
    if format["type"] == "grammar" {
        let (syntax, definition) = (&format["syntax"], &format["definition"]);
        json!({"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}})
    } else {
        format.clone()
    }
}

fn tool_choice(choice: &ToolChoice, tools: &[ToolDef]) -> Value {
    let named = |name: &str| {
        let custom = tools.iter().any(|tool| matches!(tool, ToolDef::Custom { .. }) && tool.name() == name);
        let kind = if custom { "custom" } else { "function" };
        json!({"type": kind, kind: {"name": name}})
    };
    match choice {
        ToolChoice::Auto => "auto".into(),
        ToolChoice::None => "none".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(name) => named(name),
        ToolChoice::Allowed { required, names } => {
            let mode = if *required { "required" } else { "auto" };
            let tools: Vec<Value> = names.iter().map(|name| named(name)).collect();
            json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
        }
    }
}

/// The name for a schema that came without one, which OpenAI requires.
pub(crate) const SCHEMA_NAME: &str = "output";

fn response_format(format: &OutputFormat) -> Value {
    match format {
        OutputFormat::Text => json!({"type": "text"}),
        OutputFormat::JsonObject => json!({"type": "json_object"}),
        OutputFormat::JsonSchema { name, description, schema, strict } => {
            let mut inner = json!({"name": name.as_deref().unwrap_or(SCHEMA_NAME)});
            if let Some(description) = description {
                inner["description"] = description.as_str().into();
            }
            inner["schema"] = schema.clone();
            if let Some(strict) = strict {
                inner["strict"] = (*strict).into();
            }
            json!({"type": "json_schema", "json_schema": inner})
        }
    }
}
