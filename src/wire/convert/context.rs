//! What an answer is written with besides what the provider said.

use serde_json::Value;

use super::fields::{Object, take_objects};
use super::surrogates::read_lossy;
use crate::domain::label::ApiFormat;

/// What the client's request says about the answer's form.
#[derive(Debug, Clone, Default)]
pub struct AnswerContext {
    /// The name by which the client asked for the model.
    pub model: String,
    /// When the answer began, in seconds since 1970.
    pub created: i64,
    /// Unique to this request, of characters that ids are made of: what the answer and its items are called when the
    /// provider gave no name.
    pub id: String,
    /// Whether a chat client asked for the usage on a stream.
    pub include_usage: bool,
    /// The client's request, of which a Responses answer repeats a good part; empty for other formats.
    pub(crate) request: Object,
    /// Names of tools that take free text. Providers that have none were given them as functions.
    pub(crate) custom_tools: Vec<String>,
}

impl AnswerContext {
    /// For the answer to `request`, which the client sent in `format`.
    pub fn new(format: ApiFormat, request: &[u8], model: &str, id: &str, created: i64) -> Self {
        let mut request: Object = read_lossy(request).unwrap_or_default();
        let include_usage = format == ApiFormat::OpenAiChat
            && request.get("stream_options").is_some_and(|options| options["include_usage"] == true);
        let custom_tools = match format {
            ApiFormat::OpenAiChat => custom_tools(&mut request, |tool| tool["custom"]["name"].as_str()),
            ApiFormat::OpenAiResponses => custom_tools(&mut request.clone(), |tool| tool["name"].as_str()),
            ApiFormat::Anthropic => Vec::new(),
        };
        let request = if format == ApiFormat::OpenAiResponses { request } else { Object::new() };
        let (model, id) = (model.to_owned(), id.to_owned());
        Self { model, created, id, include_usage, request, custom_tools }
    }
}

fn custom_tools(request: &mut Object, name: fn(&Value) -> Option<&str>) -> Vec<String> {
    take_objects(request, "tools")
        .map(Value::Object)
        .filter(|tool| tool["type"] == "custom")
        .filter_map(|tool| name(&tool).map(str::to_owned))
        .collect()
}
