//! Carrying seals of reasoning in another provider's format.
//!
//! Anthropic's `signature` and OpenAI's `encrypted_content` are opaque to clients, who only send them back. So each can
//! carry the other's seal, marked with a prefix: a client of one format keeps its conversation with a provider of the other
//! going, and no provider is sent a seal that is not its own.

use crate::domain::chat::Seal;

/// `encrypted_content` that is an Anthropic signature.
const SIGNATURE: &str = "nxg1.anthropic.signature.";
/// `encrypted_content` that is the data of an Anthropic `redacted_thinking` block.
const REDACTED: &str = "nxg1.anthropic.redacted.";
/// `signature`, or data of `redacted_thinking`, that is a Responses item's id, a dot, and its `encrypted_content`.
const OPENAI: &str = "nxg1.openai.";
/// Begins the ids of reasoning items that the gateway made up.
pub(crate) const OWN_ID: &str = "rs_nxg_";

/// Whether a signature or an encrypted content carries the seal of another format.
pub(super) fn is_carried(text: &str) -> bool {
    [SIGNATURE, REDACTED, OPENAI].iter().any(|prefix| text.starts_with(prefix))
}

/// The seal in a `signature` of an Anthropic body; `None` if it is empty.
pub(crate) fn of_signature(signature: String) -> Option<Seal> {
    if signature.is_empty() {
        return None;
    }
    Some(openai(&signature).unwrap_or(Seal::Anthropic { signature }))
}

/// The seal in the data of a `redacted_thinking` block.
pub(crate) fn of_redacted(data: String) -> Seal {
    openai(&data).unwrap_or(Seal::AnthropicRedacted { data })
}

fn openai(text: &str) -> Option<Seal> {
    let (id, encrypted) = text.strip_prefix(OPENAI)?.split_once('.')?;
    let encrypted = Some(encrypted).filter(|text| !text.is_empty());
    Some(Seal::OpenAi { id: id.to_owned(), encrypted: encrypted.map(str::to_owned) })
}

/// The `signature` (or redacted data) that stands for `seal` in an Anthropic body. Ids of items hold no dots.
pub(crate) fn to_signature(seal: &Seal) -> String {
    match seal {
        Seal::Anthropic { signature } => signature.clone(),
        Seal::AnthropicRedacted { data } => data.clone(),
        Seal::OpenAi { id, encrypted } => {
            format!("{OPENAI}{}.{}", id.replace('.', "_"), encrypted.as_deref().unwrap_or_default())
        }
    }
}

/// The seal in the id and `encrypted_content` of a reasoning item in a Responses body; `None` if the gateway made it
/// up.
pub(crate) fn of_item(id: String, encrypted: Option<String>) -> Option<Seal> {
    let encrypted = encrypted.filter(|text| !text.is_empty());
    if let Some(text) = &encrypted {
        if let Some(signature) = text.strip_prefix(SIGNATURE) {
            return Some(Seal::Anthropic { signature: signature.to_owned() });
        }
        if let Some(data) = text.strip_prefix(REDACTED) {
            return Some(Seal::AnthropicRedacted { data: data.to_owned() });
        }
    }
    if encrypted.is_none() && (id.is_empty() || id.starts_with(OWN_ID)) {
        return None;
    }
    Some(Seal::OpenAi { id, encrypted })
}

/// The id (`None`: make one up) and `encrypted_content` that stand for `seal` in a Responses body.
pub(crate) fn to_item(seal: &Seal) -> (Option<&str>, Option<String>) {
    match seal {
        Seal::Anthropic { signature } => (None, Some(format!("{SIGNATURE}{signature}"))),
        Seal::AnthropicRedacted { data } => (None, Some(format!("{REDACTED}{data}"))),
        Seal::OpenAi { id, encrypted } => (Some(id), encrypted.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seals() -> [Seal; 4] {
        let openai = |encrypted: Option<&str>| Seal::OpenAi {
            id: "rs_0a".into(),
            encrypted: encrypted.map(str::to_owned),
        };
        [
            Seal::Anthropic { signature: "Eo.ab==".into() },
            Seal::AnthropicRedacted { data: "EmwKAh.gB".into() },
            openai(Some("gAAAA.b-_")),
            openai(None),
        ]
    }

    #[test]
    fn every_seal_survives_both_formats() {
        for seal in seals() {
            let in_responses = to_item(&seal);
            let id = in_responses.0.unwrap_or("rs_nxg_1").to_owned();
            assert_eq!(of_item(id, in_responses.1), Some(seal.clone()));
            let text = to_signature(&seal);
            match seal {
                Seal::AnthropicRedacted { .. } => assert_eq!(of_redacted(text), seal),
                _ => assert_eq!(of_signature(text), Some(seal)),
            }
        }
    }

    #[test]
    fn what_nobody_sealed_stays_so() {
        assert_eq!(of_signature(String::new()), None);
        assert_eq!(of_item("rs_nxg_7_0".into(), None), None);
        assert_eq!(of_item("rs_nxg_7_0".into(), Some(String::new())), None);
        assert_eq!(of_item(String::new(), None), None);
    }
}
