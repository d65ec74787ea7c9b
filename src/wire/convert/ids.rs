//! Ids of answers, items and calls. To clients they are opaque, but they expect the prefix of their own format.

use super::AnswerContext;

/// Prefixes that the formats put before ids of answers.
const PREFIXES: [&str; 3] = ["chatcmpl-", "msg_", "resp_"];

/// Shorter ids recur: Ollama's are one of a thousand. Clients take answers with the same id for one answer.
const LEAST_LEN: usize = 16;

/// The provider's id with the prefix of the client's format; the gateway's own id if the provider gave no unique one.
pub(crate) fn answer(prefix: &str, id: &str, context: &AnswerContext) -> String {
    let bare = PREFIXES.iter().find_map(|known| id.strip_prefix(known)).unwrap_or(id);
    format!("{prefix}{}", if bare.len() < LEAST_LEN { &context.id } else { bare })
}

/// An id for the item at `index` of an answer.
pub(crate) fn item(prefix: &str, index: usize, context: &AnswerContext) -> String {
    format!("{prefix}{}_{index}", context.id)
}
