//! A model: a system name, offered by one or more providers under a remote id.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::label::{LabelValue, ModelType};
use super::provider::Provider;
use super::usage::Price;

/// One (model, provider) pair: a place a request can be sent to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Row id of the model entry.
    pub id: i64,
    /// The name callers use; also the label.
    pub system_name: LabelValue,
    /// The name the provider uses.
    pub remote_id: String,
    pub model_type: ModelType,
    pub price: Price,
    /// Share of the traffic relative to the other providers of this model; 0: only when named or when the others fail.
    pub weight: u32,
    pub slo: Slo,
    pub created_at: DateTime<Utc>,
    pub provider: Arc<Provider>,
}

/// Latency targets of a model; a completion within both counts as goodput.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slo {
    /// Time to the first content token.
    pub ttft: Option<Duration>,
    /// Time per output token after the first.
    pub tpot: Option<Duration>,
}
