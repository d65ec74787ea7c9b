//! Adjusts requests that are valid in a format but that its providers reject. A caller of another format cannot know
//! these rules.

use serde_json::{Value, json};

use super::calls::{FREE_INPUT, free_input_schema};
use super::dropped::Dropped;
use super::{RequestOptions, media, names, schema, signed};
use crate::domain::chat::{
    ChatRequest, Effort, Media, Message, OutputFormat, Part, ReasoningConfig, Role, ToolCall, ToolChoice,
    ToolDef, ToolKind, Upload,
};
use crate::domain::label::ApiFormat;
use crate::wire::openai_models as models;

/// The smallest `max_output_tokens` that OpenAI's Responses take.
const MIN_OUTPUT_TOKENS: u64 = 16;

/// The most strict tools, and optional properties in them, that Anthropic enforces in one request. Source:
/// <https://platform.claude.com/docs/en/build-with-claude/structured-outputs#schema-complexity-limits>.
const MAX_STRICT_TOOLS: usize = 20;
const MAX_OPTIONAL_PROPERTIES: usize = 24;

/// Fits `request`, which came in the format `from`, to the model of `options` behind a provider of the format `to`; names
/// the fields it leaves out.
pub(super) fn fit(
    request: &mut ChatRequest,
    from: ApiFormat,
    to: ApiFormat,
    options: &RequestOptions<'_>,
    dropped: &mut Dropped,
) {
    let model = options.known_as;
    if to != ApiFormat::OpenAiChat || !models::signs_calls(model) {
        drop_signatures(&mut request.messages);
    }
    match to {
        ApiFormat::OpenAiChat => {
            for message in &mut request.messages {
                write_out_texts(&mut message.parts);
            }
            if models::is_openai(model) {
                fit_for_openai_chat(request, model, dropped);
            } else {
                fit_for_others(request, model, dropped);
            }
            results_behind_calls(&mut request.messages);
        }
        ApiFormat::OpenAiResponses => {
            let least = |max: u64| if max == 0 { 0 } else { max.max(MIN_OUTPUT_TOKENS) };
            request.max_tokens = request.max_tokens.map(least);
            if models::refuses_reasoning(model) {
                drop_thoughts(&mut request.messages, dropped);
            }
        }
        ApiFormat::Anthropic => fit_for_anthropic(request, dropped),
    }
    if to != ApiFormat::Anthropic {
        drop_cache_points(&mut request.messages, dropped);
        fit_tools_for_openai(request, from, dropped);
        fit_effort(request, to, model, dropped);
        let at_openai = to == ApiFormat::OpenAiChat && options.openai_or_azure;
        if at_openai && models::refuses_reasoning_with_functions(model) {
            stop_reasoning_with_functions(request, model, dropped);
        }
        fit_sampling(request, model, dropped);
    }
    let offered = |name: &str, tools: &[ToolDef]| tools.iter().any(|tool| tool.name() == name);
    match &mut request.tool_choice {
        // The named tool is one that only the client's usual provider has.
        Some(ToolChoice::Named(name)) if !offered(name, &request.tools) => {
            request.tool_choice = None;
            dropped.add("tool_choice");
        }
        Some(ToolChoice::Allowed { names, .. }) => {
            names.retain(|name| offered(name, &request.tools));
            if names.is_empty() {
                request.tool_choice = None;
                dropped.add("tool_choice");
            }
        }
        _ => {}
    }
}

/// Signatures of another provider's calls mean nothing here.
fn drop_signatures(messages: &mut [Message]) {
    for part in messages.iter_mut().flat_map(|message| &mut message.parts) {
        let id = match part {
            Part::ToolCall(call) => &mut call.id,
            Part::ToolResult(result) => &mut result.call_id,
            _ => continue,
        };
        id.truncate(signed::bare(id).len());
    }
}

/// Drops cache points: OpenAI caches without being asked.
fn drop_cache_points(messages: &mut [Message], dropped: &mut Dropped) {
    let mut cut = |parts: &mut Vec<Part>| {
        let before = parts.len();
        parts.retain(|part| !matches!(part, Part::CachePoint(_)));
        if parts.len() < before {
            dropped.add("cache_control");
        }
    };
    for message in messages {
        cut(&mut message.parts);
        for part in &mut message.parts {
            if let Part::ToolResult(result) = part {
                cut(&mut result.content);
            }
        }
    }
}

