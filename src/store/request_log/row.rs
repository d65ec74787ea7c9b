//! Rows of the request log.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use chrono::{DateTime, SubsecRound, Utc};
use entity::{completions, embeddings};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::label::LogTable;
use crate::domain::record::{Call, REQUEST_ID_MAX_BYTES, RequestRecord};

/// A row of the request log, of either table, ready to be stored: no NUL character (PostgreSQL refuses it), valid
/// UTF-8, finite numbers, times in whole microseconds.
///
/// As JSON it survives a newer version that adds fields, and one that left fields out. Costs and times are written as
/// text there, because not every JSON reader restores a float to the last bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    #[serde(with = "table_name")]
    pub table: LogTable,
    pub id: Uuid,
    pub api_key_id: i64,
    /// System name.
    pub model: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<i64>,
    /// Name of the provider that answered, or was tried last; `None`: none was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<i64>,
    /// An [`ApiFormat`](crate::domain::label::ApiFormat); completions only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_format: Option<Cow<'static, str>>,
    /// A [`Status`](crate::domain::label::Status).
    pub status: Cow<'static, str>,
    #[serde(default)]
    pub stream: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_tokens: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<i64>,
    /// USD.
    #[serde(with = "exact")]
    pub prompt_cost: f64,
    /// USD.
    #[serde(with = "exact")]
    pub completion_cost: f64,
    /// Milliseconds from arrival to the last byte.
    #[serde(with = "exact")]
    pub duration_ms: f64,
    /// Milliseconds from arrival to the first content token; streams only.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "exact_option")]
    pub ttft_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "exact_option")]
    pub longest_stall_ms: Option<f64>,
    /// Milliseconds the gateway itself took.
    #[serde(with = "exact")]
    pub overhead_ms: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<Cow<'static, str>>,
    /// A short code: `timeout`, `http_500`, …; at most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// At most [`REQUEST_ID_MAX_BYTES`]; a longer one is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The row that a cache hit was answered from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_body: Option<ByteString>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_body: Option<ByteString>,
    /// When the request arrived.
    pub created_at: DateTime<Utc>,
}

