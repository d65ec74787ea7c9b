//! Answers of `POST /embeddings`. Requests and answers have one format only (OpenAI's), so they always pass through.

use super::answer::{NotAnAnswer, Observed};
use super::lenient::{Array, Items, json_object, read_json};
use super::usage::ChatUsage;
use crate::domain::usage::Usage;

json_object! {
    struct Answer {
        data: Array<Items> = "data",
        usage: ChatUsage = "usage",
    }
}

/// Reads the usage of a whole answer. Embeddings have no output tokens, so a total alone is the prompt's count.
pub(super) fn observe(body: &[u8]) -> Result<Observed, NotAnAnswer> {
    let answer: Answer = read_json(body).map_err(|_| NotAnAnswer)?;
    answer.data.0.ok_or(NotAnAnswer)?;
    let prompt = answer.usage.prompt_tokens.0.or(answer.usage.total_tokens.0);
    Ok(Observed { usage: Usage { prompt, ..Usage::default() }, ..Observed::default() })
}
