//! Turns of a conversation and their parts.

use serde_json::Value;

/// The speaker of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The operator's instructions.
    System,
    /// OpenAI's later name for the operator's instructions; formats that do not know it say `system`.
    Developer,
    User,
    Assistant,
    /// Results of tool calls: a turn of its own in the OpenAI formats, part of the user's turn in Anthropic's.
    Tool,
}

/// One turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub role: Role,
    /// In their original order. A turn of [`Role::Tool`] holds only [`Part::ToolResult`] and [`Part::CachePoint`].
    pub parts: Vec<Part>,
    /// Chat Completions' participant name.
    pub name: Option<String>,
}

impl Message {
    /// A turn without a participant name.
    pub fn new(role: Role, parts: Vec<Part>) -> Self {
        Self { role, parts, name: None }
    }
}

/// A piece of a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    Text(String),
    /// The model's explanation of why it will not answer.
    Refusal(String),
    Reasoning(Reasoning),
    Image(Image),
    File(Upload),
    /// Base64 audio and its format (`wav`, `mp3`).
    Audio {
        data: String,
        format: String,
    },
    ToolCall(ToolCall),
    ToolResult(ToolResult),
    /// Not content: tells the provider to cache the conversation up to here, and how (Anthropic's `cache_control`).
    CachePoint(Value),
}

/// The model's reasoning before its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reasoning {
    /// May be empty: redacted or not shown.
    pub text: String,
    /// Lets the provider that issued the reasoning recognise it on the next turn; `None`: it needs none (chat providers
    /// that send `reasoning_content`).
    pub seal: Option<Seal>,
}

/// A provider's opaque proof that a piece of reasoning is its own. Only its issuer accepts it, so the variant names the
/// issuer, and a writer for another provider drops the piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seal {
    /// `signature` of Anthropic's `thinking` block; the text must come back unchanged beside it.
    Anthropic { signature: String },
    /// `data` of Anthropic's `redacted_thinking` block.
    AnthropicRedacted { data: String },
    /// Id and `encrypted_content` of a Responses `reasoning` item; without the latter it works only for responses that
    /// OpenAI stored.
    OpenAi { id: String, encrypted: Option<String> },
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub source: Media,
    /// OpenAI's `detail` (`auto`, `low`, `high`, `original`).
    pub detail: Option<String>,
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub source: Media,
    /// File name or title.
    pub name: Option<String>,
}

/// The source of an image's or a document's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    Url(String),
    /// Standard base64, with its media type.
    Inline {
        media_type: String,
        data: String,
    },
    /// Id of a file uploaded to the provider.
    Id(String),
}

/// How a tool takes its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolKind {
    /// A JSON object that follows a schema.
    Function,
    /// Free text (OpenAI's custom tools).
    Custom,
}

/// The model asks for a tool to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Ties the result to the call.
    pub id: String,
    pub name: String,
    /// As the model wrote it: JSON text for a function (not always valid), free text for a custom tool.
    pub arguments: String,
    pub kind: ToolKind,
}

/// The result of a tool call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolResult {
    pub call_id: String,
    /// Texts, images and files.
    pub content: Vec<Part>,
    /// Whether the tool failed. Only Anthropic's format has a word for it.
    pub is_error: bool,
}
