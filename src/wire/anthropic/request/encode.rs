//! Writing a request for a provider.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::thinking;
use crate::domain::chat::{
    ChatRequest, Image, Media, Message, OutputFormat, Part, Role, Seal, ToolCall, ToolChoice, ToolDef,
    ToolKind, ToolResult, Upload,
};
use crate::wire::anthropic::models::Traits;
use crate::wire::convert::RequestOptions;
use crate::wire::convert::calls::{FREE_INPUT, free_input_schema};
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::Object;
use crate::wire::convert::media;
use crate::wire::convert::surrogates::read_lossy;

/// Writes `request`, noting fields that this format cannot express.
pub(crate) fn encode(
    request: &ChatRequest,
    options: &RequestOptions<'_>,
    dropped: &mut Dropped,
) -> Result<Vec<u8>, ConvertError> {
    let traits = Traits::of(options.known_as);
    let default_max_tokens = u64::from(options.default_max_tokens);
    let thinking = thinking::encode(request, traits, default_max_tokens, dropped);
    let mut body = Object::new();
    body.insert("model".into(), options.model.into());
    let max_tokens = request.max_tokens.unwrap_or(default_max_tokens + thinking.budget);
    body.insert("max_tokens".into(), max_tokens.into());
    let (system, messages) = turns(&request.messages, dropped)?;
    if !system.is_empty() {
        body.insert("system".into(), one_text_or_blocks(system));
    }
    body.insert("messages".into(), messages.into());
    tools(request, traits, &mut body, dropped);
    sampling(request, traits, thinking.is_on(), &mut body, dropped);
    if !request.stop.is_empty() {
        body.insert("stop_sequences".into(), request.stop.clone().into());
    }
    let mut output_config = Object::new();
    if let Some(effort) = thinking.effort {
        output_config.insert("effort".into(), effort.into());
    }
    output_format(request, traits, &mut output_config, dropped);
    if let Some(thinking) = thinking.thinking {
        body.insert("thinking".into(), thinking);
    }
    if !output_config.is_empty() {
        body.insert("output_config".into(), output_config.into());
    }
    if let Some(user) = &request.user {
        body.insert("metadata".into(), json!({"user_id": user}));
    }
    match request.service_tier.as_deref() {
        None => {}
        Some("auto") => drop(body.insert("service_tier".into(), "auto".into())),
        Some("default") => drop(body.insert("service_tier".into(), "standard_only".into())),
        Some(_) => dropped.add("service_tier"),
    }
    if options.stream {
        body.insert("stream".into(), true.into());
    }
    foreign(request, dropped);
    serde_json::to_vec(&body).map_err(|error| ConvertError::new(error.to_string()))
}

/// Names the fields that only the OpenAI formats have.
fn foreign(request: &ChatRequest, dropped: &mut Dropped) {
    let penalty = |value: Option<f64>| value.is_some_and(|value| value != 0.0);
    for (name, set) in [
        ("frequency_penalty", penalty(request.frequency_penalty)),
        ("presence_penalty", penalty(request.presence_penalty)),
        ("seed", request.seed.is_some()),
        ("verbosity", request.verbosity.is_some()),
    ] {
        if set {
            dropped.add(name);
        }
    }
    for (key, value) in &request.openai {
        // Nothing is stored here, so `store: false` is fulfilled.
        if *value != json!(false) && *value != json!({}) {
            dropped.add(key.as_str());
        }
    }
}

fn sampling(request: &ChatRequest, traits: Traits, thinking: bool, body: &mut Object, dropped: &mut Dropped) {
    let mut put = |name: &'static str, value: Value, taken: bool| {
        if taken && traits.sampling {
            body.insert(name.into(), value);
        } else {
            dropped.add(name);
        }
    };
    let temperature = request.temperature.filter(|temperature| *temperature != 1.0 || traits.sampling);
    if let Some(temperature) = temperature {
        put("temperature", temperature.into(), temperature == 1.0 || (temperature < 1.0 && !thinking));
    }
    let alone = traits.both_temperature_and_top_p || request.temperature.is_none();
    // 1 is the default: leaving it out changes nothing.
    if let Some(top_p) = request.top_p.filter(|top_p| *top_p != 1.0 || (traits.sampling && alone)) {
        // While it thinks, Claude takes only values from 0.95 on.
        put("top_p", top_p.into(), alone && (!thinking || top_p >= 0.95));
    }
    if let Some(top_k) = request.top_k {
        put("top_k", top_k.into(), !thinking);
    }
}

