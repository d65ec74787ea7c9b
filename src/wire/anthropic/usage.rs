//! `usage`, in which `input_tokens` excludes tokens read from or written to the cache.

use serde_json::{Value, json};

use crate::domain::usage::Usage;
use crate::wire::usage::{AnthropicUsage, read};

/// Reads a provider's usage from one piece.
pub(crate) fn decode(usage: &Value) -> Usage {
    read::<AnthropicUsage>(usage).usage()
}

/// Writes it; token counts are required here, so an unreported count is 0.
pub(crate) fn encode(usage: &Usage) -> Value {
    let (read, write) = (usage.cached.unwrap_or(0), usage.cache_write.unwrap_or(0));
    let mut written = json!({
        "input_tokens": usage.prompt.unwrap_or(0).saturating_sub(read).saturating_sub(write),
        "cache_creation_input_tokens": write,
        "cache_read_input_tokens": read,
        "output_tokens": usage.completion.unwrap_or(0),
    });
    if let Some(tokens) = usage.reasoning {
        written["output_tokens_details"] = json!({"thinking_tokens": tokens});
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_all_input() {
        let usage = decode(&json!({
            "input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 1, "output_tokens": 5,
        }));
        assert_eq!(usage.prompt, Some(111));
        assert_eq!(decode(&encode(&usage)), usage);
    }
}
