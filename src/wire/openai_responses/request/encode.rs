//! Writing a request for a provider: everything but its input.

use serde_json::{Value, json};

use super::input;
use crate::domain::chat::{ChatRequest, Effort, OutputFormat, Part, Seal, ToolChoice, ToolDef};
use crate::wire::convert::RequestOptions;
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::Object;
use crate::wire::openai_chat::request::{SCHEMA_NAME, effort, shared};
use crate::wire::openai_models as models;

/// Writes `request`, noting fields that this format cannot express.
pub(crate) fn encode(
    request: &ChatRequest,
    options: &RequestOptions<'_>,
    dropped: &mut Dropped,
) -> Result<Vec<u8>, ConvertError> {
    let mut body = Object::new();
    body.insert("model".into(), options.model.into());
    body.insert("input".into(), input::encode(&request.messages, dropped)?.into());
    tools(request, &mut body);
    if let Some(max) = request.max_tokens {
        body.insert("max_output_tokens".into(), max.into());
    }
    if let Some(temperature) = request.temperature {
        body.insert("temperature".into(), temperature.into());
    }
    if let Some(top_p) = request.top_p {
        body.insert("top_p".into(), top_p.into());
    }
    let mut text = Object::new();
    if let Some(format) = &request.format {
        text.insert("format".into(), text_format(format));
    }
    if let Some(verbosity) = &request.verbosity {
        text.insert("verbosity".into(), verbosity.as_str().into());
    }
    if !text.is_empty() {
        body.insert("text".into(), text.into());
    }
    reasoning(request, options.known_as, &mut body, dropped);
    // The other formats store nothing unless asked to; this one stores unless asked not to.
    body.insert("store".into(), false.into());
    shared(request, &mut body, dropped);
    if options.stream {
        body.insert("stream".into(), true.into());
    }
    foreign(request, dropped);
    serde_json::to_vec(&body).map_err(|error| ConvertError::new(error.to_string()))
}

/// Names the fields that only the other formats have.
fn foreign(request: &ChatRequest, dropped: &mut Dropped) {
    let penalty = |value: Option<f64>| value.is_some_and(|value| value != 0.0);
    for (name, set) in [
        ("top_k", request.top_k.is_some()),
        ("frequency_penalty", penalty(request.frequency_penalty)),
        ("presence_penalty", penalty(request.presence_penalty)),
        ("seed", request.seed.is_some()),
        ("stop", !request.stop.is_empty()),
    ] {
        if set {
            dropped.add(name);
        }
    }
}

/// `reasoning`, and a request for its encrypted form, without which it could not be sent back.
fn reasoning(request: &ChatRequest, model: &str, body: &mut Object, dropped: &mut Dropped) {
    let effort = effort(request.reasoning.as_ref(), model, dropped);
    let mut reasoning = Object::new();
    if let Some(effort) = effort {
        reasoning.insert("effort".into(), effort.as_str().into());
    }
    let refused = models::refuses_reasoning(model);
    let wanted =
        request.reasoning.as_ref().is_some_and(|config| config.effort != Some(Effort::Off)) && !refused;
    if wanted && request.reasoning.as_ref().is_some_and(|config| config.visible == Some(true)) {
        reasoning.insert("summary".into(), "auto".into());
    }
    if !reasoning.is_empty() {
        body.insert("reasoning".into(), reasoning.into());
    }
    let sealed = |part: &Part| match part {
        Part::Reasoning(reasoning) => matches!(reasoning.seal, Some(Seal::OpenAi { .. })),
        _ => false,
    };
    // Models that do not reason refuse this field.
    if wanted || request.messages.iter().any(|message| message.parts.iter().any(sealed)) {
        body.insert("include".into(), json!(["reasoning.encrypted_content"]));
    }
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

fn tool(def: &ToolDef) -> Value {
    match def {
        ToolDef::Function { name, description, parameters, strict } => {
            let mut tool = json!({"type": "function", "name": name});
            if let Some(description) = description {
                tool["description"] = description.as_str().into();
            }
            tool["parameters"] =
                parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
            // Here functions are strict unless they say otherwise; in the other formats only if they say so.
            tool["strict"] = strict.unwrap_or(false).into();
            tool
        }
        ToolDef::Custom { name, description, format } => {
            let mut tool = json!({"type": "custom", "name": name});
            if let Some(description) = description {
                tool["description"] = description.as_str().into();
            }
            if let Some(format) = format {
                tool["format"] = format.clone();
            }
            tool
        }
    }
}

fn tool_choice(choice: &ToolChoice, tools: &[ToolDef]) -> Value {
    let named = |name: &str| {
        let custom = tools.iter().any(|tool| matches!(tool, ToolDef::Custom { .. }) && tool.name() == name);
        json!({"type": if custom { "custom" } else { "function" }, "name": name})
    };
    match choice {
        ToolChoice::Auto => "auto".into(),
        ToolChoice::None => "none".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(name) => named(name),
        ToolChoice::Allowed { required, names } => {
            let tools: Vec<Value> = names.iter().map(|name| named(name)).collect();
            let mode = if *required { "required" } else { "auto" };
            json!({"type": "allowed_tools", "mode": mode, "tools": tools})
        }
    }
}

fn text_format(format: &OutputFormat) -> Value {
    match format {
        OutputFormat::Text => json!({"type": "text"}),
        OutputFormat::JsonObject => json!({"type": "json_object"}),
        OutputFormat::JsonSchema { name, description, schema, strict } => {
            let mut written = json!({"type": "json_schema", "name": name.as_deref().unwrap_or(SCHEMA_NAME)});
            if let Some(description) = description {
                written["description"] = description.as_str().into();
            }
            written["schema"] = schema.clone();
            if let Some(strict) = strict {
                written["strict"] = (*strict).into();
            }
            written
        }
    }
}
