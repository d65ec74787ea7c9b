//! Traces of earlier conversions in a request that is passed on unconverted.
//!
//! A client sends its conversation back, with turns that providers of other formats have answered. Their seals and
//! signatures were written into the client's format for the way back (see [`seal`](super::seal) and
//! [`signed`](super::signed)); a provider that gets the client's body as it is would refuse them, on every further turn.

use memchr::memmem;
use serde_json::Value;

use super::Rendered;
use super::dropped::Dropped;
use super::fields::Object;
use super::seal::{OWN_ID, is_carried};
use super::signed::without_signatures;
use super::surrogates::read_lossy;
use crate::domain::label::ApiFormat;

/// `body`, of this format, for `model` of a provider of the same format; `None`: it holds no traces.
pub fn without_traces(format: ApiFormat, model: &str, body: &[u8]) -> Option<Rendered> {
    let unsigned = without_signatures(body);
    let unsealed = without_foreign_seals(format, model, unsigned.as_deref().unwrap_or(body));
    match (unsigned, unsealed) {
        (_, Some(unsealed)) => Some(unsealed),
        (Some(body), None) => Some(Rendered { body, dropped: Vec::new() }),
        (None, None) => None,
    }
}

/// The body without reasoning that the provider cannot read.
fn without_foreign_seals(format: ApiFormat, model: &str, body: &[u8]) -> Option<Rendered> {
    if format == ApiFormat::OpenAiChat {
        return None;
    }
    // Other vendors' models may well write thinking without a signature, and read it.
    let is_claude = format == ApiFormat::Anthropic && model.to_ascii_lowercase().contains("claude");
    let is_suspect = memmem::find(body, b"nxg1.").is_some()
        || memmem::find(body, OWN_ID.as_bytes()).is_some()
        || (is_claude && has_empty_signature(body));
    if !is_suspect {
        return None;
    }
    let mut request: Object = read_lossy(body).ok()?;
    let mut dropped = Dropped::default();
    match format {
        ApiFormat::Anthropic => drop_blocks(&mut request, is_claude, &mut dropped),
        _ => drop_items(&mut request, &mut dropped),
    }
    let dropped = dropped.into_names();
    if dropped.is_empty() {
        return None;
    }
    Some(Rendered { body: serde_json::to_vec(&request).ok()?, dropped })
}

fn has_empty_signature(body: &[u8]) -> bool {
    const NAME: &[u8] = b"\"signature\"";
    memmem::find_iter(body, NAME).any(|at| {
        let behind = body[at + NAME.len()..].trim_ascii_start();
        behind.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"\"\""))
    })
}

/// Drops reasoning items of a Responses request, and references to them.
fn drop_items(request: &mut Object, dropped: &mut Dropped) {
    let Some(Value::Array(items)) = request.get_mut("input") else { return };
    items.retain(|item| {
        let foreign = text(item, "id").starts_with(OWN_ID) || is_carried(text(item, "encrypted_content"));
        let goes = foreign && matches!(text(item, "type"), "reasoning" | "item_reference");
        if goes {
            dropped.add("input.reasoning");
        }
        !goes
    });
}

/// Drops thinking blocks of a Messages request.
fn drop_blocks(request: &mut Object, is_claude: bool, dropped: &mut Dropped) {
    let Some(Value::Array(messages)) = request.get_mut("messages") else { return };
    let mut any = false;
    for message in messages.iter_mut() {
        let Some(Value::Array(blocks)) = message.get_mut("content") else { continue };
        let before = blocks.len();
        blocks.retain(|block| match text(block, "type") {
            "thinking" => {
                let signature = text(block, "signature");
                !(is_carried(signature) || (is_claude && signature.is_empty()))
            }
            "redacted_thinking" => !is_carried(text(block, "data")),
            _ => true,
        });
        any |= blocks.len() < before;
    }
    if !any {
        return;
    }
    dropped.add("messages.thinking");
    // A turn of nothing else is no turn: empty content is refused.
    messages
        .retain(|message| message.get("content").and_then(Value::as_array).is_none_or(|all| !all.is_empty()));
    if in_a_loop_without_thoughts(messages)
        && request.get("thinking").is_some_and(|thinking| text(thinking, "type") == "enabled")
    {
        request.shift_remove("thinking");
        dropped.add("thinking");
    }
}