/// Writes text documents as text: providers here take only PDFs as files.
fn write_out_texts(parts: &mut [Part]) {
    for part in parts {
        match part {
            Part::ToolResult(result) => write_out_texts(&mut result.content),
            Part::File(Upload { source: Media::Inline { media_type, data }, name })
                if media::is_text(media_type) =>
            {
                let Some(text) = media::text(data) else { continue };
                let title = name.take().map(|name| name + "\n\n").unwrap_or_default();
                *part = Part::Text(title + &text);
            }
            _ => {}
        }
    }
}

/// Joins several texts into one: not every server accepts a list in place of a string.
fn join_texts(messages: &mut [Message]) {
    for message in messages {
        join(&mut message.parts, message.role);
        for part in &mut message.parts {
            if let Part::ToolResult(result) = part {
                join(&mut result.content, Role::Tool);
            }
        }
    }
}

/// Joins the texts in `parts`, unless another kind of part forces a list anyway.
fn join(parts: &mut Vec<Part>, role: Role) {
    let makes_a_list = |part: &Part| matches!(part, Part::Image(_) | Part::File(_) | Part::Audio { .. });
    if parts.iter().any(makes_a_list) {
        return;
    }
    let mut joined = String::new();
    for part in parts.iter() {
        let Part::Text(text) = part else { continue };
        // Pieces of a model's text are one text, and so are texts that were cut at a space; other blocks are
        // paragraphs.
        let goes_on = joined.is_empty()
            || role == Role::Assistant
            || joined.ends_with(char::is_whitespace)
            || text.starts_with(char::is_whitespace);
        joined.push_str(if goes_on { "" } else { "\n\n" });
        joined.push_str(text);
    }
    let mut joined = Some(joined);
    parts.retain_mut(|part| match part {
        Part::Text(text) => joined.take().map(|all| *text = all).is_some(),
        _ => true,
    });
}

/// Puts results directly behind the turn with their calls, where this format wants them; messages in between come
/// after.
fn results_behind_calls(messages: &mut Vec<Message>) {
    let (mut sorted, mut held): (Vec<Message>, Vec<Message>) =
        (Vec::with_capacity(messages.len()), Vec::new());
    let mut waits_for: Vec<String> = Vec::new();
    for message in std::mem::take(messages) {
        match message.role {
            Role::Assistant => {
                sorted.append(&mut held);
                let call = |part: &Part| match part {
                    Part::ToolCall(call) => Some(call.id.clone()),
                    _ => None,
                };
                waits_for = message.parts.iter().filter_map(call).collect();
                sorted.push(message);
            }
            Role::Tool => {
                waits_for.retain(|id| !message.parts.iter().any(|part| is_result_of(part, id)));
                match sorted.last_mut() {
                    Some(last) if last.role == Role::Tool => last.parts.extend(message.parts),
                    _ => sorted.push(message),
                }
                if waits_for.is_empty() {
                    sorted.append(&mut held);
                }
            }
            _ if waits_for.is_empty() => sorted.push(message),
            _ => held.push(message),
        }
    }
    sorted.append(&mut held);
    *messages = sorted;
}

fn is_result_of(part: &Part, call_id: &str) -> bool {
    matches!(part, Part::ToolResult(result) if result.call_id == call_id)
}

/// Adjusts requests for servers that speak OpenAI's format and are not OpenAI's: they refuse some newer fields, or
/// their models do not know them.
fn fit_for_others(request: &mut ChatRequest, model: &str, dropped: &mut Dropped) {
    if request.verbosity.take().is_some() {
        dropped.add("verbosity");
    }
    if let Some(ToolChoice::Allowed { required, names }) = &request.tool_choice {
        request.tools.retain(|tool| names.iter().any(|name| name == tool.name()));
        request.tool_choice = Some(if *required { ToolChoice::Required } else { ToolChoice::Auto });
    }
    for tool in &mut request.tools {
        if let ToolDef::Custom { name, description, format } = tool {
            if format.as_ref().is_some_and(|format| format["type"] != "text") {
                dropped.add("tools.format");
            }
            let (name, description) = (std::mem::take(name), description.take());
            let parameters = Some(free_input_schema());
            *tool = ToolDef::Function { name, description, parameters, strict: None };
        }
    }
    for (key, value) in std::mem::take(&mut request.openai) {
        // These servers store nothing unasked, so `store: false` is fulfilled.
        if key != "store" || value != json!(false) {
            dropped.add(key);
        }
    }
    if request.service_tier.take().is_some_and(|tier| tier != "auto" && tier != "default") {
        dropped.add("service_tier");
    }
    join_texts(&mut request.messages);
    let keeps_thoughts = models::takes_thoughts_back(model);
    for message in &mut request.messages {
        for part in &mut message.parts {
            if let Part::ToolCall(call @ ToolCall { kind: ToolKind::Custom, .. }) = part {
                call.arguments = json!({FREE_INPUT: call.arguments}).to_string();
                call.kind = ToolKind::Function;
            }
        }
    }
    if !keeps_thoughts {
        drop_thoughts(&mut request.messages, dropped);
    }
}

