//! `usage`.

use serde_json::{Value, json};

use crate::domain::usage::Usage;
use crate::wire::usage::{ResponsesUsage, read};

/// Reads a provider's usage.
pub(crate) fn decode(usage: &Value) -> Usage {
    read::<ResponsesUsage>(usage).usage()
}

/// Writes it. All fields are required here, so an unreported count is 0; without any usage it is `null`.
pub(crate) fn encode(usage: &Usage) -> Value {
    if !usage.is_known() {
        return Value::Null;
    }
    json!({
        "input_tokens": usage.prompt.unwrap_or(0),
        "input_tokens_details": {
            "cached_tokens": usage.cached.unwrap_or(0),
            "cache_write_tokens": usage.cache_write.unwrap_or(0),
        },
        "output_tokens": usage.completion.unwrap_or(0),
        "output_tokens_details": {"reasoning_tokens": usage.reasoning.unwrap_or(0)},
        "total_tokens": usage.total(),
    })
}
