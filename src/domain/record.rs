//! The record of a finished request. Both the metrics and the request log are written from it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::failure::ErrorCode;
use super::key::ApiKey;
use super::label::{ApiFormat, FinishReason, LabelValue, LogTable, Status};
use super::model::Target;
use super::usage::{Cost, Usage};

/// The longest request id, in bytes: it must fit the reference system's column. Ids are indexed, too, and PostgreSQL
/// refuses index rows above 2,704 bytes.
pub const REQUEST_ID_MAX_BYTES: usize = 127;

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// A chat-like call in the client's format.
    Completion(ApiFormat),
    Embedding,
}

impl Call {
    /// The table of the request log for this kind.
    pub const fn table(self) -> LogTable {
        match self {
            Self::Completion(_) => LogTable::Completions,
            Self::Embedding => LogTable::Embeddings,
        }
    }
}

/// A finished request that was authenticated, within its limits and routed to a configured model.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// UUIDv7: sorts by time and makes writing it twice harmless.
    pub id: Uuid,
    pub call: Call,
    pub key: Arc<ApiKey>,
    /// System name of the model.
    pub model: LabelValue,
    /// The target that answered, or the last one tried; `None`: no provider was called.
    pub target: Option<Arc<Target>>,
    pub status: Status,
    pub stream: bool,
    /// As the target reported; unknown fields stay unknown.
    pub usage: Usage,
    /// The cost of `usage`.
    pub cost: Cost,
    /// Usage and cost of the attempts before the last one.
    pub spent: Option<Box<Spent>>,
    pub finish_reason: Option<FinishReason>,
    /// Why it failed.
    pub error: Option<ErrorCode>,
    /// When the request arrived.
    pub started_at: DateTime<Utc>,
    /// From arrival to the last byte.
    pub duration: Duration,
    /// From arrival to the first content token; streams only.
    pub ttft: Option<Duration>,
    /// The longest wait for the provider between two chunks of a stream.
    pub longest_stall: Option<Duration>,
    /// Time the gateway itself took: everything but waiting for the upstream and for the client.
    pub overhead: Duration,
    /// The client's `X-NexusGate-ReqId`: letters, digits and `_.:/-`, at most [`REQUEST_ID_MAX_BYTES`].
    pub request_id: Option<String>,
    /// The completion that a cache hit was answered from.
    pub source: Option<Uuid>,
    /// JSON as the client sent it; `None` under `LOG_PAYLOADS=metadata`.
    pub request_body: Option<Bytes>,
    /// JSON (or the raw event stream) as the client received it; `None` under `LOG_PAYLOADS=metadata`.
    pub response_body: Option<Bytes>,
}

/// Usage and cost of failed attempts; they are billed although another provider answered.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    pub usage: Usage,
    /// At the price of each attempt's own target.
    pub cost: Cost,
}

impl RequestRecord {
    /// The usage of all attempts.
    pub fn total_usage(&self) -> Usage {
        let mut total = self.usage;
        if let Some(spent) = &self.spent {
            total += spent.usage;
        }
        total
    }

    /// The cost of all attempts.
    pub fn total_cost(&self) -> Cost {
        let mut total = self.cost;
        if let Some(spent) = &self.spent {
            total += spent.cost;
        }
        total
    }

    /// Whether a provider gave an answer that it may charge for, in whole or in part.
    pub fn was_answered(&self) -> bool {
        match self.status {
            Status::Completed => true,
            Status::CacheHit => false,
            Status::Failed | Status::Aborted => self.usage.is_known() || self.ttft.is_some(),
        }
    }

    /// Time per output token after the first, if both TTFT and output tokens are known.
    pub fn tpot(&self) -> Option<Duration> {
        let (ttft, tokens) = (self.ttft?, self.usage.completion?);
        let after_first = u32::try_from(tokens.checked_sub(1)?).ok().filter(|n| *n > 0)?;
        Some(self.duration.saturating_sub(ttft) / after_first)
    }
}