/// Drops the reasoning of earlier turns.
fn drop_thoughts(messages: &mut [Message], dropped: &mut Dropped) {
    for message in messages {
        let before = message.parts.len();
        message.parts.retain(|part| !matches!(part, Part::Reasoning(_)));
        if message.parts.len() < before {
            dropped.add("messages.reasoning");
        }
    }
}

/// Adjusts requests for OpenAI's Chat Completions, which refuse more than its Responses do.
fn fit_for_openai_chat(request: &mut ChatRequest, model: &str, dropped: &mut Dropped) {
    // "The 'metadata' parameter is only allowed when 'store' is enabled."
    let stores = request.openai.get("store") == Some(&json!(true));
    if !stores && request.openai.remove("metadata").is_some_and(|value| value != json!({})) {
        dropped.add("metadata");
    }
    if models::refuses_parallel_calls(model) && request.parallel_tool_calls.take() == Some(false) {
        dropped.add("parallel_tool_calls");
    }
}

/// With functions to call, these models must not reason in Chat Completions; GPT 5.5 and newer do unless told not to.
fn stop_reasoning_with_functions(request: &mut ChatRequest, model: &str, dropped: &mut Dropped) {
    if !request.tools.iter().any(|tool| matches!(tool, ToolDef::Function { .. })) {
        return;
    }
    if request.reasoning.as_ref().is_some_and(|config| config.effort != Some(Effort::Off)) {
        dropped.add("reasoning");
    }
    let off = models::effort(Effort::Off, model)
        .map(|effort| ReasoningConfig { effort: Some(effort), ..ReasoningConfig::default() });
    if request.reasoning.is_some() || models::reasons_unasked(model) {
        request.reasoning = off;
    }
}

/// Maps the effort to a word that the model knows.
fn fit_effort(request: &mut ChatRequest, to: ApiFormat, model: &str, dropped: &mut Dropped) {
    let Some(config) = &mut request.reasoning else { return };
    let wanted = config.effort.or(config.budget_tokens.map(Effort::from_budget));
    let Some(effort) = wanted.filter(|_| !models::refuses_reasoning(model)) else { return };
    config.effort = match models::effort(effort, model) {
        Some(Effort::Max) if to == ApiFormat::OpenAiChat => Some(Effort::XHigh),
        effort => effort,
    };
    if config.effort.is_none() {
        request.reasoning = None;
        dropped.add("reasoning");
    }
}

/// The most stop sequences that OpenAI takes.
const MAX_STOPS: usize = 4;

/// Drops parameters that OpenAI's models refuse.
fn fit_sampling(request: &mut ChatRequest, model: &str, dropped: &mut Dropped) {
    let effort = request.reasoning.as_ref().and_then(|config| config.effort);
    let samples = models::takes_sampling(model, effort);
    let penalizes = models::takes_penalties(model);
    for (name, value, default, taken) in [
        ("temperature", &mut request.temperature, 1.0, samples),
        ("top_p", &mut request.top_p, 1.0, samples),
        ("frequency_penalty", &mut request.frequency_penalty, 0.0, penalizes),
        ("presence_penalty", &mut request.presence_penalty, 0.0, penalizes),
    ] {
        if !taken && value.take().is_some_and(|value| value != default) {
            dropped.add(name);
        }
    }
    let most_stops = if !models::is_openai(model) {
        usize::MAX
    } else if models::takes_stops(model, effort) {
        MAX_STOPS
    } else {
        0
    };
    if request.stop.len() > most_stops {
        request.stop.truncate(most_stops);
        dropped.add("stop");
    }
}

