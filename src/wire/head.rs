//! The few fields of a request body that routing needs, read and edited without touching the rest.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::domain::label::ApiFormat;
use crate::domain::record::Call;

const INCLUDE_USAGE: &str = "stream_options.include_usage";

/// Why a request body cannot be routed. Each message is a sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("The request body is not valid JSON: {0}.")]
    NotJson(String),
    #[error("The request body must be a JSON object.")]
    NotAnObject,
    #[error("`{0}` is missing in the request body.")]
    Missing(&'static str),
    #[error("`{0}` must be a string that is not empty.")]
    NotAString(&'static str),
    #[error("`{0}` must be true or false.")]
    NotABoolean(&'static str),
    #[error("`{0}` must be an object.")]
    NotAnObjectField(&'static str),
    #[error("`{0}` is given more than once in the request body.")]
    Duplicate(&'static str),
}

impl HeadError {
    /// The field to be named in the error's `param`.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::NotJson(_) | Self::NotAnObject => None,
            Self::Missing(field)
            | Self::NotAString(field)
            | Self::NotABoolean(field)
            | Self::NotAnObjectField(field)
            | Self::Duplicate(field) => Some(field),
        }
    }
}

/// The fields of a request that routing needs, and their places in the body.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// As the client wrote it; not empty.
    pub model: String,
    /// `None` when the body does not say (or says null), so that `Accept` may decide.
    pub stream: Option<bool>,
    /// Whether the client asked for `stream_options.include_usage` (chat only).
    pub include_usage: bool,
    body: Bytes,
    spans: Spans,
}

/// Changes to a request body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Edit<'a> {
    /// The name that the provider knows the model by.
    pub model: Option<&'a str>,
    /// The required value of `stream`.
    pub stream: Option<bool>,
    /// Whether to ask for the usage on the stream, by `stream_options.include_usage` (chat only).
    pub ask_usage: bool,
}

#[derive(Debug, Clone, Default)]
struct Spans {
    /// Just past the `{` of the body.
    members: usize,
    model: Range<usize>,
    stream: Option<Range<usize>>,
    stream_options: Option<StreamOptionsSpan>,
}

#[derive(Debug, Clone)]
struct StreamOptionsSpan {
    /// The whole value.
    value: Range<usize>,
    /// `None`: the value is null.
    object: Option<OptionsObject>,
}

#[derive(Debug, Clone)]
struct OptionsObject {
    /// Just past the `{`.
    members: usize,
    is_empty: bool,
    include_usage: Option<Range<usize>>,
}

impl RequestHead {
    /// Reads the head of a request body. `stream_options` is read for chat only, `stream` not for embeddings.
    ///
    /// # Errors
    /// [`HeadError`] when the body is not a JSON object, lacks `model`, or gives one of the fields read here in a wrong
    /// type or twice (providers may differ in which of the two they use).
    pub fn parse(call: Call, body: &Bytes) -> Result<Self, HeadError> {
        let text = std::str::from_utf8(body).map_err(|error| HeadError::NotJson(error.to_string()))?;
        let [model, stream, stream_options] = members(text, ["model", "stream", "stream_options"])?.fields;
        let chat = call == Call::Completion(ApiFormat::OpenAiChat);
        let embedding = call == Call::Embedding;

        let model_raw = model.once("model")?.ok_or(HeadError::Missing("model"))?;
        let model: String = serde_json::from_str(model_raw).map_err(|_| HeadError::NotAString("model"))?;
        if model.is_empty() {
            return Err(HeadError::NotAString("model"));
        }

        let stream_raw = if embedding { None } else { stream.once("stream")? };
        let stream = optional_bool(stream_raw, "stream")?;

        let options_raw = if chat { stream_options.once("stream_options")? } else { None };
        let mut include_usage = false;
        let mut stream_options = None;
        if let Some(raw) = options_raw {
            let mut object = None;
            if raw != "null" {
                let Members { fields: [asked], is_empty } = members(raw, ["include_usage"])
                    .map_err(|_| HeadError::NotAnObjectField("stream_options"))?;
                let asked = asked.once(INCLUDE_USAGE)?;
                include_usage = optional_bool(asked, INCLUDE_USAGE)? == Some(true);
                object = Some(OptionsObject {
                    members: span_of(text, raw).start + 1,
                    is_empty,
                    include_usage: asked.map(|asked| span_of(text, asked)),
                });
            }
            stream_options = Some(StreamOptionsSpan { value: span_of(text, raw), object });
        }

        let spans = Spans {
            // The body is an object, so its first byte that is not white space is the brace.
            members: text.len() - text.trim_ascii_start().len() + 1,
            model: span_of(text, model_raw),
            stream: stream_raw.map(|raw| span_of(text, raw)),
            stream_options,
        };
        Ok(Self { model, stream, include_usage, body: body.clone(), spans })
    }

