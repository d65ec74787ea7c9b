//! Parameters that not every Claude model takes, derived from the model's name.
//!
//! The Messages format changed with the models: 4.6 brought adaptive thinking, 4.7 took sampling parameters and thinking
//! budgets away (a request that has them is refused with 400). A caller of another format cannot know that, so the writer
//! must. Source: <https://platform.claude.com/docs/en/about-claude/models/migration-guide>,
//! <https://platform.claude.com/docs/en/build-with-claude/adaptive-thinking>,
//! <https://platform.claude.com/docs/en/build-with-claude/structured-outputs>.

/// The parameters that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traits {
    /// `temperature`, `top_p` and `top_k`.
    pub(crate) sampling: bool,
    /// Both `temperature` and `top_p` at once.
    pub(crate) both_temperature_and_top_p: bool,
    /// `thinking: adaptive` with `output_config.effort`, in place of a budget.
    pub(crate) adaptive: bool,
    /// `thinking: disabled`, and forced tool calls: not for models that always think.
    pub(crate) can_stop_thinking: bool,
    /// Efforts above `high`.
    pub(crate) high_efforts: bool,
    /// `thinking.display`.
    pub(crate) display: bool,
    /// `output_config.format` and `strict` tools.
    pub(crate) structured_output: bool,
    /// The most that `max_tokens` may be, of models that can think, where that is less than an effort may ask for.
    pub(crate) max_output: u64,
}

impl Traits {
    /// Of the model called `model`. A Claude of unknown version is treated as a current one; another vendor's model
    /// that speaks this format as one that takes everything but the newest.
    pub(crate) fn of(model: &str) -> Self {
        let model = model.to_ascii_lowercase();
        let Some(at) = model.find("claude") else {
            return Self { structured_output: true, ..Self::older_than_all() };
        };
        let words: Vec<&str> = model[at..].split(['-', '_', '@', ':']).collect();
        let always_thinks = words.iter().any(|word| matches!(*word, "fable" | "mythos"));
        let version = version(&words).unwrap_or(if always_thinks { (5, 0) } else { (4, 8) });
        let is_opus = words.contains(&"opus");
        Self {
            sampling: version < (4, 7),
            both_temperature_and_top_p: version < (4, 1),
            adaptive: version >= (4, 6),
            can_stop_thinking: !always_thinks,
            high_efforts: version >= (4, 7),
            display: version >= (4, 7),
            structured_output: version >= (4, 5) || (version == (4, 1) && is_opus),
            max_output: if is_opus && version < (4, 5) { 32_000 } else { u64::MAX },
        }
    }

    const fn older_than_all() -> Self {
        Self {
            sampling: true,
            both_temperature_and_top_p: true,
            adaptive: false,
            can_stop_thinking: true,
            high_efforts: false,
            display: false,
            structured_output: false,
            max_output: u64::MAX,
        }
    }
}

/// Major and minor version: the first one or two short numbers (`claude-opus-4-7`, `claude-3-5-sonnet-20241022`,
/// `claude-opus-4-20250514`, `claude-2.1`).
fn version(words: &[&str]) -> Option<(u32, u32)> {
    let number = |word: &str| word.parse::<u32>().ok().filter(|number| *number < 100);
    let first = words.iter().position(|word| number(word).is_some() || word.contains('.'))?;
    if let Some((major, minor)) = words[first].split_once('.') {
        return Some((number(major)?, number(minor)?));
    }
    let minor = words.get(first + 1).copied().and_then(number).unwrap_or(0);
    Some((number(words[first])?, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_every_way_of_writing_them() {
        for (model, expected) in [
            ("claude-opus-4-7", Some((4, 7))),
            ("claude-3-5-sonnet-20241022", Some((3, 5))),
            ("claude-3-opus-20240229", Some((3, 0))),
            ("claude-opus-4-20250514", Some((4, 0))),
            ("claude-sonnet-4-5@20250929", Some((4, 5))),
            ("claude-haiku-4-5-20251001-v1:0", Some((4, 5))),
            ("claude-sonnet-5", Some((5, 0))),
            ("claude-haiku-5-5", Some((5, 5))),
            ("claude-sonnet-4.5", Some((4, 5))),
            ("claude-2.1", Some((2, 1))),
            ("claude-mythos-preview", None),
            ("claude-sonnet-latest", None),
        ] {
            let words: Vec<&str> = model.split(['-', '_', '@', ':']).collect();
            assert_eq!(version(&words), expected, "{model}");
        }
    }

    #[test]
    fn the_format_changed_with_the_models() {
        let old = Traits::of("claude-3-5-sonnet-20241022");
        assert!(old.sampling && old.both_temperature_and_top_p && !old.adaptive && !old.structured_output);
        let sonnet = Traits::of("anthropic/claude-sonnet-4-5-20250929");
        assert!(sonnet.sampling && !sonnet.both_temperature_and_top_p && !sonnet.adaptive);
        assert!(sonnet.structured_output);
        let adaptive = Traits::of("us.anthropic.claude-opus-4-6-v1:0");
        assert!(adaptive.sampling && adaptive.adaptive && !adaptive.high_efforts && !adaptive.display);
        let new = Traits::of("claude-opus-4-8");
        assert!(!new.sampling && new.adaptive && new.high_efforts && new.can_stop_thinking);
        assert!(!Traits::of("claude-fable-5-1").can_stop_thinking);
        assert!(Traits::of("claude-latest").adaptive);
        let other = Traits::of("kimi-k2-thinking");
        assert!(other.sampling && !other.adaptive && other.structured_output);
    }
}
