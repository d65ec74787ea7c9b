//! JSON schemas: the rules of OpenAI and Anthropic for schemas that they enforce.

use serde_json::Value;

/// Deeper schemas are treated as too deep to enforce; OpenAI's limit is 10 levels of objects.
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

/// Keywords that Anthropic cannot enforce, and refuses. Source:
/// <https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations>.
const NOT_ENFORCED: [&str; 12] = [
    "exclusiveMaximum",
    "exclusiveMinimum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "uniqueItems",
];

/// Keywords that hold schemas by the client's names, and in a list.
const NAMED: [&str; 3] = ["properties", "$defs", "definitions"];
const LISTED: [&str; 3] = ["anyOf", "oneOf", "prefixItems"];

/// Makes `schema` one that Anthropic enforces: closes every object, and moves constraints that cannot be enforced to
/// the description, where the model reads them. A schema that would change its meaning (objects with any names, or of
/// several schemas at once) stays as it is, for Anthropic to refuse with its own message.
pub(crate) fn fit_for_anthropic(schema: &mut Value) {
    if !is_beyond(schema, 0) {
        close(schema, 0);
    }
}

/// Whether Anthropic enforces `schema` as it is.
pub(crate) fn is_enforceable(schema: &Value) -> bool {
    !is_beyond(schema, 0) && !close(&mut schema.clone(), 0)
}

/// Whether `schema` has a part that can neither be enforced nor be left out without a change of meaning.
fn is_beyond(schema: &Value, depth: usize) -> bool {
    let Value::Object(object) = schema else { return false };
    let is_object = object.get("type").is_some_and(|kind| kind == "object");
    let any_names = object.get("additionalProperties").is_some_and(Value::is_object)
        || (is_object && !object.contains_key("properties"));
    depth > MAX_DEPTH
        || any_names
        || object.contains_key("allOf")
        || (object.contains_key("oneOf") && object.contains_key("anyOf"))
        || parts(schema).any(|part| is_beyond(part, depth + 1))
}

/// Closes objects and removes keywords that are not enforced; returns whether it changed anything.
fn close(schema: &mut Value, depth: usize) -> bool {
    let Value::Object(object) = schema else { return false };
    if depth > MAX_DEPTH {
        return false;
    }
    let mut changed = false;
    if let Some(alternatives) = object.remove("oneOf") {
        object.insert("anyOf".into(), alternatives);
        changed = true;
    }
    if object.contains_key("properties") && object.get("additionalProperties") != Some(&Value::Bool(false)) {
        object.insert("additionalProperties".into(), false.into());
        changed = true;
    }
    let mut told = Vec::new();
    for key in NOT_ENFORCED {
        let allowed = |value: &Value| key == "minItems" && value.as_u64().is_some_and(|least| least <= 1);
        if object.get(key).is_some_and(|value| !allowed(value))
            && let Some(value) = object.remove(key)
        {
            told.push(format!("{key}: {value}"));
        }
    }
    if !told.is_empty() {
        changed = true;
        let told = told.join(", ");
        let described = object.get("description").and_then(Value::as_str);
        let description = described.map_or_else(|| told.clone(), |text| format!("{text} ({told})"));
        object.insert("description".into(), description.into());
    }
    for (key, value) in object {
        match (key.as_str(), value) {
            (key, Value::Object(named)) if NAMED.contains(&key) => {
                for schema in named.values_mut() {
                    changed |= close(schema, depth + 1);
                }
            }
            (key, Value::Array(schemas)) if LISTED.contains(&key) => {
                for schema in schemas {
                    changed |= close(schema, depth + 1);
                }
            }
            ("items", schema) => changed |= close(schema, depth + 1),
            _ => {}
        }
    }
    changed
}

/// The schemas within `schema`: of properties, definitions, items and alternatives. Other values are not schemas,
/// whatever their keys are called.
fn parts(schema: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    let Value::Object(object) = schema else { return Box::new(std::iter::empty()) };
    Box::new(object.iter().flat_map(|(key, value)| -> Box<dyn Iterator<Item = &Value> + '_> {
        match (key.as_str(), value) {
            (key, Value::Object(named)) if NAMED.contains(&key) => Box::new(named.values()),
            (key, Value::Array(schemas)) if LISTED.contains(&key) => Box::new(schemas.iter()),
            ("items", schema) => Box::new(std::iter::once(schema)),
            _ => Box::new(std::iter::empty()),
        }
    }))
}

/// How many properties of the objects in `schema` may be missing; Anthropic enforces only a limited number.
pub(crate) fn optional_properties(schema: &Value) -> usize {
    fn count(schema: &Value, depth: usize) -> usize {
        if depth > MAX_DEPTH {
            return 0;
        }
        let own = schema["properties"].as_object().map_or(0, |properties| {
            let required = schema["required"].as_array();
            let is_required = |name: &String| required.is_some_and(|names| names.iter().any(|n| n == name));
            properties.keys().filter(|name| !is_required(name)).count()
        });
        own + parts(schema).map(|part| count(part, depth + 1)).sum::<usize>()
    }
    count(schema, 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_enforced_is_told() {
        let mut schema = json!({
            "type": "object",
            "properties": {
                "age": {"type": "integer", "minimum": 0, "maximum": 150, "description": "In years"},
                "minimum": {"type": "number"},
                "properties": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 2}},
                "size": {"oneOf": [{"$ref": "#/$defs/box"}, {"type": "null"}]},
            },
            "required": ["age"],
            "$defs": {"box": {"type": "object", "properties": {"w": {}}, "additionalProperties": true}},
        });
        fit_for_anthropic(&mut schema);
        let expected = json!({
            "type": "object",
            "properties": {
                "age": {"type": "integer", "description": "In years (maximum: 150, minimum: 0)"},
                "minimum": {"type": "number"},
                "properties": {
                    "type": "array", "minItems": 1, "items": {"type": "string", "description": "minLength: 2"},
                },
                "size": {"anyOf": [{"$ref": "#/$defs/box"}, {"type": "null"}]},
            },
            "required": ["age"],
            "$defs": {"box": {"type": "object", "properties": {"w": {}}, "additionalProperties": false}},
            "additionalProperties": false,
        });
        assert_eq!(schema, expected);
        assert!(is_enforceable(&schema));
        assert_eq!(optional_properties(&schema), 4);
    }

    #[test]
    fn what_would_mean_something_else_stays() {
        for inner in [
            json!({"type": "object", "additionalProperties": {"type": "number"}}),
            json!({"type": "object"}),
            json!({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"oneOf": [{"type": "null"}], "anyOf": [{"type": "null"}]}),
        ] {
            let schema = json!({"type": "object", "properties": {"scores": inner, "n": {"minimum": 1}}});
            let mut fitted = schema.clone();
            fit_for_anthropic(&mut fitted);
            assert_eq!(fitted, schema);
            assert!(!is_enforceable(&schema));
        }
    }

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
