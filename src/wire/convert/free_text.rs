//! Calls of tools that take free text, made through a provider that knows only objects: the client gets its text back.

use serde_json::Value;

use super::AnswerContext;
use super::surrogates::read_lossy;
use crate::domain::chat::{Block, Part, StreamEvent, ToolKind};
use crate::wire::anthropic::request::FREE_INPUT;

/// The text in `{"input": text}`; the whole arguments if they are something else.
fn text_of(arguments: &str) -> String {
    match read_lossy::<Value>(arguments.as_bytes()) {
        Ok(Value::Object(mut object)) => match object.get_mut(FREE_INPUT).map(Value::take) {
            Some(Value::String(text)) => text,
            _ => arguments.to_owned(),
        },
        _ => arguments.to_owned(),
    }
}

/// Makes the calls in `parts` what the client defined them to be.
pub(super) fn unwrap(parts: &mut [Part], context: &AnswerContext) {
    for part in parts {
        if let Part::ToolCall(call) = part
            && call.kind == ToolKind::Function
            && context.custom_tools.contains(&call.name)
        {
            call.kind = ToolKind::Custom;
            call.arguments = text_of(&call.arguments);
        }
    }
}

/// The same for a stream, whose blocks come one after another. Such a call's arguments come in one piece, when they are
/// complete.
#[derive(Debug, Default)]
pub(super) struct Unwrapper {
    /// Arguments of the open call, if it is of such a tool.
    arguments: Option<String>,
}

impl Unwrapper {
    pub(super) fn pass(
        &mut self,
        mut event: StreamEvent,
        context: &AnswerContext,
        sink: &mut dyn FnMut(StreamEvent),
    ) {
        match &mut event {
            StreamEvent::Open { block: Block::ToolCall { name, kind, .. }, .. }
                if *kind == ToolKind::Function && context.custom_tools.contains(name) =>
            {
                *kind = ToolKind::Custom;
                self.arguments = Some(String::new());
            }
            StreamEvent::Delta { text, .. } => {
                if let Some(arguments) = &mut self.arguments {
                    arguments.push_str(text);
                    return;
                }
            }
            StreamEvent::Close { key } => {
                if let Some(arguments) = self.arguments.take() {
                    sink(StreamEvent::Delta { key: *key, text: text_of(&arguments) });
                }
            }
            _ => {}
        }
        sink(event);
    }
}