/// A value of one column, as the drivers take it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cell<'a> {
    Id(Option<&'a Uuid>),
    Integer(Option<i64>),
    Number(Option<f64>),
    Flag(bool),
    Text(Option<&'a str>),
    Time(DateTime<Utc>),
}

impl LogRow {
    /// Hands over the values of its columns, in the order of the entity's.
    ///
    /// # Errors
    /// Those of `take`.
    pub(super) fn cells<'a, E>(&'a self, mut take: impl FnMut(Cell<'a>) -> Result<(), E>) -> Result<(), E> {
        // The columns of embeddings are among those of completions, in the same order.
        let is_completion = self.table == LogTable::Completions;
        take(Cell::Id(Some(&self.id)))?;
        take(Cell::Integer(Some(self.api_key_id)))?;
        take(Cell::Text(Some(&self.model)))?;
        take(Cell::Integer(self.model_id))?;
        take(Cell::Text(self.provider.as_deref()))?;
        take(Cell::Integer(self.provider_id))?;
        if is_completion {
            take(Cell::Text(Some(self.api_format.as_deref().unwrap_or_default())))?;
        }
        take(Cell::Text(Some(&self.status)))?;
        if is_completion {
            take(Cell::Flag(self.stream))?;
        }
        take(Cell::Integer(self.prompt_tokens))?;
        if is_completion {
            take(Cell::Integer(self.completion_tokens))?;
            take(Cell::Integer(self.cached_tokens))?;
            take(Cell::Integer(self.cache_write_tokens))?;
            take(Cell::Integer(self.reasoning_tokens))?;
        }
        take(Cell::Number(Some(self.prompt_cost)))?;
        if is_completion {
            take(Cell::Number(Some(self.completion_cost)))?;
        }
        take(Cell::Number(Some(self.duration_ms)))?;
        if is_completion {
            take(Cell::Number(self.ttft_ms))?;
            take(Cell::Number(self.longest_stall_ms))?;
        }
        take(Cell::Number(Some(self.overhead_ms)))?;
        if is_completion {
            take(Cell::Text(self.finish_reason.as_deref()))?;
        }
        take(Cell::Text(self.error.as_deref()))?;
        take(Cell::Text(self.request_id.as_deref()))?;
        take(Cell::Id(self.source.as_ref()))?;
        take(Cell::Text(self.request_body.as_deref()))?;
        take(Cell::Text(self.response_body.as_deref()))?;
        take(Cell::Time(self.created_at))
    }

    /// Bytes that its texts take: the measure of a batch.
    pub(super) fn weight(&self) -> usize {
        let length = |text: Option<&str>| text.map_or(0, str::len);
        200 + length(self.error.as_deref())
            + length(self.request_body.as_deref())
            + length(self.response_body.as_deref())
    }
}

impl From<&RequestRecord> for LogRow {
    fn from(record: &RequestRecord) -> Self {
        let target = record.target.as_deref();
        let (usage, cost) = (record.total_usage(), record.total_cost());
        Self {
            table: record.call.table(),
            id: record.id,
            api_key_id: record.key.id,
            model: record.model.shared(),
            model_id: target.map(|target| target.id),
            provider: target.map(|target| target.provider.name.shared()),
            provider_id: target.map(|target| target.provider.id),
            api_format: match record.call {
                Call::Completion(format) => Some(format.as_str().into()),
                Call::Embedding => None,
            },
            status: record.status.as_str().into(),
            stream: record.stream,
            prompt_tokens: usage.prompt.map(count),
            completion_tokens: usage.completion.map(count),
            cached_tokens: usage.cached.map(count),
            cache_write_tokens: usage.cache_write.map(count),
            reasoning_tokens: usage.reasoning.map(count),
            prompt_cost: finite(cost.prompt),
            completion_cost: finite(cost.completion),
            duration_ms: ms(record.duration),
            ttft_ms: record.ttft.map(ms),
            longest_stall_ms: record.longest_stall.map(ms),
            overhead_ms: ms(record.overhead),
            finish_reason: record.finish_reason.map(|reason| reason.as_str().into()),
            error: record.error.map(|code| code.to_string()),
            // If ids were truncated, two could become one, and one request would get the other's answer.
            request_id: record.request_id.as_ref().filter(|id| id.len() <= REQUEST_ID_MAX_BYTES).cloned(),
            source: record.source,
            request_body: record.request_body.as_ref().map(body),
            response_body: record.response_body.as_ref().map(body),
            created_at: record.started_at.trunc_subsecs(6),
        }
    }
}

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn finite(amount: f64) -> f64 {
    if amount.is_finite() { amount } else { 0.0 }
}

/// NUL, which PostgreSQL cannot store, becomes U+FFFD. (The escape `\u0000` in JSON is six ordinary characters.)
fn text(text: &str) -> String {
    if memchr::memchr(0, text.as_bytes()).is_some() {
        text.replace('\0', "\u{fffd}")
    } else {
        text.to_owned()
    }
}

/// Bytes that are not UTF-8 become U+FFFD.
fn body(bytes: &Bytes) -> ByteString {
    match ByteString::try_from(bytes.clone()) {
        Ok(valid) if memchr::memchr(0, bytes).is_none() => valid,
        _ => text(&String::from_utf8_lossy(bytes)).into(),
    }
}

impl From<completions::Model> for LogRow {
    fn from(row: completions::Model) -> Self {
        Self {
            table: LogTable::Completions,
            id: row.id,
            api_key_id: row.api_key_id,
            model: row.model.into(),
            model_id: row.model_id,
            provider: row.provider.map(Into::into),
            provider_id: row.provider_id,
            api_format: Some(row.api_format.into()),
            status: row.status.into(),
            stream: row.stream,
            prompt_tokens: row.prompt_tokens,
            completion_tokens: row.completion_tokens,
            cached_tokens: row.cached_tokens,
            cache_write_tokens: row.cache_write_tokens,
            reasoning_tokens: row.reasoning_tokens,
            prompt_cost: row.prompt_cost,
            completion_cost: row.completion_cost,
            duration_ms: row.duration_ms,
            ttft_ms: row.ttft_ms,
            longest_stall_ms: row.longest_stall_ms,
            overhead_ms: row.overhead_ms,
            finish_reason: row.finish_reason.map(Into::into),
            error: row.error,
            request_id: row.request_id,
            source: row.source_completion,
            request_body: row.request_body.map(Into::into),
            response_body: row.response_body.map(Into::into),
            created_at: row.created_at,
        }
    }
}

impl From<embeddings::Model> for LogRow {
    fn from(row: embeddings::Model) -> Self {
        Self {
            table: LogTable::Embeddings,
            id: row.id,
            api_key_id: row.api_key_id,
            model: row.model.into(),
            model_id: row.model_id,
            provider: row.provider.map(Into::into),
            provider_id: row.provider_id,
            api_format: None,
            status: row.status.into(),
            stream: false,
            prompt_tokens: row.prompt_tokens,
            completion_tokens: None,
            cached_tokens: None,
            cache_write_tokens: None,
            reasoning_tokens: None,
            prompt_cost: row.prompt_cost,
            completion_cost: 0.0,
            duration_ms: row.duration_ms,
            ttft_ms: None,
            longest_stall_ms: None,
            overhead_ms: row.overhead_ms,
            finish_reason: None,
            error: row.error,
            request_id: row.request_id,
            source: row.source_embedding,
            request_body: row.request_body.map(Into::into),
            response_body: row.response_body.map(Into::into),
            created_at: row.created_at,
        }
    }
}

mod table_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error};

    use crate::domain::label::LogTable;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(table: &LogTable, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(table.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LogTable, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(deserializer)?;
        LogTable::parse(&name).ok_or_else(|| D::Error::custom(format!("no such table: {name}")))
    }
}

/// A float as the shortest text that reads back to the same bits.
mod exact {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(zmij::Buffer::new().format(*number))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod exact_option {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match number {
            Some(number) => serializer.serialize_str(zmij::Buffer::new().format(*number)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let text = Option::<std::borrow::Cow<str>>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}
