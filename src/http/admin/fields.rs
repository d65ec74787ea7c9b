//! Fields of requests: left out or cleared, and their ranges.

use std::ops::RangeInclusive;

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::error::{AdminError, AdminResult};
use crate::domain::label::ModelType;
use crate::domain::provider::ProviderKind;

/// For `#[serde(deserialize_with)]` beside `default`: left out is `None`, `null` is `Some(None)`.
pub(super) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(input).map(Some)
}

/// Forms send `""` for a field that was left empty.
pub(super) fn not_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Refuses a value that is out of range.
pub(super) fn in_range<T: PartialOrd + std::fmt::Display + Copy>(
    field: &'static str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> AdminResult<()> {
    match value {
        Some(value) if !range.contains(&value) => {
            Err(AdminError::invalid(field, format!("must be from {} to {}", range.start(), range.end())))
        }
        _ => Ok(()),
    }
}

/// Refuses text that is longer than `max` characters.
pub(super) fn at_most(field: &'static str, text: Option<&str>, max: usize) -> AdminResult<()> {
    match text {
        Some(text) if text.chars().count() > max => {
            Err(AdminError::invalid(field, format!("must not be longer than {max} characters")))
        }
        _ => Ok(()),
    }
}

/// A moment: RFC 3339, or without an offset (UTC), or a date alone (its midnight, UTC). Years 1970 to 9999, which both
/// databases can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct When(pub(super) DateTime<Utc>);

impl When {
    fn parse(text: &str) -> Option<Self> {
        let naive = || {
            ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
                .iter()
                .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
                .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))
        };
        let time = match DateTime::parse_from_rfc3339(text) {
            Ok(time) => time.to_utc(),
            Err(_) => naive()?.and_utc(),
        };
        (1970..=9999).contains(&time.year()).then_some(Self(time))
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(
                "expected a time such as 2026-01-31T12:00:00Z, of the years 1970 to 9999",
            )
        })
    }
}

/// The API of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ProviderType {
    /// Chat Completions.
    #[serde(rename = "openai")]
    OpenAi,
    /// The Responses API.
    #[serde(rename = "openai-responses")]
    OpenAiResponses,
    Anthropic,
    Azure,
    Ollama,
}

impl From<ProviderType> for ProviderKind {
    fn from(kind: ProviderType) -> Self {
        match kind {
            ProviderType::OpenAi => Self::OpenAi,
            ProviderType::OpenAiResponses => Self::OpenAiResponses,
            ProviderType::Anthropic => Self::Anthropic,
            ProviderType::Azure => Self::Azure,
            ProviderType::Ollama => Self::Ollama,
        }
    }
}

/// The type of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ModelUse {
    Chat,
    Embedding,
}

impl From<ModelUse> for ModelType {
    fn from(model_use: ModelUse) -> Self {
        match model_use {
            ModelUse::Chat => Self::Chat,
            ModelUse::Embedding => Self::Embedding,
        }
    }
}

/// A deletion.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deleted {
    /// Always true: a failure is an error.
    success: bool,
}

impl Deleted {
    pub(super) const fn new() -> Self {
        Self { success: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_in_several_forms() {
        let noon = "2026-01-31T12:00:00Z".parse().ok().map(When);
        for text in [
            "2026-01-31T12:00:00Z",
            "2026-01-31T13:00:00.000+01:00",
            "2026-01-31T12:00:00",
            "2026-01-31 12:00:00.0",
        ] {
            assert_eq!(When::parse(text), noon, "{text}");
        }
        assert_eq!(When::parse("2026-01-31"), "2026-01-31T00:00:00Z".parse().ok().map(When));
        for text in ["", "now", "2026", "0001-01-01", "99999-01-01T00:00:00Z", "2026-02-30"] {
            assert_eq!(When::parse(text), None, "{text}");
        }
    }

    #[test]
    fn types_are_called_as_everywhere() {
        for kind in [
            ProviderType::OpenAi,
            ProviderType::OpenAiResponses,
            ProviderType::Anthropic,
            ProviderType::Azure,
            ProviderType::Ollama,
        ] {
            let name = serde_json::to_value(kind).expect("JSON");
            assert_eq!(name, ProviderKind::from(kind).as_str());
        }
        for model_use in [ModelUse::Chat, ModelUse::Embedding] {
            assert_eq!(serde_json::to_value(model_use).expect("JSON"), ModelType::from(model_use).as_str());
        }
    }
}
