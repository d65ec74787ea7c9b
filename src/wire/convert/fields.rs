//! Reading JSON objects field by field, with errors that name the field and a record of unread fields.

use std::fmt;

use serde_json::{Map, Value};

use super::dropped::Dropped;
use super::error::ConvertError;
use super::surrogates::read_lossy;

/// A JSON object, in the order in which it was written.
pub(crate) type Object = Map<String, Value>;

/// A value's place in a body. Built on the stack while reading, written out only for an error.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    Root,
    Key(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

impl At<'_> {
    pub(crate) fn key<'b>(&'b self, key: &'b str) -> At<'b> {
        At::Key(self, key)
    }

    pub(crate) fn index(&self, index: usize) -> At<'_> {
        At::Index(self, index)
    }

    /// The path without indices, as dropped fields are named: `messages.content.cache_control`.
    pub(crate) fn name(&self) -> String {
        match self {
            At::Root => String::new(),
            At::Index(parent, _) => parent.name(),
            At::Key(parent, key) => {
                let mut name = parent.name();
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(key);
                name
            }
        }
    }
}

/// `messages[2].content[0].type`
impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Root => Ok(()),
            At::Key(At::Root, key) => f.write_str(key),
            At::Key(parent, key) => write!(f, "{parent}.{key}"),
            At::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// An object whose fields are taken out one by one. `null` reads as absent.
pub(crate) struct Fields<'a> {
    object: Object,
    at: At<'a>,
}

impl<'a> Fields<'a> {
    /// Reads a whole body.
    pub(crate) fn parse(body: &[u8]) -> Result<Fields<'static>, ConvertError> {
        let value = read_lossy(body)
            .map_err(|error| ConvertError::new(format!("The body is not valid JSON: {error}")))?;
        Fields::new(value, At::Root)
    }

    /// The fields of the object `value`, which stands `at`.
    pub(crate) fn new(value: Value, at: At<'a>) -> Result<Self, ConvertError> {
        match value {
            Value::Object(object) => Ok(Self { object, at }),
            _ => Err(ConvertError::at(&at, "must be an object")),
        }
    }

    pub(crate) fn at(&self) -> At<'a> {
        self.at
    }

    /// An error about the field `key`.
    pub(crate) fn error(&self, key: &str, problem: impl fmt::Display) -> ConvertError {
        ConvertError::at(&self.at.key(key), problem)
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.object.get_mut(key).map(Value::take).filter(|value| !value.is_null())
    }

    /// Whether the field `key` is the text `word`; does not take the field.
    pub(crate) fn is(&self, key: &str, word: &str) -> bool {
        self.object.get(key).is_some_and(|value| value == word)
    }

    /// Marks fields as read without reading them.
    pub(crate) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.take(key);
        }
    }

    pub(crate) fn str(&mut self, key: &str) -> Result<Option<String>, ConvertError> {
        self.typed(key, "must be a string", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    pub(crate) fn require_str(&mut self, key: &str) -> Result<String, ConvertError> {
        self.str(key)?.ok_or_else(|| self.error(key, "is required"))
    }

    pub(crate) fn bool(&mut self, key: &str) -> Result<Option<bool>, ConvertError> {
        self.typed(key, "must be true or false", |value| value.as_bool())
    }

    pub(crate) fn u64(&mut self, key: &str) -> Result<Option<u64>, ConvertError> {
        self.typed(key, "must be a whole number, not negative", |value| count(&value))
    }

    pub(crate) fn i64(&mut self, key: &str) -> Result<Option<i64>, ConvertError> {
        self.typed(key, "must be a whole number", |value| value.as_i64())
    }

    pub(crate) fn f64(&mut self, key: &str) -> Result<Option<f64>, ConvertError> {
        self.typed(key, "must be a number", |value| value.as_f64())
    }

    pub(crate) fn array(&mut self, key: &str) -> Result<Option<Vec<Value>>, ConvertError> {
        self.typed(key, "must be an array", |value| match value {
            Value::Array(items) => Some(items),
            _ => None,
        })
    }

    pub(crate) fn object(&mut self, key: &str) -> Result<Option<Object>, ConvertError> {
        self.typed(key, "must be an object", |value| match value {
            Value::Object(object) => Some(object),
            _ => None,
        })
    }

    pub(crate) fn strings(&mut self, key: &str) -> Result<Option<Vec<String>>, ConvertError> {
        self.typed(key, "must be an array of strings", |value| match value {
            Value::Array(items) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Some(text),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    fn typed<T>(
        &mut self,
        key: &str,
        problem: &str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, ConvertError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.error(key, problem)),
        }
    }

    /// Notes every field that was not taken as dropped, except fields that ask for nothing (`null`, `false`, empty).
    pub(crate) fn drop_rest(self, dropped: &mut Dropped) {
        for (key, value) in &self.object {
            let asks_nothing = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(object) => object.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if !asks_nothing {
                dropped.add(self.at.key(key).name());
            }
        }
    }
}

/// A whole number that is not negative, also when it is written with a fraction of zero.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked: whole, and within 2^53"
)]
pub(crate) fn count(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
    })
}

/// The string in the field `key`, taken out; anything else reads as absent. For answers, which are read leniently.
pub(crate) fn take_string(object: &mut Object, key: &str) -> Option<String> {
    match object.get_mut(key).map(Value::take) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// The object in the field `key`, taken out; anything else reads as absent.
pub(crate) fn take_object(object: &mut Object, key: &str) -> Option<Object> {
    match object.get_mut(key).map(Value::take) {
        Some(Value::Object(inner)) => Some(inner),
        _ => None,
    }
}

/// The items of the array in the field `key`, taken out; anything else reads as empty.
pub(crate) fn take_array(object: &mut Object, key: &str) -> Vec<Value> {
    match object.get_mut(key).map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// The objects of the array in the field `key`, taken out.
pub(crate) fn take_objects(object: &mut Object, key: &str) -> impl Iterator<Item = Object> + use<> {
    take_array(object, key).into_iter().filter_map(|value| match value {
        Value::Object(object) => Some(object),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_path() {
        let (messages, at) = (At::Key(&At::Root, "messages"), 2);
        let item = messages.index(at);
        let mut fields = Fields::new(json!({"role": 5}), item).unwrap();
        let error = fields.require_str("role").unwrap_err();
        assert_eq!(error.to_string(), "`messages[2].role` must be a string");
        assert_eq!(error.param(), Some("messages[2].role"));
        assert_eq!(
            fields.require_str("content").unwrap_err().to_string(),
            "`messages[2].content` is required"
        );
    }

    #[test]
    fn what_is_not_read_is_dropped_unless_it_asks_for_nothing() {
        let object = json!({"a": 1, "b": false, "c": null, "d": [], "e": {}, "f": "", "g": {"h": 1}, "i": 2});
        let mut fields = Fields::new(object, At::Root).unwrap();
        fields.ignore(&["i"]);
        let mut dropped = Dropped::default();
        fields.drop_rest(&mut dropped);
        assert_eq!(dropped.into_names(), ["a", "g"]);
    }

    #[test]
    fn counts_may_be_written_as_floats() {
        assert_eq!(count(&json!(7)), Some(7));
        assert_eq!(count(&json!(7.0)), Some(7));
        assert_eq!(count(&json!(7.5)), None);
        assert_eq!(count(&json!(-1)), None);
        assert_eq!(count(&json!(1e300)), None);
        assert_eq!(count(&json!("7")), None);
    }
}
