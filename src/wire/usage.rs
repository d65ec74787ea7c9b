//! Token usage as each format writes it, read into [`Usage`]. All usage is read here,
//! so that metrics and clients get the same numbers.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::lenient::{Array, Count, Fold, Raw, json_object};
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
        /// Proxies in front of Anthropic keep its names.
        cache_read_input_tokens: Count = "cache_read_input_tokens",
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
        let prompt = &self.prompt_details;
        let cached = [self.prompt_cache_hit_tokens, self.cached_tokens, self.cache_read_input_tokens];
        let cached = cached.into_iter().fold(prompt.cached_tokens.0, |known, count| known.or(count.0));
        let cache_write = prompt.cache_write_tokens.0.or(self.cache_creation_input_tokens.0);
        let (completion, reasoning) = self.output(cached.is_none() && cache_write.is_none());
        Usage { prompt: self.prompt_tokens.0, completion, cached, cache_write, reasoning }
    }

    /// All output tokens, and those of reasoning among them. `plain`: nothing is reported but prompt, completion and total.
    ///
    /// OpenAI counts reasoning within `completion_tokens`. xAI counts it beside them, which its total reveals: prompt +
    /// completion + reasoning = total. Gemini does the same, and reports no more than these three.
    fn output(&self, plain: bool) -> (Option<u64>, Option<u64>) {
        let (completion, reasoning) = (self.completion_tokens.0, self.completion_details.reasoning_tokens.0);
        let (Some(prompt), Some(written), Some(total)) =
            (self.prompt_tokens.0, completion, self.total_tokens.0)
        else {
            return (completion, reasoning);
        };
        let beside = total.saturating_sub(prompt.saturating_add(written));
        let is_reasoning = reasoning.map_or(plain, |reasoning| reasoning == beside);
        if beside == 0 || !is_reasoning {
            return (completion, reasoning);
        }
        (Some(written.saturating_add(beside)), Some(beside))
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
        /// The calls of the model that made up the request.
        iterations: Array<Compactions> = "iterations",
    }
}

json_object! {
    pub(crate) struct Iteration<'de> {
        kind: Raw<'de> = "type",
        input_tokens: Count = "input_tokens",
        cache_read: Count = "cache_read_input_tokens",
        cache_write: Count = "cache_creation_input_tokens",
        output_tokens: Count = "output_tokens",
    }
}

/// Tokens of the calls that summed the conversation up, which the counts beside them do not include.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Compactions {
    input: u64,
    cache_read: u64,
    cache_write: u64,
    output: u64,
}

impl<'de> Fold<'de> for Compactions {
    type Item = Iteration<'de>;

    fn add(&mut self, iteration: Iteration<'de>) {
        if iteration.kind.text().as_deref() != Some("compaction") {
            return;
        }
        for (sum, count) in [
            (&mut self.input, iteration.input_tokens),
            (&mut self.cache_read, iteration.cache_read),
            (&mut self.cache_write, iteration.cache_write),
            (&mut self.output, iteration.output_tokens),
        ] {
            *sum = sum.saturating_add(count.0.unwrap_or(0));
        }
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
        self.iterations.0 = later.iterations.0.or(self.iterations.0);
    }

    /// In the gateway's terms: the prompt is all input tokens, cached or not.
    pub(crate) fn usage(&self) -> Usage {
        let compactions = self.iterations.0.unwrap_or_default();
        let plus = |count: Count, more: u64| match count.0 {
            Some(tokens) => Some(tokens.saturating_add(more)),
            None => Some(more).filter(|more| *more > 0),
        };
        let (cached, cache_write) =
            (plus(self.cache_read, compactions.cache_read), plus(self.cache_write, compactions.cache_write));
        let of_cache = cached.unwrap_or(0).saturating_add(cache_write.unwrap_or(0));
        Usage {
            prompt: plus(self.input_tokens, compactions.input).map(|tokens| tokens.saturating_add(of_cache)),
            completion: plus(self.output_tokens, compactions.output),
            cached,
            cache_write,
            reasoning: self.output_details.thinking_tokens.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_total_reveals_reasoning_that_is_counted_beside_the_completion() {
        let output = |usage: Value| {
            let usage = read::<ChatUsage>(&usage).usage();
            (usage.completion, usage.reasoning)
        };
        let gemini = json!({"completion_tokens": 3, "prompt_tokens": 9, "total_tokens": 105});
        assert_eq!(output(gemini), (Some(96), Some(93)));
        let xai = json!({
            "prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 19,
            "completion_tokens_details": {"reasoning_tokens": 7},
        });
        assert_eq!(output(xai), (Some(9), Some(7)));
        let openai = json!({
            "prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19,
            "completion_tokens_details": {"reasoning_tokens": 7},
        });
        assert_eq!(output(openai), (Some(9), Some(7)));
        let of_cache = json!({
            "prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 112, "cache_read_input_tokens": 100,
        });
        assert_eq!(output(of_cache), (Some(2), None), "a proxy that adds the cached input to the total");
        let audio = json!({
            "prompt_tokens": 5, "completion_tokens": 24, "total_tokens": 404,
            "prompt_tokens_details": {"cached_tokens": 368}, "prompt_audio_seconds": 24,
        });
        assert_eq!(output(audio), (Some(24), None), "Mistral");
        let less = json!({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 2});
        assert_eq!(output(less), (Some(2), None));
        let unknown = json!({"prompt_tokens": 9, "total_tokens": 105});
        assert_eq!(output(unknown), (None, None), "not finished");
    }

    #[test]
    fn cached_tokens_have_many_names() {
        for usage in [
            json!({"prompt_tokens_details": {"cached_tokens": 5}, "cached_tokens": 9}),
            json!({"prompt_cache_hit_tokens": 5}),
            json!({"cached_tokens": 5}),
            json!({"cache_read_input_tokens": 5}),
        ] {
            assert_eq!(read::<ChatUsage>(&usage).usage().cached, Some(5), "{usage}");
        }
    }

    /// The example of Anthropic's documentation of compaction, with a cache.
    #[test]
    fn compaction_is_paid_for_too() {
        let mut usage: AnthropicUsage = read(&json!({"input_tokens": 23_000, "output_tokens": 1}));
        usage.merge(&read(&json!({
            "output_tokens": 1_000,
            "iterations": [
                {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500, "cache_read_input_tokens": 7},
                {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
            ],
        })));
        let expected = Usage {
            prompt: Some(203_007),
            completion: Some(4_500),
            cached: Some(7),
            cache_write: None,
            reasoning: None,
        };
        assert_eq!(usage.usage(), expected);
        assert_eq!(read::<AnthropicUsage>(&json!({"iterations": 5})).usage(), Usage::default());
    }
}