/// Adjusts names and schemas of tools to OpenAI's rules.
fn fit_tools_for_openai(request: &mut ChatRequest, from: ApiFormat, dropped: &mut Dropped) {
    let shorten = |name: &mut String| {
        if let Some(short) = names::short(name) {
            *name = short;
        }
    };
    for tool in &mut request.tools {
        match tool {
            ToolDef::Function { name, parameters, strict, .. } => {
                shorten(name);
                if let Some(Value::Object(schema)) = parameters
                    && schema.get("type").is_some_and(|kind| kind == "object")
                {
                    schema.entry("properties").or_insert_with(|| json!({}));
                }
                // Anthropic lets strict tools have optional parameters; OpenAI does not.
                let can_be = parameters.as_ref().is_none_or(schema::can_be_strict);
                if from == ApiFormat::Anthropic && *strict == Some(true) && !can_be {
                    *strict = None;
                    dropped.add("tools.strict");
                }
            }
            ToolDef::Custom { name, .. } => shorten(name),
        }
    }
    match &mut request.tool_choice {
        Some(ToolChoice::Named(name)) => shorten(name),
        Some(ToolChoice::Allowed { names, .. }) => names.iter_mut().for_each(shorten),
        _ => {}
    }
    for part in request.messages.iter_mut().flat_map(|message| &mut message.parts) {
        if let Part::ToolCall(call) = part {
            shorten(&mut call.name);
        }
    }
}

fn fit_for_anthropic(request: &mut ChatRequest, dropped: &mut Dropped) {
    if request.user.as_deref().is_some_and(is_personal) {
        request.user = None;
        dropped.add("user");
    }
    let stops = request.stop.len();
    request.stop.retain(|stop| !stop.trim().is_empty());
    if request.stop.len() < stops {
        dropped.add("stop");
    }
    if let Some(OutputFormat::JsonSchema { schema, .. }) = &mut request.format {
        schema::fit_for_anthropic(schema);
    }
    loosen_tools(&mut request.tools, dropped);
    for message in &mut request.messages {
        drop_blanks(&mut message.parts);
        for part in &mut message.parts {
            if let Part::ToolResult(result) = part {
                drop_blanks(&mut result.content);
            }
        }
    }
    // Apart from the instructions, the conversation must not end with white space and must not be empty.
    let instructs = |message: &Message| matches!(message.role, Role::System | Role::Developer);
    let last =
        request.messages.iter_mut().rev().find(|message| !instructs(message) && !message.parts.is_empty());
    if let Some(Message { role: Role::Assistant, parts, .. }) = last
        && let Some(Part::Text(text)) =
            parts.iter_mut().rev().find(|part| !matches!(part, Part::CachePoint(_)))
    {
        text.truncate(text.trim_end().len());
    }
    if request.messages.iter().all(instructs)
        && let Some(last) = request.messages.last_mut()
    {
        last.role = Role::User;
    }
}

/// Drops texts of nothing but white space, which are refused.
fn drop_blanks(parts: &mut Vec<Part>) {
    parts.retain(|part| !matches!(part, Part::Text(text) if text.trim().is_empty()));
}

/// Whether the id of an end user looks like personal data that Anthropic asks not to be sent: an e-mail address or a
/// telephone number.
fn is_personal(user: &str) -> bool {
    let dials = |c: char| c.is_ascii_digit() || matches!(c, ' ' | '+' | '-' | '(' | ')');
    user.contains('@') || (user.len() >= 7 && user.chars().all(dials))
}

/// Clears `strict` on tools that Anthropic could not enforce, and on tools beyond its limits.
fn loosen_tools(tools: &mut [ToolDef], dropped: &mut Dropped) {
    let (mut strict_tools, mut optional) = (0, 0);
    for tool in tools {
        let ToolDef::Function { parameters, strict: strict @ Some(true), .. } = tool else { continue };
        let fits = parameters.as_ref().is_none_or(schema::is_enforceable);
        let more = parameters.as_ref().map_or(0, schema::optional_properties);
        if fits && strict_tools < MAX_STRICT_TOOLS && optional + more <= MAX_OPTIONAL_PROPERTIES {
            strict_tools += 1;
            optional += more;
        } else {
            *strict = None;
            dropped.add("tools.strict");
        }
    }
}
