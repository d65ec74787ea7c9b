//! The models list, in OpenAI's and in Anthropic's shape.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::domain::usage::Usage;

use super::super::ask::Ask;
use super::{CREATED, Pieces};

/// The list, or, when the request names a model, that one.
pub(in super::super) fn models(names: &[String], ask: &Ask) -> Pieces {
    let one = |name: &str| {
        if ask.anthropic {
            json!({"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"})
        } else {
            json!({"id": name, "object": "model", "created": CREATED, "owned_by": "scripted"})
        }
    };
    let body: Value = if ask.model.is_empty() {
        let data: Vec<Value> = names.iter().map(|name| one(name)).collect();
        if ask.anthropic {
            json!({"data": data, "has_more": false, "first_id": names.first(), "last_id": names.last()})
        } else {
            json!({"object": "list", "data": data})
        }
    } else {
        one(&ask.model)
    };
    Pieces::json(Bytes::from(body.to_string()), Usage::default())
}
