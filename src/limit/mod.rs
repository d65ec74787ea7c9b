//! Rate limits per key: requests per minute, taken before the call, and tokens per minute, checked before it and charged
//! after it, with debt.
//!
//! Both are token buckets that hold `limit × burst` and refill at `limit / 60` per second. They live in this process
//! ([`memory`]) or, when several replicas share them, in Redis.

mod bucket;
mod headers;
mod memory;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use headers::{headers, retry_after_seconds, state_headers};
pub use memory::MemoryLimiter;

use crate::domain::key::ApiKey;
use crate::domain::label::LimitType;

/// Where the buckets live.
#[derive(Debug)]
pub enum Limiter {
    /// In this process.
    Memory(MemoryLimiter),
}

impl Limiter {
    /// A limiter for one process.
    pub fn memory(burst: Burst) -> Self {
        Self::Memory(MemoryLimiter::new(burst))
    }

    /// Decides on one request of `key` and, if it is allowed, takes it. Never fails, and never waits longer than the Redis
    /// timeout.
    pub async fn admit(&self, key: &ApiKey) -> Decision {
        match self {
            Self::Memory(memory) => memory.admit(key.id, key.limits),
        }
    }

    /// Charges the tokens of a finished request (prompt and completion together), into debt if need be. Never waits.
    pub fn charge(&self, key: &ApiKey, tokens: u64) {
        match self {
            Self::Memory(memory) => memory.charge(key.id, key.limits, tokens),
        }
    }

    /// What one key has used, for the admin API.
    pub async fn usage(&self, key: &ApiKey) -> KeyUsage {
        match self {
            Self::Memory(memory) => memory.usage(key.id, key.limits),
        }
    }

    /// The usage of every limited key that was used since the last call, and of those that still showed usage then: for
    /// the gauges. A key that has been deleted meanwhile may be among them.
    pub async fn recent_usage(&self) -> Vec<KeyUsage> {
        match self {
            Self::Memory(memory) => memory.recent_usage(),
        }
    }
}

/// How many minutes' worth a bucket holds: 0.001 to 1000. The reference system's 3 is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst(u32);

impl Burst {
    /// `None` when `minutes` is out of range. Kept to three decimals.
    pub fn new(minutes: f64) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range is checked here"
        )]
        (0.001..=1000.0).contains(&minutes).then(|| Self((minutes * 1000.0).round() as u32))
    }

    fn thousandths(self) -> i64 {
        i64::from(self.0)
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self(3000)
    }
}

/// The answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Which limit said no; `rpm` when both did. `None`: allowed.
    pub refused_by: Option<LimitType>,
    /// How long until the same request would be allowed, if nothing else comes; zero when it was allowed.
    pub retry_after: Duration,
    /// The buckets after this decision.
    pub state: LimitState,
}

impl Decision {
    /// Whether the request may go on.
    pub fn allowed(&self) -> bool {
        self.refused_by.is_none()
    }

    fn unlimited() -> Self {
        Self { refused_by: None, retry_after: Duration::ZERO, state: LimitState::default() }
    }
}

/// A key's buckets; `None`: no such limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitState {
    /// Requests per minute.
    pub rpm: Option<BucketState>,
    /// Tokens per minute.
    pub tpm: Option<BucketState>,
}

/// One bucket at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketState {
    /// The configured limit, per minute.
    pub limit: u32,
    /// Whole requests or tokens that are there to take, up to `limit × burst`; 0 in debt.
    pub remaining: u64,
    /// What is missing from a full bucket, rounded up; more than the bucket holds when in debt.
    pub used: u64,
    /// The time until the bucket is full again.
    pub reset: Duration,
}

/// What one key has used: the shape of the admin API and of the usage gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage {
    /// The key's id.
    pub key_id: i64,
    /// Requests; `None`: no such limit.
    pub rpm: Option<Usage>,
    /// Tokens; `None`: no such limit.
    pub tpm: Option<Usage>,
}

/// One limit's usage, as the reference system's admin API gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Consumed and not yet refilled: what is missing from a full bucket. Thus 0 for a key that was idle long enough, up
    /// to `limit × burst`, and beyond that when tokens are owed. A steady caller at the limit holds it where it is.
    pub current: u64,
    /// The configured limit, per minute.
    pub limit: u32,
    /// What may be taken now, at most `limit` (the burst is not shown here, as in the reference).
    pub remaining: u64,
}

impl KeyUsage {
    fn new(key_id: i64, state: LimitState) -> Self {
        let usage = |bucket: BucketState| Usage {
            current: bucket.used,
            limit: bucket.limit,
            remaining: bucket.remaining.min(u64::from(bucket.limit)),
        };
        Self { key_id, rpm: state.rpm.map(usage), tpm: state.tpm.map(usage) }
    }

    fn is_idle(&self) -> bool {
        [self.rpm, self.tpm].iter().flatten().all(|usage| usage.current == 0)
    }
}
