//! Tokens and money.

use std::ops::AddAssign;

/// Tokens of one request, as the provider reported them. `None` means: not reported.
///
/// Source of the meanings: OpenTelemetry GenAI conventions, `gen_ai.usage.*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens, cached ones included (for Anthropic: `input_tokens` + cache reads + cache writes).
    pub prompt: Option<u64>,
    /// All output tokens, reasoning included.
    pub completion: Option<u64>,
    /// The part of `prompt` that was read from the provider's cache.
    pub cached: Option<u64>,
    /// The part of `prompt` that was written to the provider's cache.
    pub cache_write: Option<u64>,
    /// The part of `completion` that was reasoning.
    pub reasoning: Option<u64>,
}

impl Usage {
    /// Whether the provider reported any usage.
    pub fn is_known(&self) -> bool {
        self.prompt.is_some() || self.completion.is_some()
    }

    /// Prompt plus completion: the amount charged to a tokens-per-minute limit.
    pub fn total(&self) -> u64 {
        self.prompt.unwrap_or(0).saturating_add(self.completion.unwrap_or(0))
    }

    /// Takes every field that `later` knows; the last value of each field wins.
    pub fn merge(&mut self, later: &Usage) {
        self.prompt = later.prompt.or(self.prompt);
        self.completion = later.completion.or(self.completion);
        self.cached = later.cached.or(self.cached);
        self.cache_write = later.cache_write.or(self.cache_write);
        self.reasoning = later.reasoning.or(self.reasoning);
    }
}

/// Field by field; a field that neither knows stays unknown.
impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        self.prompt = sum(self.prompt, other.prompt);
        self.completion = sum(self.completion, other.completion);
        self.cached = sum(self.cached, other.cached);
        self.cache_write = sum(self.cache_write, other.cache_write);
        self.reasoning = sum(self.reasoning, other.reasoning);
    }
}

/// Prices in USD per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Price {
    pub input: Option<f64>,
    pub output: Option<f64>,
    /// Of input tokens read from the provider's cache; `None`: as any input token.
    pub cached_input: Option<f64>,
    /// Of input tokens written to the provider's cache; `None`: as any input token.
    pub cache_write: Option<f64>,
}

impl Price {
    /// Whether anything has a price.
    pub fn is_set(&self) -> bool {
        [self.input, self.output, self.cached_input, self.cache_write].iter().any(Option::is_some)
    }

    /// The cost of `usage`; a part without a price or a count is zero.
    pub fn cost(&self, usage: &Usage) -> Cost {
        #[expect(clippy::cast_precision_loss, reason = "token counts stay far below 2^53")]
        let part = |tokens: u64, price: Option<f64>| tokens as f64 * price.unwrap_or(0.0) / 1_000_000.0;
        let prompt = usage.prompt.unwrap_or(0);
        // Both are parts of the prompt, whatever a provider says.
        let cached = usage.cached.unwrap_or(0).min(prompt);
        let cache_write = usage.cache_write.unwrap_or(0).min(prompt - cached);
        let prompt = if self.cached_input.is_none() && self.cache_write.is_none() {
            part(prompt, self.input)
        } else {
            part(prompt - cached - cache_write, self.input)
                + part(cached, self.cached_input.or(self.input))
                + part(cache_write, self.cache_write.or(self.input))
        };
        Cost { prompt, completion: part(usage.completion.unwrap_or(0), self.output) }
    }
}

/// The cost of a request, in USD.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    pub prompt: f64,
    pub completion: f64,
}

impl Cost {
    pub fn total(&self) -> f64 {
        self.prompt + self.completion
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.completion += other.completion;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_known_value_of_each_field_wins() {
        let mut usage = Usage { prompt: Some(10), completion: Some(1), ..Usage::default() };
        usage.merge(&Usage { completion: Some(7), reasoning: Some(2), ..Usage::default() });
        assert_eq!(
            usage,
            Usage { prompt: Some(10), completion: Some(7), reasoning: Some(2), ..Usage::default() }
        );
        assert_eq!(usage.total(), 17);
    }

    #[test]
    fn what_only_one_of_two_says_is_known_of_both() {
        let mut usage = Usage { prompt: Some(10), completion: Some(1), ..Usage::default() };
        usage += Usage { completion: Some(7), reasoning: Some(2), ..Usage::default() };
        assert_eq!(
            usage,
            Usage { prompt: Some(10), completion: Some(8), reasoning: Some(2), ..Usage::default() }
        );
    }

    #[test]
    fn only_what_has_a_price_costs() {
        let usage = Usage { prompt: Some(2_000_000), completion: Some(500_000), ..Usage::default() };
        let price = Price { input: Some(1.5), ..Price::default() };
        assert_eq!(price.cost(&usage), Cost { prompt: 3.0, completion: 0.0 });
        assert_eq!(price.cost(&Usage::default()).total(), 0.0);
    }

    #[test]
    fn what_a_cache_saves_is_not_charged() {
        let million = |tokens: u64| Some(tokens * 1_000_000);
        let usage =
            Usage { prompt: million(10), cached: million(6), cache_write: million(1), ..Usage::default() };
        let input = Price { input: Some(2.0), ..Price::default() };
        assert_eq!(input.cost(&usage).prompt, 20.0, "without prices of their own they cost the same");
        let read = Price { cached_input: Some(0.5), ..input };
        assert_eq!(read.cost(&usage).prompt, 4.0 * 2.0 + 6.0 * 0.5);
        let both = Price { cache_write: Some(3.0), ..read };
        assert_eq!(both.cost(&usage).prompt, 3.0 * 2.0 + 6.0 * 0.5 + 3.0);
        // More than there was: the whole prompt at most.
        let odd = Usage { cached: million(12), ..usage };
        assert_eq!(both.cost(&odd).prompt, 10.0 * 0.5);
    }
}