/// Whether the last turn of the assistant, whose calls are answered, begins without thinking: with a budget Anthropic
/// refuses that.
fn in_a_loop_without_thoughts(messages: &[Value]) -> bool {
    let Some(last) = messages.iter().rposition(|message| text(message, "role") == "assistant") else {
        return false;
    };
    let answers =
        messages[last + 1..].iter().flat_map(blocks).any(|block| text(block, "type") == "tool_result");
    let thinks =
        blocks(&messages[last]).first().is_some_and(|block| text(block, "type").ends_with("thinking"));
    answers && !thinks
}

fn blocks(message: &Value) -> &[Value] {
    message.get("content").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn passed(format: ApiFormat, model: &str, body: &Value) -> Option<(Value, Vec<String>)> {
        let rendered = without_traces(format, model, body.to_string().as_bytes())?;
        Some((serde_json::from_slice(&rendered.body).unwrap(), rendered.dropped))
    }

    #[test]
    fn thinking_of_others_is_not_sent_to_claude() {
        let own = json!({"type": "thinking", "thinking": "a", "signature": "EqQB"});
        let call = json!({"type": "tool_use", "id": "t", "name": "f", "input": {}});
        let result =
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]});
        let body = |turns: Value| json!({"model": "m", "thinking": {"type": "enabled"}, "messages": turns});
        let said = |blocks: Value| json!({"role": "assistant", "content": blocks});

        let untouched = body(json!([said(json!([own, call])), result]));
        assert_eq!(passed(ApiFormat::Anthropic, "claude-sonnet-4", &untouched), None);
        for foreign in [
            json!({"type": "thinking", "thinking": "b", "signature": "nxg1.openai.rs_1.gAAA"}),
            json!({"type": "redacted_thinking", "data": "nxg1.openai.rs_1.gAAA"}),
            json!({"type": "thinking", "thinking": "b", "signature": ""}),
        ] {
            let mixed = body(json!([said(json!([foreign])), said(json!([foreign, own, call])), result]));
            let (sent, dropped) = passed(ApiFormat::Anthropic, "us.claude-opus-4-5", &mixed).unwrap();
            assert_eq!(sent, untouched, "{foreign}");
            assert_eq!(dropped, ["messages.thinking"]);

            let alone = body(json!([said(json!([foreign, call])), result]));
            let (sent, dropped) = passed(ApiFormat::Anthropic, "claude-opus-4-5", &alone).unwrap();
            assert_eq!(dropped, ["messages.thinking", "thinking"]);
            assert_eq!(
                sent,
                json!({"model": "m", "messages": [said(json!([call])), result]}),
                "no thinking in a loop"
            );
        }
        let unsigned = said(json!([{"type": "thinking", "thinking": "b", "signature": ""}, call]));
        assert_eq!(
            passed(ApiFormat::Anthropic, "MiniMax-M2", &body(json!([unsigned]))),
            None,
            "its own way to think"
        );
        let mentioned = body(json!([{"role": "user", "content": "nxg1.openai. \"signature\":\"\" rs_nxg_"}]));
        assert_eq!(passed(ApiFormat::Anthropic, "claude-opus-4-5", &mentioned), None);
    }

    #[test]
    fn reasoning_of_others_is_not_sent_to_openai() {
        let own = json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"});
        let asked = json!({"role": "user", "content": "rs_nxg_"});
        for foreign in [
            json!({"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "nxg1.anthropic.signature.Eq"}),
            json!({"type": "reasoning", "id": "rs_nxg_1", "summary": []}),
            json!({"type": "item_reference", "id": "rs_nxg_1"}),
        ] {
            let body = json!({"model": "m", "input": [own, foreign, asked]});
            let (sent, dropped) = passed(ApiFormat::OpenAiResponses, "gpt-5", &body).unwrap();
            assert_eq!(sent, json!({"model": "m", "input": [own, asked]}));
            assert_eq!(dropped, ["input.reasoning"]);
        }
        for untouched in [json!({"input": [own, asked]}), json!({"input": "rs_nxg_ nxg1."})] {
            assert_eq!(passed(ApiFormat::OpenAiResponses, "gpt-5", &untouched), None);
        }
    }
}