    /// The body with `edit` applied. Everything else stays byte for byte; when nothing changes, so does the body.
    pub fn rewrite(&self, edit: &Edit<'_>) -> Bytes {
        // At most one per field.
        let mut splices: Vec<(Range<usize>, Cow<'_, str>)> = Vec::with_capacity(3);
        let Spans { members, model, stream, stream_options } = &self.spans;
        if let Some(name) = edit.model.filter(|name| *name != self.model) {
            splices.push((model.clone(), serde_json::Value::from(name).to_string().into()));
        }
        if let Some(on) = edit.stream.filter(|on| Some(*on) != self.stream) {
            splices.push(match stream {
                Some(span) => (span.clone(), on.to_string().into()),
                None => (*members..*members, format!("\"stream\":{on},").into()),
            });
        }
        if edit.ask_usage && !self.include_usage {
            splices.push(match stream_options {
                None => (*members..*members, r#""stream_options":{"include_usage":true},"#.into()),
                Some(StreamOptionsSpan { value, object: None }) => {
                    (value.clone(), r#"{"include_usage":true}"#.into())
                }
                Some(StreamOptionsSpan { object: Some(object), .. }) => match &object.include_usage {
                    Some(span) => (span.clone(), "true".into()),
                    None if object.is_empty => {
                        (object.members..object.members, r#""include_usage":true"#.into())
                    }
                    None => (object.members..object.members, r#""include_usage":true,"#.into()),
                },
            });
        }
        if splices.is_empty() {
            return self.body.clone();
        }
        splices.sort_by_key(|(span, _)| span.start);
        splice(&self.body, &splices)
    }
}

/// Replaces the spans, which are sorted and do not overlap.
fn splice(body: &Bytes, splices: &[(Range<usize>, Cow<'_, str>)]) -> Bytes {
    let added: usize = splices.iter().map(|(_, text)| text.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + added);
    let mut from = 0;
    for (span, text) in splices {
        out.extend_from_slice(&body[from..span.start]);
        out.extend_from_slice(text.as_bytes());
        from = span.end;
    }
    out.extend_from_slice(&body[from..]);
    out.freeze()
}

/// Where `part`, a slice of `whole`, lies in it.
fn span_of(whole: &str, part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.len()
}

fn optional_bool(raw: Option<&str>, name: &'static str) -> Result<Option<bool>, HeadError> {
    match raw {
        None | Some("null") => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(HeadError::NotABoolean(name)),
    }
}

/// A field's raw value, and whether it came more than once.
#[derive(Debug, Clone, Copy, Default)]
struct Field<'de> {
    value: Option<&'de str>,
    repeated: bool,
}

impl<'de> Field<'de> {
    fn once(self, name: &'static str) -> Result<Option<&'de str>, HeadError> {
        if self.repeated { Err(HeadError::Duplicate(name)) } else { Ok(self.value) }
    }
}

/// The wanted members of a JSON object, unread; the others are skipped.
struct Members<'de, const N: usize> {
    fields: [Field<'de>; N],
    is_empty: bool,
}

/// Reads the members `names` of the object `text`. Values stay raw, so an error of type can only mean that it is not an
/// object.
fn members<'de, const N: usize>(text: &'de str, names: [&str; N]) -> Result<Members<'de, N>, HeadError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer
        .deserialize_map(MembersVisitor(names))
        .and_then(|members| deserializer.end().map(|()| members))
        .map_err(|error| match error.classify() {
            Category::Data => HeadError::NotAnObject,
            _ => HeadError::NotJson(error.to_string()),
        })
}

struct MembersVisitor<'n, const N: usize>([&'n str; N]);

impl<'de, const N: usize> Visitor<'de> for MembersVisitor<'_, N> {
    type Value = Members<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members { fields: [Field::default(); N], is_empty: true };
        while let Some(place) = map.next_key_seed(PlaceOf(&self.0))? {
            members.is_empty = false;
            match place.and_then(|place| members.fields.get_mut(place)) {
                Some(field) => {
                    field.repeated |= field.value.replace(map.next_value::<&RawValue>()?.get()).is_some();
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(members)
    }
}

/// Reads a key as its place among the wanted names.
struct PlaceOf<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for PlaceOf<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for PlaceOf<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| *name == key))
    }
}

#[cfg(test)]
mod tests;
