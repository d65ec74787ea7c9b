//! The grammar of well-formed streams of each format, checked event by event: the order of events and the state machine
//! behind it.

use serde_json::Value;

use super::events;
use crate::domain::label::ApiFormat;

/// Checks a stream that has ended, well or with an error.
pub(super) fn check(format: ApiFormat, stream: &str) -> Result<(), String> {
    let events = events(stream);
    let last = events.len().checked_sub(1).ok_or("the stream is empty")?;
    match format {
        ApiFormat::OpenAiChat => chat(&events, last),
        ApiFormat::OpenAiResponses => Responses::default().check(&named(&events)?),
        ApiFormat::Anthropic => anthropic(&named(&events)?, last),
    }
}

fn ensure(holds: bool, what: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// Checks that the names of events are the types in their data.
fn named(events: &[(Option<&str>, &str)]) -> Result<Vec<Value>, String> {
    events
        .iter()
        .map(|(name, data)| {
            let event: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
            ensure(event["type"].as_str() == *name, format!("{name:?} is not the type of {data}"))?;
            Ok(event)
        })
        .collect()
}

/// The role comes first, calls are numbered as they begin, each choice finishes once, the usage comes alone, and `[DONE]` last;
/// or an error is last.
fn chat(events: &[(Option<&str>, &str)], last: usize) -> Result<(), String> {
    let mut finished = false;
    let mut calls = 0;
    let mut id = None;
    for (position, (name, data)) in events.iter().enumerate() {
        ensure(name.is_none(), "chat events have no names")?;
        if *data == "[DONE]" {
            return ensure(position == last && finished, "`[DONE]` comes last, after the finish reason");
        }
        let chunk: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
        if chunk["error"].is_object() {
            return ensure(position == last, "nothing comes after an error");
        }
        ensure(chunk["object"] == "chat.completion.chunk", "every chunk says what it is")?;
        let same = id.get_or_insert_with(|| chunk["id"].clone());
        ensure(*same == chunk["id"], "every chunk has the answer's id")?;
        let choices = chunk["choices"].as_array().ok_or("every chunk has choices")?;
        let [choice] = choices.as_slice() else {
            ensure(
                choices.is_empty() && finished && chunk["usage"].is_object(),
                "the usage comes alone, after the end",
            )?;
            continue;
        };
        ensure(!finished, "nothing is said after the finish reason")?;
        ensure((position == 0) == (choice["delta"]["role"] == "assistant"), "the role comes first, once")?;
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().ok_or("a call has an index")?;
            let begins = call["id"].is_string();
            ensure(begins == (index == calls), "a call is named when it begins, and only then")?;
            calls += u64::from(begins);
            ensure(index + 1 == calls, "calls come one after another")?;
        }
        finished = choice["finish_reason"].is_string();
    }
    Err("the stream has no end".into())
}

/// `message_start`, blocks one after another, `message_delta`, `message_stop`; or an error is last.
fn anthropic(events: &[Value], last: usize) -> Result<(), String> {
    let (mut blocks, mut open, mut stopped) = (0, None::<String>, false);
    for (position, event) in events.iter().enumerate() {
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "error" {
            ensure(
                event["error"]["type"].is_string() && event["error"]["message"].is_string(),
                "an error says what",
            )?;
            return ensure(position == last, "nothing comes after an error");
        }
        ensure((position == 0) == (kind == "message_start"), "`message_start` comes first, once")?;
        match kind {
            "message_start" => {
                ensure(event["message"]["content"] == serde_json::json!([]), "a message begins empty")?;
                ensure(
                    event["message"]["usage"]["input_tokens"].is_u64(),
                    "a message begins with its usage",
                )?;
            }
            "content_block_start" => {
                ensure(open.is_none() && !stopped, "one block is open at a time, and none after the stop")?;
                ensure(event["index"] == blocks, "blocks are numbered")?;
                open = event["content_block"]["type"].as_str().map(str::to_owned);
                blocks += 1;
            }
            "content_block_delta" => {
                ensure(event["index"] == blocks - 1, "a delta belongs to the open block")?;
                let fits = match event["delta"]["type"].as_str() {
                    Some("text_delta") => open.as_deref() == Some("text"),
                    Some("thinking_delta" | "signature_delta") => open.as_deref() == Some("thinking"),
                    Some("input_json_delta") => open.as_deref() == Some("tool_use"),
                    _ => false,
                };
                ensure(fits, format!("a delta of another kind than its block: {event}"))?;
            }
            "content_block_stop" => {
                ensure(event["index"] == blocks - 1 && open.take().is_some(), "the open block is closed")?;
            }
            "message_delta" => {
                ensure(open.is_none() && !stopped, "the stop comes once, after the blocks")?;
                ensure(event["delta"]["stop_reason"].is_string(), "the stop has a reason")?;
                ensure(event["usage"]["output_tokens"].is_u64(), "the stop tells the usage")?;
                stopped = true;
            }
            "message_stop" => return ensure(stopped && position == last, "`message_stop` comes last"),
            other => return Err(format!("{other} is no event that the gateway writes")),
        }
    }
    Err("the stream has no end".into())
}

