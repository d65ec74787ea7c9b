//! Turns of a conversation and what they are made of.

use serde_json::Value;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The operator's instructions.
    System,
    /// OpenAI's later name for them; formats that do not know it say `system`.
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
    /// In the order in which they were said. A turn of [`Role::Tool`] holds only
    /// [`Part::ToolResult`] and [`Part::CachePoint`].
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
    /// The model's own words for why it will not answer.
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
    /// Says nothing: up to here the provider shall keep the conversation in its cache, and how (Anthropic's `cache_control`).
    CachePoint(Value),
}

/// What the model thought before it spoke.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reasoning {
    /// May be empty: redacted or not shown.
    pub text: String,
    /// What lets the provider that thought it recognise it on the next turn; `None`: it needs nothing (chat providers that
    /// send `reasoning_content`).
    pub seal: Option<Seal>,
}

/// A provider's opaque proof that a piece of reasoning is its own. Only the provider that issued it accepts it, so the kind
/// says whose it is, and a writer for another provider drops the piece.
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

/// Where the bytes of an image or a document are.
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

/// What a tool said.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolResult {
    pub call_id: String,
    /// Texts, images and files.
    pub content: Vec<Part>,
    /// Whether the tool failed. Only Anthropic's format has a word for it.
    pub is_error: bool,
}
