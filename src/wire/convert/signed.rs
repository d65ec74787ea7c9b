//! Signatures of calls. Gemini signs what it thought before a call and refuses the next turn unless the signature comes back
//! with it. Clients of other formats have no place for it, so it travels in the id of the call, which all of them send back.
//! Source: <https://ai.google.dev/gemini-api/docs/thought-signatures>.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::fields::Object;

/// Between an id and the signature behind it, of characters that every format takes in ids.
const MARK: &str = "__thought__";

/// The signature in what a chat provider wrote of a call.
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

/// What the provider is to be told of the signature in `id`.
pub(crate) fn extra_content(id: &str) -> Option<Value> {
    let (_, coded) = id.split_once(MARK)?;
    let signature = String::from_utf8(URL_SAFE_NO_PAD.decode(coded).ok()?).ok()?;
    Some(json!({"google": {"thought_signature": signature}}))
}
