//! Parameters that not every OpenAI model takes, derived from the model's name.

use crate::domain::chat::Effort;

/// The part of a remote id that names the model: behind a vendor's or region's prefix (`openai/gpt-5`).
fn base(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

/// Whether `model` is an OpenAI model of the o-series, or GPT from 5 on. These refuse `max_tokens` and want
/// `max_completion_tokens`; most other providers know only the former. Source:
/// <https://platform.openai.com/docs/api-reference/chat/create#chat-create-max_tokens>.
pub(crate) fn wants_max_completion_tokens(model: &str) -> bool {
    let model = base(model);
    if let Some(rest) = model.strip_prefix('o') {
        return rest.starts_with(|c: char| c.is_ascii_digit());
    }
    gpt_generation(model).is_some_and(|generation| generation >= 5)
}

/// Whether `model` is one of OpenAI's that only OpenAI and Azure run, wherever it is offered.
pub(crate) fn is_openai(model: &str) -> bool {
    wants_max_completion_tokens(model) || refuses_reasoning(model)
}

/// Whether `model` is an OpenAI model that cannot reason and refuses an effort (`Unrecognized request argument
/// supplied: reasoning_effort`).
pub(crate) fn refuses_reasoning(model: &str) -> bool {
    let model = base(model);
    model.starts_with("chatgpt-4")
        || model.starts_with("gpt-5-chat")
        || gpt_generation(model).is_some_and(|generation| generation < 5)
}

/// Whether `model` is an OpenAI model that can reason. One model of GPT 5 cannot.
fn reasons(model: &str) -> bool {
    wants_max_completion_tokens(model) && !refuses_reasoning(model)
}

/// Whether `model` reasons unless it is told not to: from GPT 5.1 on models do not, and from 5.5 on they do again.
pub(crate) fn reasons_unasked(model: &str) -> bool {
    let version = gpt_version(base(model)).unwrap_or_default();
    let waits_to_be_told = ((5, 1)..(5, 5)).contains(&version) && !is_special(base(model));
    reasons(model) && !waits_to_be_told
}

/// Whether a model that is told to think with `effort` takes `temperature` and `top_p`: not while it reasons.
/// Source: <https://platform.openai.com/docs/guides/reasoning#limitations>.
pub(crate) fn takes_sampling(model: &str, effort: Option<Effort>) -> bool {
    if !reasons(model) {
        return true;
    }
    let knows_not_to_reason = self::effort(Effort::Off, model).is_some();
    knows_not_to_reason && effort.map_or(!reasons_unasked(model), |effort| effort == Effort::Off)
}

/// Whether `model` takes penalties: no model that can reason does.
pub(crate) fn takes_penalties(model: &str) -> bool {
    !reasons(model)
}

/// Whether a model that is told to think with `effort` takes `stop`. Models that can reason take it only while they do not,
/// and only GPT 5.5 and newer, and the small ones of 5.4. Users have found that out, not all of them the same:
/// <https://github.com/BerriAI/litellm/pull/28650>, <https://github.com/plmbr/notebook-intelligence/pull/414>.
pub(crate) fn takes_stops(model: &str, effort: Option<Effort>) -> bool {
    let name = base(model);
    let version = gpt_version(name).unwrap_or_default();
    let knows = version >= (5, 5) || (version == (5, 4) && (is(name, "mini") || is(name, "nano")));
    !reasons(model) || (knows && takes_sampling(model, effort))
}

/// Whether OpenAI's Chat Completions refuse `parallel_tool_calls` for `model`: the o-series.
pub(crate) fn refuses_parallel_calls(model: &str) -> bool {
    reasons(model) && gpt_version(base(model)).is_none()
}

/// Whether OpenAI's Chat Completions refuse to let `model` reason when there are functions to call: GPT from 5.4 on.
/// Source: <https://github.com/openai/openai-openapi/issues/541>.
pub(crate) fn refuses_reasoning_with_functions(model: &str) -> bool {
    gpt_version(base(model)).is_some_and(|version| version >= (5, 4)) && reasons(model)
}

/// Whether the model always reasons: Codex, pro, from GPT 5.1 on the chat models, and two families of GPT 6.
fn is_special(name: &str) -> bool {
    let always = |kind| is(name, kind);
    ["codex", "pro", "chat", "astra"].into_iter().any(always)
        || (is(name, "sol") && gpt_version(name) >= Some((6, 1)))
}

fn is(name: &str, kind: &str) -> bool {
    name.split('-').any(|word| word == kind)
}

/// The effort to send to a model for `effort`; `None` if it has no word for not reasoning, or should get none. The
/// words came with the models: `minimal` with GPT 5 alone, `none` with GPT 5.1 (not for models that always reason),
/// `xhigh` with GPT 5.1 Codex Max and 5.2, `max` with 5.6 (not in Chat Completions). GPT 5 pro knows only `high`, later
/// ones `medium` and more, chat models only what they do anyway. Other providers know `low`, `medium` and `high`; their
/// servers treat `none` differently, but the ones that can switch reasoning off know that word. Source:
/// <https://platform.openai.com/docs/api-reference/chat/create#chat-create-reasoning_effort>.
pub(crate) fn effort(effort: Effort, model: &str) -> Option<Effort> {
    let name = base(model);
    let version = gpt_version(name);
    let special = is_special(name);
    match effort {
        _ if is(name, "chat") && is_openai(model) => None,
        effort if effort != Effort::Off && version == Some((5, 0)) && is(name, "pro") => Some(Effort::High),
        Effort::Minimal | Effort::Low if is(name, "pro") && version > Some((5, 0)) => Some(Effort::Medium),
        Effort::Minimal if version == Some((5, 0)) && !special => Some(Effort::Minimal),
        Effort::Minimal => Some(Effort::Low),
        // It always reasons.
        Effort::Off if name.contains("gpt-oss") => None,
        Effort::Off if !is_openai(model) => Some(Effort::Off),
        Effort::Off => {
            let knows = version.is_some_and(|version| version >= (5, 1));
            (knows && !special).then_some(Effort::Off)
        }
        Effort::Max if version >= Some((5, 6)) => Some(Effort::Max),
        Effort::XHigh | Effort::Max => {
            let knows = version.is_some_and(|version| version >= (5, 2)) || name.contains("codex-max");
            Some(if knows { Effort::XHigh } else { Effort::High })
        }
        effort => Some(effort),
    }
}

/// Whether `model` is one whose providers want its reasoning back, as `reasoning_content`, on the next turn. Others
/// refuse the field (Groq, Cerebras, Mistral).
pub(crate) fn takes_thoughts_back(model: &str) -> bool {
    const FAMILIES: [&str; 7] = ["deepseek", "kimi", "glm", "qwen", "minimax", "mimo", "step-"];
    let model = base(model).to_ascii_lowercase();
    FAMILIES.iter().any(|family| model.contains(family))
}

/// Whether `model` wants the signatures of its calls back. Other providers refuse the field.
pub(crate) fn signs_calls(model: &str) -> bool {
    base(model).to_ascii_lowercase().contains("gemini")
}

/// 4 for `gpt-4.1-mini`, 5 for `gpt-5.2-codex`; `None` for `gpt-oss-120b`.
fn gpt_generation(model: &str) -> Option<u32> {
    gpt_version(model).map(|(major, _)| major)
}

/// 4.1 for `gpt-4.1-mini`, 5.0 for `gpt-5`, 3.5 for `gpt-35-turbo`, as Azure calls it.
fn gpt_version(model: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok().map(|number: u32| (number, end))
    };
    let rest = model.strip_prefix("gpt-")?;
    let (major, end) = number(rest)?;
    if major == 35 {
        return Some((3, 5));
    }
    let minor = rest[end..].strip_prefix('.').and_then(number).map_or(0, |(minor, _)| minor);
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_is_taken() {
        for model in
            ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "gpt-5.2-codex", "openai/gpt-6", "gpt-10"]
        {
            assert!(wants_max_completion_tokens(model), "{model}");
            assert!(!refuses_reasoning(model), "{model}");
        }
        for model in
            ["gpt-4o", "gpt-4.1-nano-2025-04-14", "gpt-3.5-turbo", "gpt-35-turbo", "chatgpt-4o-latest"]
        {
            assert!(!wants_max_completion_tokens(model), "{model}");
            assert!(refuses_reasoning(model), "{model}");
        }
        for model in ["gpt-oss-120b", "deepseek-reasoner", "llama3.1:8b", "olmo-2", "mistral-large", ""] {
            assert!(!wants_max_completion_tokens(model), "{model}");
            assert!(!refuses_reasoning(model), "{model}");
        }
        assert!(refuses_reasoning("gpt-5-chat-latest"));
    }

    #[test]
    fn models_that_reason_take_no_sampling() {
        for (model, effort, taken) in [
            ("gpt-4.1", None, true),
            ("gpt-5-chat-latest", None, true),
            ("llama3.1:8b", Some(Effort::High), true),
            ("o3", None, false),
            ("gpt-5-mini", None, false),
            ("gpt-5.1", None, true),
            ("gpt-5.2", Some(Effort::Off), true),
            ("gpt-5.2", Some(Effort::Low), false),
            ("gpt-5.1-codex", None, false),
            ("gpt-5.2-pro", None, false),
            ("gpt-5.6", None, false),
            ("gpt-5.2-chat-latest", None, false),
            ("gpt-5.5", None, false),
            ("openai/gpt-5.6", Some(Effort::Off), true),
        ] {
            assert_eq!(takes_sampling(model, effort), taken, "{model} {effort:?}");
        }
    }

    #[test]
    fn who_refuses_what_in_chat_completions() {
        for (model, parallel_calls, reasoning_with_functions) in [
            ("o1", true, false),
            ("openai/o3-mini", true, false),
            ("gpt-5", false, false),
            ("gpt-5.2", false, false),
            ("gpt-5.4-mini", false, true),
            ("gpt-6", false, true),
            ("openai/gpt-5.6", false, true),
            ("gpt-4.1", false, false),
            ("olmo-2", false, false),
        ] {
            assert_eq!(refuses_parallel_calls(model), parallel_calls, "{model}");
            assert_eq!(refuses_reasoning_with_functions(model), reasoning_with_functions, "{model}");
        }
    }

    #[test]
    fn models_that_can_reason_take_few_stops_and_no_penalties() {
        for (model, effort, stops, penalties) in [
            ("gpt-4.1", None, true, true),
            ("gpt-5-chat-latest", None, true, true),
            ("gpt-oss-120b", Some(Effort::High), true, true),
            ("o4-mini", None, false, false),
            ("gpt-5", None, false, false),
            ("gpt-5.1", None, false, false),
            ("gpt-5.2", Some(Effort::Off), false, false),
            ("gpt-5.4", None, false, false),
            ("gpt-5.4-mini", None, true, false),
            ("gpt-5.4-mini", Some(Effort::Low), false, false),
            ("openai/gpt-5.5", None, false, false),
            ("openai/gpt-5.5", Some(Effort::Off), true, false),
            ("gpt-5.6", None, false, false),
            ("gpt-5.6", Some(Effort::Off), true, false),
        ] {
            assert_eq!(takes_stops(model, effort), stops, "{model} {effort:?}");
            assert_eq!(takes_penalties(model), penalties, "{model}");
        }
    }

    #[test]
    fn models_know_the_words_of_their_time() {
        use Effort::{High, Low, Max, Medium, Minimal, Off, XHigh};
        for (model, wanted, told) in [
            ("gpt-5", Off, None),
            ("gpt-5", Max, Some(High)),
            ("o3-mini", Off, None),
            ("o3-mini", XHigh, Some(High)),
            ("gpt-5.1", Off, Some(Off)),
            ("gpt-5.1-codex", Off, None),
            ("gpt-5.1-codex-max", Max, Some(XHigh)),
            ("openai/gpt-5.2", Max, Some(XHigh)),
            ("gpt-5.2-pro", Off, None),
            ("gpt-5.2-pro", Low, Some(Medium)),
            ("gpt-5.4-pro", Minimal, Some(Medium)),
            ("o3-pro", Low, Some(Low)),
            ("gpt-6-astra", Off, None),
            ("gpt-6-sol", Off, Some(Off)),
            ("gpt-6.1-sol", Off, None),
            ("gpt-5.2-chat-latest", Low, None),
            ("gpt-5.5", Max, Some(XHigh)),
            ("gpt-5.6-luna", Max, Some(Max)),
            ("gpt-10", XHigh, Some(XHigh)),
            ("gpt-5", Low, Some(Low)),
            ("gpt-5-pro", Low, Some(High)),
            ("gpt-5-pro", Off, None),
            ("gpt-5-mini", Minimal, Some(Minimal)),
            ("gpt-5.1", Minimal, Some(Low)),
            ("o3-mini", Minimal, Some(Low)),
            ("llama3.1:8b", Minimal, Some(Low)),
            ("llama3.1:8b", Off, Some(Off)),
            ("gpt-oss-120b", Max, Some(High)),
            ("openai/gpt-oss-120b", Off, None),
        ] {
            assert_eq!(effort(wanted, model), told, "{model} {wanted:?}");
        }
    }
}