/// The instructions, which have a field of their own, and the conversation, in which user and assistant alternate.
///
/// Instructions from the middle of a conversation join the others: every model takes them there, while only the newest take
/// a `system` turn, and only in some places.
fn turns(messages: &[Message], dropped: &mut Dropped) -> Result<(Vec<Value>, Vec<Value>), ConvertError> {
    let mut system = Vec::new();
    let mut turns: Vec<(&str, Vec<Value>)> = Vec::new();
    for message in messages {
        if message.name.is_some() {
            dropped.add("messages.name");
        }
        let role = match message.role {
            Role::System | Role::Developer => {
                system.extend(blocks(&message.parts, dropped)?);
                continue;
            }
            Role::Assistant => "assistant",
            Role::User | Role::Tool => "user",
        };
        let mut blocks = blocks(&message.parts, dropped)?;
        match turns.last_mut() {
            Some((last, earlier)) if *last == role => earlier.append(&mut blocks),
            _ if blocks.is_empty() => {}
            _ => turns.push((role, blocks)),
        }
    }
    let written = turns.into_iter().map(|(role, mut blocks)| {
        // Results of tool calls must come first in the turn that follows the calls.
        blocks.sort_by_key(|block| block["type"] != "tool_result");
        json!({"role": role, "content": one_text_or_blocks(blocks)})
    });
    Ok((system, written.collect()))
}

fn one_text_or_blocks(mut blocks: Vec<Value>) -> Value {
    match blocks.as_mut_slice() {
        [block] if block["type"] == "text" && block.get(CACHE_CONTROL).is_none() => block["text"].take(),
        _ => blocks.into(),
    }
}

const CACHE_CONTROL: &str = "cache_control";

fn blocks(parts: &[Part], dropped: &mut Dropped) -> Result<Vec<Value>, ConvertError> {
    let mut blocks: Vec<Value> = Vec::with_capacity(parts.len());
    for part in parts {
        let Part::CachePoint(control) = part else {
            blocks.extend(block(part, dropped)?);
            continue;
        };
        let thinks = |block: &Value| block["type"] == "thinking" || block["type"] == "redacted_thinking";
        match blocks.last_mut().filter(|last| !thinks(last)) {
            Some(last) => last[CACHE_CONTROL] = control.clone(),
            None => dropped.add(CACHE_CONTROL),
        }
    }
    Ok(blocks)
}

/// One block; `None` if the part cannot be expressed here.
fn block(part: &Part, dropped: &mut Dropped) -> Result<Option<Value>, ConvertError> {
    Ok(Some(match part {
        // Empty texts are refused.
        Part::Text(text) | Part::Refusal(text) if text.is_empty() => return Ok(None),
        Part::Text(text) | Part::Refusal(text) => json!({"type": "text", "text": text}),
        Part::Reasoning(reasoning) => match &reasoning.seal {
            Some(Seal::Anthropic { signature }) => {
                json!({"type": "thinking", "thinking": reasoning.text, "signature": signature})
            }
            Some(Seal::AnthropicRedacted { data }) => json!({"type": "redacted_thinking", "data": data}),
            Some(Seal::OpenAi { .. }) | None => {
                dropped.add("messages.reasoning");
                return Ok(None);
            }
        },
        Part::Image(image) => json!({"type": "image", "source": image_source(image, dropped)?}),
        Part::File(file) => document(file)?,
        Part::Audio { .. } => {
            return Err(ConvertError::new(
                "`input_audio` content cannot be sent to this model's provider, which takes no audio",
            ));
        }
        Part::ToolCall(call) => json!({
            "type": "tool_use", "id": tool_id(&call.id), "name": call.name, "input": input(call),
        }),
        Part::ToolResult(ToolResult { call_id, content, is_error }) => {
            let blocks = blocks(content, dropped)?;
            let mut result = json!({"type": "tool_result", "tool_use_id": tool_id(call_id)});
            if !blocks.is_empty() {
                result["content"] = one_text_or_blocks(blocks);
            }
            if *is_error {
                result["is_error"] = true.into();
            }
            result
        }
        // Written with the block before it.
        Part::CachePoint(_) => return Ok(None),
    }))
}

/// Ids of calls that Anthropic accepts: letters, digits, `_` and `-`. Some providers use others (`functions.search:0`);
/// the ids of a call and its result change alike.
fn tool_id(id: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if id.is_empty() {
        "_".into()
    } else if id.chars().all(plain) {
        id.into()
    } else {
        id.chars().map(|c| if plain(c) { c } else { '_' }).collect()
    }
}

/// `input` must be an object.
pub(crate) fn input(call: &ToolCall) -> Value {
    match (call.kind, call.arguments.trim()) {
        (ToolKind::Function, "") => json!({}),
        (ToolKind::Function, text) => match read_lossy(text.as_bytes()) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => json!({FREE_INPUT: call.arguments}),
        },
        (ToolKind::Custom, _) => json!({FREE_INPUT: call.arguments}),
    }
}

