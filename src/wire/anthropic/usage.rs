//! `usage`, in which `input_tokens` are only those that were neither read from nor written to the cache.

use serde_json::{Value, json};

use crate::domain::usage::Usage;
use crate::wire::convert::fields::count;

/// The fields as written. A stream reports them in pieces and repeats only some, so they are kept apart until they are read:
/// the sum needs the last value of each.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reported {
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    output: Option<u64>,
    thinking: Option<u64>,
}

impl Reported {
    /// Takes every field that `usage` has.
    pub(crate) fn merge(&mut self, usage: &Value) {
        let field = |path: &str| usage.pointer(path).and_then(count);
        for (mine, path) in [
            (&mut self.input, "/input_tokens"),
            (&mut self.cache_read, "/cache_read_input_tokens"),
            (&mut self.cache_write, "/cache_creation_input_tokens"),
            (&mut self.output, "/output_tokens"),
            (&mut self.thinking, "/output_tokens_details/thinking_tokens"),
        ] {
            *mine = field(path).or(*mine);
        }
    }

    /// In the gateway's terms: the prompt is all input tokens, cached or not.
    pub(crate) fn usage(&self) -> Usage {
        let cached = self.cache_read.unwrap_or(0).saturating_add(self.cache_write.unwrap_or(0));
        Usage {
            prompt: self.input.map(|tokens| tokens.saturating_add(cached)),
            completion: self.output,
            cached: self.cache_read,
            cache_write: self.cache_write,
            reasoning: self.thinking,
        }
    }
}

/// Reads what a provider reported in one piece.
pub(crate) fn decode(usage: &Value) -> Usage {
    let mut reported = Reported::default();
    reported.merge(usage);
    reported.usage()
}

/// Writes it; the counts of tokens are required here, so what was not reported is 0.
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

    #[test]
    fn the_last_value_of_each_field_wins() {
        let mut reported = Reported::default();
        reported.merge(&json!({"input_tokens": 43, "cache_read_input_tokens": 7, "output_tokens": 1}));
        reported.merge(&json!({"input_tokens": 61, "output_tokens": 2}));
        assert_eq!((reported.usage().prompt, reported.usage().completion), (Some(68), Some(2)));
    }
}
