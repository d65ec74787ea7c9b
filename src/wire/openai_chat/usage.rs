//! `usage`.

use serde_json::{Value, json};

use crate::domain::usage::Usage;
use crate::wire::usage::{ChatUsage, read};

/// Reads a provider's usage, with the fields that OpenAI-compatible providers add.
pub(crate) fn decode(usage: &Value) -> Usage {
    read::<ChatUsage>(usage).usage()
}

/// Writes it; an unreported count is left out where the format allows, and 0 otherwise.
pub(crate) fn encode(usage: &Usage) -> Value {
    let mut written = json!({
        "prompt_tokens": usage.prompt.unwrap_or(0),
        "completion_tokens": usage.completion.unwrap_or(0),
        "total_tokens": usage.total(),
    });
    let mut prompt = json!({"cached_tokens": usage.cached.unwrap_or(0)});
    if let Some(tokens) = usage.cache_write {
        prompt["cache_write_tokens"] = tokens.into();
    }
    written["prompt_tokens_details"] = prompt;
    written["completion_tokens_details"] = json!({"reasoning_tokens": usage.reasoning.unwrap_or(0)});
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_count_in_their_own_ways() {
        let xai = json!({
            "prompt_tokens": 307, "completion_tokens": 26, "total_tokens": 560,
            "prompt_tokens_details": {"cached_tokens": 306}, "completion_tokens_details": {"reasoning_tokens": 227},
        });
        let usage = decode(&xai);
        assert_eq!((usage.prompt, usage.completion, usage.reasoning), (Some(307), Some(253), Some(227)));
        assert_eq!(decode(&encode(&usage)), usage, "all output tokens, as everywhere in the gateway");
        let proxy = json!({"prompt_tokens": 9.0, "completion_tokens": 5, "cache_creation_input_tokens": 4});
        assert_eq!((decode(&proxy).prompt, decode(&proxy).cache_write), (Some(9), Some(4)));
        let deepseek = json!({"prompt_tokens": 339, "completion_tokens": 83, "prompt_cache_hit_tokens": 320});
        assert_eq!(decode(&deepseek).cached, Some(320));
        assert_eq!(decode(&json!({"prompt_tokens": "many"})), Usage::default());
        assert_eq!(decode(&Value::Null), Usage::default());
    }
}
