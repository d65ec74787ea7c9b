//! The client's side of an answer: everything its writer needs besides the provider's answer.

use serde_json::Value;

use super::fields::Object;
use super::names::{self, Renamed};
use super::surrogates::read_lossy;
use crate::domain::label::ApiFormat;

/// Properties of the client's request that shape the answer.
#[derive(Debug, Clone, Default)]
pub struct AnswerContext {
    /// The name by which the client asked for the model.
    pub model: String,
    /// When the answer began, in seconds since 1970.
    pub created: i64,
    /// Unique to this request, of characters that are valid in ids: the basis of ids that the provider did not give.
    pub id: String,
    /// Whether a chat client asked for the usage on a stream.
    pub include_usage: bool,
    /// The client's request, much of which a Responses answer repeats; empty for other formats.
    pub(crate) request: Object,
    /// Names of tools that take free text. Providers without such tools were given functions instead.
    pub(crate) custom_tools: Vec<String>,
    /// Tools that the provider may know by another name.
    renamed: Vec<Renamed>,
}

impl AnswerContext {
    /// For the answer to `request`, which the client sent in `format`.
    pub fn new(format: ApiFormat, request: &[u8], model: &str, id: &str, created: i64) -> Self {
        let request: Object = read_lossy(request).unwrap_or_default();
        let include_usage = format == ApiFormat::OpenAiChat
            && request.get("stream_options").is_some_and(|options| options["include_usage"] == true);
        let responses = format == ApiFormat::OpenAiResponses;
        let (model, id) = (model.to_owned(), id.to_owned());
        let mut context = Self { model, created, id, include_usage, ..Self::default() };
        let offered_later =
            items(request.get("input")).filter(|item| responses && item["type"] == "additional_tools");
        let more = offered_later.flat_map(|item| items(item.get("tools")));
        for tool in items(request.get("tools")).chain(more) {
            if responses && tool["type"] == "namespace" {
                let namespace = tool["name"].as_str().filter(|name| !name.is_empty());
                for inner in items(tool.get("tools")) {
                    context.note(format, inner, namespace);
                }
            } else {
                context.note(format, tool, None);
            }
        }
        if responses {
            context.request = request;
        }
        context
    }

    /// Notes how a tool may be presented to the provider.
    fn note(&mut self, format: ApiFormat, tool: &Value, namespace: Option<&str>) {
        let kind = tool["type"].as_str();
        let is_custom = kind == Some("custom") && format != ApiFormat::Anthropic;
        let holder = match format {
            ApiFormat::OpenAiChat => &tool[kind.unwrap_or("function")],
            ApiFormat::OpenAiResponses | ApiFormat::Anthropic => tool,
        };
        let Some(name) = holder["name"].as_str() else { return };
        let sent = match namespace {
            Some(namespace) => Some(names::flat(namespace, name)),
            None => names::short(name),
        };
        if is_custom {
            // A tool in a namespace has its flat name until the answer is written.
            let known = sent.as_deref().filter(|_| namespace.is_some());
            self.custom_tools.push(known.unwrap_or(name).to_owned());
        }
        if let Some(sent) = sent {
            let (name, namespace) = (name.to_owned(), namespace.map(str::to_owned));
            self.renamed.push(Renamed { sent, name, namespace });
        }
    }

    /// The tool that the provider calls `sent`, if the client calls it something else.
    pub(crate) fn renamed(&self, sent: &str) -> Option<&Renamed> {
        self.renamed.iter().find(|renamed| renamed.sent == sent)
    }
}

fn items(list: Option<&Value>) -> impl Iterator<Item = &Value> {
    list.and_then(Value::as_array).into_iter().flatten()
}
