//! Reasoning in chat messages. OpenAI's own format has no field for it; two conventions do.
//!
//! * `reasoning_content` (DeepSeek, also `reasoning`): the text alone.
//! * `reasoning_details` (OpenRouter): a list that also carries the seals of the provider behind, so that a client that
//!   sends the message back unchanged lets that provider continue its reasoning.

use serde_json::{Value, json};

use crate::domain::chat::{Part, Reasoning, Seal};
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::{Fields, Object};

const ANTHROPIC: &str = "anthropic-claude-v1";
const OPENAI: &str = "openai-responses-v1";

/// The reasoning of an assistant's message in a request. `reasoning_details` repeats the text of `reasoning_content`,
/// so the latter counts only by itself.
pub(super) fn decode(fields: &mut Fields<'_>, dropped: &mut Dropped) -> Result<Vec<Part>, ConvertError> {
    let content = fields.str("reasoning_content")?;
    let other = fields.str("reasoning")?;
    let details = fields.array("reasoning_details")?.unwrap_or_default();
    let mut parts: Vec<Reasoning> = Vec::new();
    for detail in details {
        let Value::Object(detail) = detail else {
            return Err(fields.error("reasoning_details", "must be an array of objects"));
        };
        if !read_detail(&detail, &mut parts) {
            dropped.add("messages.reasoning_details");
        }
    }
    if parts.is_empty() {
        let text = content.or(other).filter(|text| !text.is_empty());
        parts.extend(text.map(|text| Reasoning { text, seal: None }));
    }
    Ok(parts.into_iter().map(Part::Reasoning).collect())
}

/// Adds one entry to `parts`; false: its kind is unknown.
fn read_detail(detail: &Object, parts: &mut Vec<Reasoning>) -> bool {
    let field = |key: &str| detail.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let owned = |key: &str| field(key).unwrap_or_default().to_owned();
    let openai = field("format") == Some(OPENAI);
    match field("type") {
        Some("reasoning.text") => {
            let seal = field("signature").map(|text| Seal::Anthropic { signature: text.to_owned() });
            parts.push(Reasoning { text: owned("text"), seal });
        }
        Some("reasoning.summary") if openai => {
            let seal = Some(Seal::OpenAi { id: owned("id"), encrypted: None });
            parts.push(Reasoning { text: owned("summary"), seal });
        }
        Some("reasoning.summary") => parts.push(Reasoning { text: owned("summary"), seal: None }),
        Some("reasoning.encrypted") if openai => {
            // Its text, if any, came in the entry before.
            let seal = Seal::OpenAi { id: owned("id"), encrypted: Some(owned("data")) };
            match parts.last_mut() {
                Some(Reasoning { seal: Some(Seal::OpenAi { id, encrypted: open @ None }), .. })
                    if *id == owned("id") =>
                {
                    *open = Some(owned("data"));
                }
                _ => parts.push(Reasoning { text: String::new(), seal: Some(seal) }),
            }
        }
        Some("reasoning.encrypted") if field("format") == Some(ANTHROPIC) => {
            let seal = Some(Seal::AnthropicRedacted { data: owned("data") });
            parts.push(Reasoning { text: String::new(), seal });
        }
        _ => return false,
    }
    true
}

/// The `reasoning_details` entries of one sealed piece of reasoning, numbered from `index`; empty if it has no seal, or
/// nothing to send back.
pub(crate) fn details(text: &str, seal: Option<&Seal>, index: usize) -> Vec<Value> {
    match seal {
        None => Vec::new(),
        Some(Seal::Anthropic { signature }) => vec![json!({
            "type": "reasoning.text", "text": text, "signature": signature, "format": ANTHROPIC, "index": index,
        })],
        Some(Seal::AnthropicRedacted { data }) => vec![json!({
            "type": "reasoning.encrypted", "data": data, "format": ANTHROPIC, "index": index,
        })],
        Some(Seal::OpenAi { id, encrypted }) => {
            let mut entries = Vec::new();
            if !text.is_empty() {
                entries.push(json!({
                    "type": "reasoning.summary", "summary": text, "id": id, "format": OPENAI, "index": index,
                }));
            }
            if let Some(data) = encrypted {
                entries.push(json!({
                    "type": "reasoning.encrypted", "data": data, "id": id, "format": OPENAI,
                    "index": index + entries.len(),
                }));
            }
            entries
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::convert::fields::At;

    fn read(message: Value) -> (Vec<Part>, Vec<String>) {
        let mut dropped = Dropped::default();
        let parts = decode(&mut Fields::new(message, At::Root).unwrap(), &mut dropped).unwrap();
        (parts, dropped.into_names())
    }

    #[test]
    fn seals_survive_a_client_that_sends_the_message_back() {
        let sealed = |text: &str, seal: Seal| Reasoning { text: text.into(), seal: Some(seal) };
        let openai = |encrypted: Option<&str>| Seal::OpenAi {
            id: "rs_1".into(),
            encrypted: encrypted.map(str::to_owned),
        };
        let pieces = [
            sealed("hm", Seal::Anthropic { signature: "sig".into() }),
            sealed("", Seal::AnthropicRedacted { data: "xyz".into() }),
            sealed("so", openai(Some("enc"))),
            sealed("", openai(Some("enc2"))),
            sealed("no", openai(None)),
        ];
        assert!(details("", Some(&openai(None)), 0).is_empty());
        let mut entries = Vec::new();
        for piece in &pieces {
            entries.extend(details(&piece.text, piece.seal.as_ref(), entries.len()));
        }
        for (index, entry) in entries.iter().enumerate() {
            assert_eq!(entry["index"], index);
        }
        let (parts, dropped) = read(json!({"reasoning_content": "hmso", "reasoning_details": entries}));
        assert_eq!(parts, pieces.map(Part::Reasoning));
        assert!(dropped.is_empty());
    }

    #[test]
    fn text_alone_has_no_seal() {
        let expected = vec![Part::Reasoning(Reasoning { text: "hm".into(), seal: None })];
        assert_eq!(read(json!({"reasoning_content": "hm"})).0, expected);
        assert_eq!(read(json!({"reasoning": "hm"})).0, expected);
        assert_eq!(read(json!({"reasoning_content": ""})).0, []);
        let unknown = json!({"reasoning_content": "hm", "reasoning_details": [{"type": "reasoning.new"}]});
        assert_eq!(read(unknown), (expected, vec!["messages.reasoning_details".to_owned()]));
    }
}
