//! Restores calls to the client's own tool definitions: its names, an id, and free text for tools that take free text.

use serde_json::{Value, json};

use super::surrogates::read_lossy;
use super::{AnswerContext, signed};
use crate::domain::chat::{Block, Part, StreamEvent, ToolKind};

/// The key under which free text, or anything that is not a JSON object, is wrapped in an object.
pub(crate) const FREE_INPUT: &str = "input";

/// The schema of a tool that takes free text, where tools take objects.
pub(crate) fn free_input_schema() -> Value {
    json!({"type": "object", "properties": {FREE_INPUT: {"type": "string"}}, "required": [FREE_INPUT]})
}

/// The text in `{"input": text}`; the whole arguments if they have another form.
fn text_of(arguments: &str) -> String {
    match read_lossy::<Value>(arguments.as_bytes()) {
        Ok(Value::Object(mut object)) => match object.get_mut(FREE_INPUT).map(Value::take) {
            Some(Value::String(text)) => text,
            _ => arguments.to_owned(),
        },
        _ => arguments.to_owned(),
    }
}

/// Restores the client's id, name and kind of call `number` of an answer. Some providers give calls no id, but a result
/// has to name one, and no two calls of a conversation may have the same.
fn restore(number: usize, id: &mut String, name: &mut String, kind: &mut ToolKind, context: &AnswerContext) {
    if signed::bare(id).is_empty() {
        id.insert_str(0, &format!("call_{}_{number}", context.id));
    }
    // Namespaces are restored by the writer of the only format that has them.
    if let Some(renamed) = context.renamed(name).filter(|renamed| renamed.namespace.is_none()) {
        name.clone_from(&renamed.name);
    }
    // Providers that know only objects were given a tool that takes an object with one text.
    if *kind == ToolKind::Function && context.custom_tools.contains(name) {
        *kind = ToolKind::Custom;
    }
}

/// Restores the calls in `parts` to the client's definitions.
pub(super) fn restore_all(parts: &mut [Part], context: &AnswerContext) {
    let calls = parts.iter_mut().filter_map(|part| match part {
        Part::ToolCall(call) => Some(call),
        _ => None,
    });
    for (number, call) in calls.enumerate() {
        let sent_as = call.kind;
        restore(number, &mut call.id, &mut call.name, &mut call.kind, context);
        if call.kind != sent_as {
            call.arguments = text_of(&call.arguments);
        }
    }
}

/// Does the same for a stream, whose blocks come one after another. Free text that the provider sends as an object is
/// passed on in one piece, when it is complete.
#[derive(Debug, Default)]
pub(super) struct Restorer {
    /// Calls so far.
    calls: usize,
    /// Arguments of the open call, if its tool takes free text.
    arguments: Option<String>,
}

impl Restorer {
    pub(super) fn pass(
        &mut self,
        mut event: StreamEvent,
        context: &AnswerContext,
        sink: &mut dyn FnMut(StreamEvent),
    ) {
        match &mut event {
            StreamEvent::Open { block: Block::ToolCall { id, name, kind }, .. } => {
                let sent_as = *kind;
                restore(self.calls, id, name, kind, context);
                self.calls += 1;
                self.arguments = (*kind != sent_as).then(String::new);
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
