//! JSON schemas: what OpenAI wants of one that it shall enforce.

use serde_json::Value;

/// Deeper schemas are taken for too deep to enforce; OpenAI's limit is 10 levels of objects.
const MAX_DEPTH: usize = 64;

/// Whether OpenAI would enforce `schema` (`strict: true`) and not refuse it: every object lists all its properties as
/// required and allows no others. Source:
/// <https://platform.openai.com/docs/guides/structured-outputs#supported-schemas>.
pub(crate) fn can_be_strict(schema: &Value) -> bool {
    follows(schema, 0)
}

fn follows(schema: &Value, depth: usize) -> bool {
    if depth > MAX_DEPTH {
        return false;
    }
    match schema {
        Value::Object(object) => {
            let properties = object.get("properties").and_then(Value::as_object);
            let is_object = properties.is_some() || object.get("type").is_some_and(|kind| kind == "object");
            let closed = object.get("additionalProperties") == Some(&Value::Bool(false));
            let required = object.get("required").and_then(Value::as_array);
            let all_required = properties.is_none_or(|properties| {
                let listed = |name: &String| required.is_some_and(|names| names.iter().any(|n| n == name));
                properties.keys().all(listed)
            });
            (!is_object || (closed && all_required)) && object.values().all(|value| follows(value, depth + 1))
        }
        Value::Array(items) => items.iter().all(|item| follows(item, depth + 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strict_schemas_are_closed_and_complete() {
        let closed = |properties: Value, required: Value| {
            json!({
                "type": "object", "properties": properties, "required": required, "additionalProperties": false,
            })
        };
        assert!(can_be_strict(&closed(json!({"a": {"type": "string"}}), json!(["a"]))));
        assert!(!can_be_strict(&closed(json!({"a": {"type": "string"}}), json!([]))));
        assert!(!can_be_strict(&json!({"type": "object", "properties": {}})));
        let inner_open = closed(json!({"a": {"type": "object"}}), json!(["a"]));
        assert!(!can_be_strict(&inner_open));
        assert!(!can_be_strict(&json!({"type": "array", "items": inner_open})));
        assert!(can_be_strict(&json!({"type": "string"})));
    }
}
