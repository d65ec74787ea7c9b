//! Signatures of calls. Gemini signs its reasoning before a call and refuses the next turn unless the signature comes
//! back with the call. Other formats have no field for it, so it travels in the call's id, which all clients send back.
//! Source: <https://ai.google.dev/gemini-api/docs/thought-signatures>.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::fields::Object;

/// The separator between an id and the signature behind it, of characters that every format takes in ids.
const MARK: &str = "__thought__";

/// The signature in a chat provider's call.
pub(crate) fn signature(call: &Object) -> Option<&str> {
    call.get("extra_content")?["google"]["thought_signature"].as_str().filter(|text| !text.is_empty())
}

/// `id` with `signature` behind it.
pub(crate) fn sign(id: &str, signature: Option<&str>) -> String {
    match signature {
        Some(signature) => format!("{id}{MARK}{}", URL_SAFE_NO_PAD.encode(signature)),
        None => id.to_owned(),
    }
}

/// The id alone, as the provider knows it.
pub(crate) fn bare(id: &str) -> &str {
    id.split_once(MARK).map_or(id, |(bare, _)| bare)
}

/// The `extra_content` that returns the signature in `id` to the provider.
pub(crate) fn extra_content(id: &str) -> Option<Value> {
    let (_, coded) = id.split_once(MARK)?;
    let signature = String::from_utf8(URL_SAFE_NO_PAD.decode(coded).ok()?).ok()?;
    Some(json!({"google": {"thought_signature": signature}}))
}

/// `body` without the signatures in its ids; `None` if there are none. For a provider that gets the client's body
/// unconverted and may not know signatures: OpenAI refuses ids of more than 64 characters.
pub(super) fn without_signatures(body: &[u8]) -> Option<Vec<u8>> {
    let mark = MARK.as_bytes();
    let mut rest = body;
    let mut out: Option<Vec<u8>> = None;
    while let Some(at) = memchr::memmem::find(rest, mark) {
        let (before, behind) = rest.split_at(at);
        let coded = behind[mark.len()..].iter().take_while(|byte| is_of_id(**byte)).count();
        let end = mark.len() + coded;
        // It is an id, and not a text that mentions one, if the whole string is made of such characters.
        let begins = before.iter().rev().find(|byte| !is_of_id(**byte)) == Some(&b'"');
        let is_id = begins && behind.get(end) == Some(&b'"');
        let kept = if is_id { at } else { at + end };
        out.get_or_insert_default().extend_from_slice(&rest[..kept]);
        rest = &rest[at + end..];
    }
    out.map(|mut out| {
        out.extend_from_slice(rest);
        out
    })
}

fn is_of_id(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_lose_their_signatures() {
        let id = sign("call_1", Some("a+b=="));
        let body = format!(r#"{{"call_id":"{id}","output":"of \"{id} and more","id": "{id}"}}"#);
        let clean = without_signatures(body.as_bytes()).unwrap();
        let expected = format!(r#"{{"call_id":"call_1","output":"of \"{id} and more","id": "call_1"}}"#);
        assert_eq!(String::from_utf8(clean).unwrap(), expected);
        assert_eq!(without_signatures(br#"{"call_id":"call_1"}"#), None);
    }
}
