//! A client's request to a model.

use std::collections::BTreeMap;

use serde_json::Value;

use super::message::Message;

/// A request, without the model's name and the `stream` flag: these belong to the attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatRequest {
    pub messages: Vec<Message>,
    pub tools: Vec<ToolDef>,
    pub tool_choice: Option<ToolChoice>,
    /// Whether the model may call several tools in one turn; `None`: the format's default, which is yes everywhere.
    pub parallel_tool_calls: Option<bool>,
    /// Most tokens to generate, reasoning included.
    pub max_tokens: Option<u64>,
    /// 0 to 2 in the OpenAI formats, 0 to 1 in Anthropic's.
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub seed: Option<i64>,
    /// Texts at which to stop.
    pub stop: Vec<String>,
    pub format: Option<OutputFormat>,
    /// OpenAI's `low`, `medium`, `high`.
    pub verbosity: Option<String>,
    /// `None`: the client said nothing about reasoning.
    pub reasoning: Option<ReasoningConfig>,
    /// Opaque id of the end user.
    pub user: Option<String>,
    /// As its format writes it.
    pub service_tier: Option<String>,
    /// Fields that both OpenAI formats have, under one name and with one meaning, and Anthropic's has not
    /// (`metadata`, `store`, `prompt_cache_key`, …).
    pub openai: BTreeMap<String, Value>,
}

/// A tool that the client will run.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolDef {
    Function {
        name: String,
        description: Option<String>,
        /// JSON schema of the arguments; `None`: takes none.
        parameters: Option<Value>,
        /// Whether the arguments must follow the schema exactly; `None`: the format's default.
        strict: Option<bool>,
    },
    /// Takes free text; `format` is OpenAI's grammar object, nested as the Responses format nests it.
    Custom { name: String, description: Option<String>, format: Option<Value> },
}

impl ToolDef {
    /// The name by which the model calls it.
    pub fn name(&self) -> &str {
        match self {
            Self::Function { name, .. } | Self::Custom { name, .. } => name,
        }
    }
}

/// The tools that the model must, may or may not call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    Auto,
    None,
    /// At least one, of any name.
    Required,
    /// This one.
    Named(String),
    /// As `Auto` or, if `required`, as `Required`, but only of these.
    Allowed {
        required: bool,
        names: Vec<String>,
    },
}

/// The required form of the answer.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputFormat {
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that follows `schema`.
    JsonSchema {
        /// OpenAI's name of the schema.
        name: Option<String>,
        description: Option<String>,
        schema: Value,
        /// `None`: the format's default.
        strict: Option<bool>,
    },
}

/// How much the model should think, and whether the client wants to read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReasoningConfig {
    /// `None`: the model decides.
    pub effort: Option<Effort>,
    /// Anthropic's budget for thinking, in tokens.
    pub budget_tokens: Option<u64>,
    /// Whether the client wants to read the reasoning; `None`: its format cannot say.
    pub visible: Option<bool>,
}

/// Words for how hard to think, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// Not at all.
    Off,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
    Max,
}

impl Effort {
    /// Every effort with OpenAI's word for it.
    pub const ALL: &'static [Self] =
        &[Self::Off, Self::Minimal, Self::Low, Self::Medium, Self::High, Self::XHigh, Self::Max];

    /// OpenAI's word (`reasoning_effort`); Anthropic's are the same from `low` on.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::XHigh => "xhigh",
            Self::Max => "max",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|effort| effort.as_str() == text)
    }

    /// The thinking budget in tokens that stands for this effort where a model wants a number.
    ///
    /// The numbers for low, medium and high are the ones that Google documents for the same translation in its
    /// OpenAI-compatible endpoint; above 32k Anthropic reports diminishing returns. 1,024 is Anthropic's minimum.
    pub const fn budget_tokens(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::Minimal | Self::Low => 1_024,
            Self::Medium => 8_192,
            Self::High => 24_576,
            Self::XHigh | Self::Max => 32_768,
        }
    }

    /// The effort that a thinking budget comes nearest to.
    pub const fn from_budget(tokens: u64) -> Self {
        match tokens {
            0..4_096 => Self::Low,
            4_096..16_384 => Self::Medium,
            _ => Self::High,
        }
    }
}
