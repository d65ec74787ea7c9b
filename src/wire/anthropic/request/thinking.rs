//! `thinking` and `output_config.effort`.

use serde_json::{Value, json};

use crate::domain::chat::{ChatRequest, Effort, Message, Part, ReasoningConfig, Role, Seal, ToolChoice};
use crate::wire::anthropic::models::Traits;
use crate::wire::convert::dropped::Dropped;
use crate::wire::convert::error::ConvertError;
use crate::wire::convert::fields::Fields;

/// Anthropic refuses smaller budgets.
const MIN_BUDGET: u64 = 1_024;

/// Reads the client's reasoning settings; `output_config` is the field of that name, without its `format`.
pub(super) fn decode(
    fields: &mut Fields<'_>,
    output_config: Option<Value>,
    dropped: &mut Dropped,
) -> Result<Option<ReasoningConfig>, ConvertError> {
    let at = fields.at();
    let mut effort = None;
    if let Some(value) = output_config {
        let mut config = Fields::new(value, at.key("output_config"))?;
        if let Some(word) = config.str("effort")? {
            effort = Effort::parse(&word);
            if effort.is_none() {
                dropped.add("output_config.effort");
            }
        }
        config.drop_rest(dropped);
    }
    let Some(value) = fields.take("thinking") else {
        return Ok(
            effort.map(|effort| ReasoningConfig { effort: Some(effort), ..ReasoningConfig::default() })
        );
    };
    let mut thinking = Fields::new(value, at.key("thinking"))?;
    let kind = thinking.require_str("type")?;
    let budget_tokens = thinking.u64("budget_tokens")?;
    // Without `display` the text is shown, as it always was before the field existed.
    let visible = Some(thinking.str("display")?.as_deref() != Some("omitted"));
    let config = match kind.as_str() {
        "enabled" => ReasoningConfig { effort, budget_tokens, visible },
        "adaptive" => ReasoningConfig { effort, budget_tokens: None, visible },
        "disabled" | "between_tools" => {
            ReasoningConfig { effort: Some(Effort::Off), ..ReasoningConfig::default() }
        }
        other => return Err(thinking.error("type", format_args!("has the unknown value {other:?}"))),
    };
    thinking.drop_rest(dropped);
    Ok(Some(config))
}

/// The fields of a request that control thinking.
#[derive(Debug, Default)]
pub(super) struct Thinking {
    pub(super) thinking: Option<Value>,
    pub(super) effort: Option<&'static str>,
    /// Tokens that thinking may take; they count towards `max_tokens`.
    pub(super) budget: u64,
}

impl Thinking {
    /// Whether the model will think because this request says so.
    pub(super) fn is_on(&self) -> bool {
        self.thinking.as_ref().is_some_and(|thinking| thinking["type"] != "disabled")
    }
}

/// Writes the reasoning settings in the form that the model described by `traits` takes. `answer`: the tokens to leave for
/// the answer when the client set no limit.
pub(super) fn encode(request: &ChatRequest, traits: Traits, answer: u64, dropped: &mut Dropped) -> Thinking {
    let Some(config) = &request.reasoning else { return Thinking::default() };
    if config.effort == Some(Effort::Off) {
        if !traits.can_stop_thinking {
            dropped.add("reasoning");
        }
        // An older model does not think unless it is told to.
        let off = (traits.adaptive && traits.can_stop_thinking).then(|| json!({"type": "disabled"}));
        return Thinking { thinking: off, ..Thinking::default() };
    }
    if traits.adaptive {
        adaptive(request, config, traits)
    } else {
        budgeted(request, config, traits.max_output.saturating_sub(answer), dropped)
    }
}

fn adaptive(request: &ChatRequest, config: &ReasoningConfig, traits: Traits) -> Thinking {
    let wanted = config.effort.or(config.budget_tokens.map(Effort::from_budget));
    let effort = wanted.map(|effort| match effort {
        Effort::Off | Effort::Minimal | Effort::Low => "low",
        Effort::XHigh | Effort::Max if !traits.high_efforts => "high",
        effort => effort.as_str(),
    });
    // A forced call and thinking exclude each other; the call is the more binding wish. Effort goes with both.
    if forces_a_call(request) {
        return Thinking { thinking: None, effort, budget: 0 };
    }
    // A model that decides for itself thinks as for `high`.
    let budget = wanted.unwrap_or(Effort::High).budget_tokens();
    let mut thinking = json!({"type": "adaptive"});
    if let Some(visible) = config.visible.or(Some(true)).filter(|_| traits.display) {
        thinking["display"] = if visible { "summarized" } else { "omitted" }.into();
    }
    Thinking { thinking: Some(thinking), effort, budget }
}

/// `most`: the largest budget without a limit of the client's.
fn budgeted(request: &ChatRequest, config: &ReasoningConfig, most: u64, dropped: &mut Dropped) -> Thinking {
    let wanted = config.budget_tokens.unwrap_or(config.effort.unwrap_or(Effort::Medium).budget_tokens());
    // The budget must leave room for an answer.
    let budget = match request.max_tokens {
        Some(max) => wanted.min(max.saturating_sub(MIN_BUDGET.min(max / 2))),
        None => wanted.min(most),
    };
    if budget < MIN_BUDGET || forces_a_call(request) || in_a_loop_without_thoughts(request) {
        dropped.add("reasoning");
        return Thinking::default();
    }
    let thinking = json!({"type": "enabled", "budget_tokens": budget});
    Thinking { thinking: Some(thinking), effort: None, budget }
}

fn forces_a_call(request: &ChatRequest) -> bool {
    !request.tools.is_empty()
        && matches!(
            request.tool_choice,
            Some(ToolChoice::Required | ToolChoice::Named(_) | ToolChoice::Allowed { required: true, .. })
        )
}

/// Whether the model waits for tool results while its own signed reasoning of that turn is missing, because the
/// client's format lost it. With a budget Anthropic refuses that (`Expected thinking …, but found tool_use`) and
/// recommends switching thinking off.
fn in_a_loop_without_thoughts(request: &ChatRequest) -> bool {
    // Other messages after the results are written into the same turn, or into none.
    let is_turn = |message: &&Message| matches!(message.role, Role::Tool | Role::Assistant);
    let turns = || request.messages.iter().rev().filter(is_turn);
    if turns().next().is_none_or(|last| last.role != Role::Tool) {
        return false;
    }
    let thought = |part: &Part| match part {
        Part::Reasoning(reasoning) => {
            matches!(reasoning.seal, Some(Seal::Anthropic { .. } | Seal::AnthropicRedacted { .. }))
        }
        _ => false,
    };
    turns()
        .find(|message| message.role == Role::Assistant)
        .is_some_and(|turn| !turn.parts.first().is_some_and(thought))
}
