//! What OpenAI's model names say about parameters that not every model takes.

/// The part of a remote id that names the model: behind a vendor's or region's prefix (`openai/gpt-5`).
fn base(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

/// Whether the name is that of an OpenAI model that reasons: the o-series, and GPT from 5 on. These refuse `max_tokens` and
/// want `max_completion_tokens`; most other providers know only the former.
/// Source: <https://platform.openai.com/docs/api-reference/chat/create#chat-create-max_tokens>.
pub(crate) fn wants_max_completion_tokens(model: &str) -> bool {
    let model = base(model);
    if let Some(rest) = model.strip_prefix('o') {
        return rest.starts_with(|c: char| c.is_ascii_digit());
    }
    gpt_generation(model).is_some_and(|generation| generation >= 5)
}

/// Whether the name is that of a model that OpenAI itself serves.
pub(crate) fn is_openai(model: &str) -> bool {
    wants_max_completion_tokens(model) || refuses_reasoning(model)
}

/// Whether the name is that of an OpenAI model that cannot reason and refuses to be told how much
/// (`Unrecognized request argument supplied: reasoning_effort`).
pub(crate) fn refuses_reasoning(model: &str) -> bool {
    let model = base(model);
    model.starts_with("chatgpt-4")
        || model.starts_with("gpt-5-chat")
        || gpt_generation(model).is_some_and(|generation| generation < 5)
}

/// 4 of `gpt-4.1-mini`, 5 of `gpt-5.2-codex`; nothing of `gpt-oss-120b`.
fn gpt_generation(model: &str) -> Option<u32> {
    let rest = model.strip_prefix("gpt-")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
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
        for model in ["gpt-4o", "gpt-4.1-nano-2025-04-14", "gpt-3.5-turbo", "chatgpt-4o-latest"] {
            assert!(!wants_max_completion_tokens(model), "{model}");
            assert!(refuses_reasoning(model), "{model}");
        }
        for model in ["gpt-oss-120b", "deepseek-reasoner", "llama3.1:8b", "olmo-2", "mistral-large", ""] {
            assert!(!wants_max_completion_tokens(model), "{model}");
            assert!(!refuses_reasoning(model), "{model}");
        }
        assert!(refuses_reasoning("gpt-5-chat-latest"));
    }
}
