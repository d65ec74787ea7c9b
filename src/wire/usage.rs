//! Token usage as each format writes it, read into [`Usage`]. All usage is read here,
//! so that metrics and clients get the same numbers.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::lenient::{Count, json_object};
use crate::domain::usage::Usage;

/// Reads the usage in an answer that has been parsed already.
pub(crate) fn read<T: DeserializeOwned + Default>(usage: &Value) -> T {
    // Its fields are read from text; that is a dozen at most, once per converted answer.
    serde_json::from_str(&usage.to_string()).unwrap_or_default()
}

json_object! {
    /// `usage` of chat completions and embeddings, with the fields that OpenAI-compatible providers add.
    pub(crate) struct ChatUsage {
        prompt_tokens: Count = "prompt_tokens",
        completion_tokens: Count = "completion_tokens",
        total_tokens: Count = "total_tokens",
        prompt_details: PromptDetails = "prompt_tokens_details",
        completion_details: CompletionDetails = "completion_tokens_details",
        /// DeepSeek.
        prompt_cache_hit_tokens: Count = "prompt_cache_hit_tokens",
        /// Moonshot.
        cached_tokens: Count = "cached_tokens",
        /// Proxies in front of Anthropic keep its name.
        cache_creation_input_tokens: Count = "cache_creation_input_tokens",
    }
}

json_object! {
    pub(crate) struct PromptDetails {
        cached_tokens: Count = "cached_tokens",
        /// OpenRouter.
        cache_write_tokens: Count = "cache_write_tokens",
    }
}

json_object! {
    pub(crate) struct CompletionDetails {
        reasoning_tokens: Count = "reasoning_tokens",
    }
}

impl ChatUsage {
    /// In the gateway's terms.
    pub(crate) fn usage(&self) -> Usage {
        let (prompt, completion) = (&self.prompt_details, &self.completion_details);
        Usage {
            prompt: self.prompt_tokens.0,
            completion: self.completion_with(completion.reasoning_tokens.0),
            cached: prompt.cached_tokens.0.or(self.prompt_cache_hit_tokens.0).or(self.cached_tokens.0),
            cache_write: prompt.cache_write_tokens.0.or(self.cache_creation_input_tokens.0),
            reasoning: completion.reasoning_tokens.0,
        }
    }

    /// All output tokens. OpenAI counts reasoning within `completion_tokens`; xAI counts it beside them, which its
    /// total reveals: prompt + completion + reasoning = total.
    fn completion_with(&self, reasoning: Option<u64>) -> Option<u64> {
        let completion = self.completion_tokens.0?;
        let (Some(prompt), Some(total), Some(reasoning)) =
            (self.prompt_tokens.0, self.total_tokens.0, reasoning)
        else {
            return Some(completion);
        };
        let with_reasoning = completion.saturating_add(reasoning);
        Some(if prompt.checked_add(with_reasoning) == Some(total) { with_reasoning } else { completion })
    }
}

json_object! {
    /// `usage` of the Responses format.
    pub(crate) struct ResponsesUsage {
        input_tokens: Count = "input_tokens",
        output_tokens: Count = "output_tokens",
        input_details: PromptDetails = "input_tokens_details",
        output_details: CompletionDetails = "output_tokens_details",
    }
}

impl ResponsesUsage {
    /// In the gateway's terms.
    pub(crate) fn usage(&self) -> Usage {
        let (input, output) = (&self.input_details, &self.output_details);
        Usage {
            prompt: self.input_tokens.0,
            completion: self.output_tokens.0,
            cached: input.cached_tokens.0,
            cache_write: input.cache_write_tokens.0,
            reasoning: output.reasoning_tokens.0,
        }
    }
}

json_object! {
    /// `usage` of Anthropic Messages, as written: `input_tokens` excludes tokens read from or written to the cache.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct AnthropicUsage {
        input_tokens: Count = "input_tokens",
        cache_read: Count = "cache_read_input_tokens",
        cache_write: Count = "cache_creation_input_tokens",
        output_tokens: Count = "output_tokens",
        output_details: OutputDetails = "output_tokens_details",
    }
}

json_object! {
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct OutputDetails {
        thinking_tokens: Count = "thinking_tokens",
    }
}

impl AnthropicUsage {
    /// Takes every field that `later` knows. Done on the fields as written, because `message_delta` may repeat only some of
    /// those of `message_start`, and the sum needs the last of each.
    pub(crate) fn merge(&mut self, later: &Self) {
        for (mine, theirs) in [
            (&mut self.input_tokens, later.input_tokens),
            (&mut self.cache_read, later.cache_read),
            (&mut self.cache_write, later.cache_write),
            (&mut self.output_tokens, later.output_tokens),
            (&mut self.output_details.thinking_tokens, later.output_details.thinking_tokens),
        ] {
            mine.0 = theirs.0.or(mine.0);
        }
    }

    /// In the gateway's terms: the prompt is all input tokens, cached or not.
    pub(crate) fn usage(&self) -> Usage {
        let part = |count: Count| count.0.unwrap_or(0);
        let cached = part(self.cache_read).saturating_add(part(self.cache_write));
        Usage {
            prompt: self.input_tokens.0.map(|tokens| tokens.saturating_add(cached)),
            completion: self.output_tokens.0,
            cached: self.cache_read.0,
            cache_write: self.cache_write.0,
            reasoning: self.output_details.thinking_tokens.0,
        }
    }
}