fn image_source(image: &Image, dropped: &mut Dropped) -> Result<Value, ConvertError> {
    if image.detail.as_deref().is_some_and(|detail| detail != "auto") {
        dropped.add("image.detail");
    }
    match &image.source {
        Media::Url(url) => Ok(json!({"type": "url", "url": url})),
        Media::Inline { media_type, data } => {
            Ok(json!({"type": "base64", "media_type": media_type, "data": data}))
        }
        Media::Id(_) => Err(ConvertError::new(
            "An image given by file id cannot be sent to this model's provider; send its URL or its data",
        )),
    }
}

fn document(file: &Upload) -> Result<Value, ConvertError> {
    let source = match &file.source {
        Media::Url(url) => json!({"type": "url", "url": url}),
        Media::Inline { media_type, data } if media_type == "application/pdf" => {
            json!({"type": "base64", "media_type": media_type, "data": data})
        }
        Media::Inline { media_type, data } if media::is_text(media_type) => {
            let text = media::text(data)
                .ok_or_else(|| ConvertError::new("A text file's data must be base64 of UTF-8 text"))?;
            json!({"type": "text", "media_type": "text/plain", "data": text})
        }
        Media::Inline { media_type, .. } => {
            return Err(ConvertError::new(format!(
                "A file of type {media_type:?} cannot be sent to this model's provider, which takes PDF and text"
            )));
        }
        Media::Id(_) => {
            return Err(ConvertError::new(
                "A file given by id cannot be sent to this model's provider; send its URL or its data",
            ));
        }
    };
    let mut block = json!({"type": "document", "source": source});
    if let Some(name) = &file.name {
        block["title"] = name.as_str().into();
    }
    Ok(block)
}

fn tools(request: &ChatRequest, traits: Traits, body: &mut Object, dropped: &mut Dropped) {
    let allowed = |tool: &&ToolDef| match &request.tool_choice {
        Some(ToolChoice::Allowed { names, .. }) => names.iter().any(|name| name == tool.name()),
        _ => true,
    };
    let tools: Vec<Value> =
        request.tools.iter().filter(allowed).map(|def| tool(def, traits, dropped)).collect();
    if tools.is_empty() {
        return;
    }
    body.insert("tools".into(), tools.into());
    let mut choice = match &request.tool_choice {
        None | Some(ToolChoice::Auto | ToolChoice::Allowed { required: false, .. }) => {
            json!({"type": "auto"})
        }
        Some(ToolChoice::None) => json!({"type": "none"}),
        Some(ToolChoice::Required | ToolChoice::Allowed { required: true, .. }) => json!({"type": "any"}),
        Some(ToolChoice::Named(name)) => json!({"type": "tool", "name": name}),
    };
    if !traits.can_stop_thinking && (choice["type"] == "any" || choice["type"] == "tool") {
        choice = json!({"type": "auto"});
        dropped.add("tool_choice");
    }
    let parallel = request.parallel_tool_calls.filter(|_| request.tool_choice != Some(ToolChoice::None));
    if let Some(parallel) = parallel {
        choice["disable_parallel_tool_use"] = (!parallel).into();
    }
    if request.tool_choice.is_some() || parallel.is_some() {
        body.insert("tool_choice".into(), choice);
    }
}

fn tool(def: &ToolDef, traits: Traits, dropped: &mut Dropped) -> Value {
    let mut tool = json!({"name": def.name()});
    match def {
        ToolDef::Function { description, parameters, strict, .. } => {
            if let Some(description) = description {
                tool["description"] = description.as_str().into();
            }
            let mut schema =
                parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
            if let Value::Object(schema) = &mut schema {
                schema.entry("type").or_insert_with(|| "object".into());
            }
            tool["input_schema"] = schema;
            match strict {
                Some(strict) if traits.structured_output => tool["strict"] = (*strict).into(),
                Some(true) => dropped.add("tools.strict"),
                _ => {}
            }
        }
        ToolDef::Custom { description, format, .. } => {
            // A tool that takes free text is here one that takes an object with one text.
            if format.as_ref().is_some_and(|format| format["type"] != "text") {
                dropped.add("tools.format");
            }
            if let Some(description) = description {
                tool["description"] = description.as_str().into();
            }
            tool["input_schema"] = free_input_schema();
        }
    }
    tool
}

fn output_format(request: &ChatRequest, traits: Traits, config: &mut Object, dropped: &mut Dropped) {
    match &request.format {
        None | Some(OutputFormat::Text) => {}
        Some(OutputFormat::JsonSchema { schema, .. }) if traits.structured_output => {
            config.insert("format".into(), json!({"type": "json_schema", "schema": schema}));
        }
        Some(OutputFormat::JsonObject | OutputFormat::JsonSchema { .. }) => dropped.add("response_format"),
    }
}