/// Items and parts are added, filled, done; the done event repeats the pieces, and the last event repeats everything.
#[derive(Default)]
struct Responses {
    /// Finished items.
    items: Vec<Value>,
    /// The item in progress.
    item: Option<Value>,
    /// Its part in progress, by its kind, and the text so far.
    part: Option<(String, String)>,
    /// Finished parts of the item.
    parts: Vec<Value>,
}

impl Responses {
    fn check(mut self, events: &[Value]) -> Result<(), String> {
        let last = events.len() - 1;
        for (position, event) in events.iter().enumerate() {
            ensure(
                event["sequence_number"] == position,
                format!("event {position} has the wrong number: {event}"),
            )?;
            let kind = event["type"].as_str().unwrap_or_default();
            match kind {
                "error" => {
                    let rest = events[position + 1..].iter().all(|event| event["type"] == "response.failed");
                    return ensure(
                        rest && position + 2 > last,
                        "only `response.failed` comes after an error",
                    );
                }
                "response.created" => ensure(position == 0, "`response.created` comes first")?,
                "response.in_progress" => ensure(position == 1, "`response.in_progress` comes second")?,
                "response.completed" | "response.incomplete" => {
                    ensure(position == last && self.item.is_none(), "the end comes last")?;
                    ensure(
                        event["response"]["output"] == Value::Array(self.items),
                        "the end repeats the items",
                    )?;
                    return ensure(
                        kind.ends_with(event["response"]["status"].as_str().unwrap_or("-")),
                        "the status",
                    );
                }
                _ => self.write(kind, event).map_err(|error| format!("{error}: {event}"))?,
            }
        }
        Err("the stream has no end".into())
    }

    fn write(&mut self, kind: &str, event: &Value) -> Result<(), String> {
        ensure(event["output_index"] == self.items.len(), "the item is the next one")?;
        if kind == "response.output_item.added" {
            ensure(self.item.is_none(), "one item is open at a time")?;
            self.item = Some(event["item"].clone());
            return Ok(());
        }
        let item = self.item.as_ref().ok_or("an item is open")?;
        if kind == "response.output_item.done" {
            ensure(item["id"] == event["item"]["id"], "an item keeps its id")?;
            ensure(self.part.is_none(), "its parts are done")?;
            let said = ["content", "summary"].iter().find_map(|key| event["item"][*key].as_array());
            ensure(said.is_none_or(|said| *said == self.parts), "an item says what its parts said")?;
            self.items.push(event["item"].clone());
            (self.item, self.parts) = (None, Vec::new());
            return Ok(());
        }
        ensure(event["item_id"] == item["id"], "the event is about the open item")?;
        let index = ["content_index", "summary_index"].iter().find_map(|key| event[*key].as_u64());
        ensure(
            index.is_none_or(|index| index == self.parts.len() as u64),
            "the event is about the open part",
        )?;
        let (base, step) = kind.rsplit_once('.').ok_or("an event has a step")?;
        match (base, step) {
            ("response.content_part" | "response.reasoning_summary_part", "added") => {
                ensure(self.part.replace((base.to_owned(), String::new())).is_none(), "one part is open")
            }
            ("response.content_part" | "response.reasoning_summary_part", "done") => {
                let (_, text) = self.part.take().ok_or("a part is open")?;
                let said = ["text", "refusal"].iter().find_map(|key| event["part"][*key].as_str());
                self.parts.push(event["part"].clone());
                ensure(said == Some(text.as_str()), "a part says what came in pieces")
            }
            (_, "delta") => {
                // Calls have no parts.
                let (_, text) = self.part.get_or_insert_with(|| (base.to_owned(), String::new()));
                text.push_str(event["delta"].as_str().ok_or("a delta is text")?);
                Ok(())
            }
            ("response.function_call_arguments" | "response.custom_tool_call_input", "done") => {
                let text = self.part.take().map(|(_, text)| text).unwrap_or_default();
                let said = event["arguments"].as_str().or(event["input"].as_str());
                ensure(said == Some(text.as_str()), "the call says what came in pieces")
            }
            ("response.output_text" | "response.refusal" | "response.reasoning_summary_text", "done") => {
                let said = event["text"].as_str().or(event["refusal"].as_str());
                ensure(
                    said == self.part.as_ref().map(|(_, text)| text.as_str()),
                    "the text is what came in pieces",
                )
            }
            _ => Err("no event that the gateway writes".into()),
        }
    }
}
