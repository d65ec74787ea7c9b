//! Rate limits per key: requests per minute, taken before the call, and tokens per minute, checked before it and charged
//! after it, with debt.
//!
//! Both are token buckets that hold `limit × burst` and refill at `limit / 60` per second. They live in this process
//! ([`MemoryLimiter`]) or, when several replicas share them, in Redis ([`RedisLimiter`]), with this process standing in
//! while Redis is away. The same link to Redis carries the other shared state: rejection counts that outlive the
//! process ([`Rejections`]), announcements, locks and leases ([`Coordination`]).

mod bucket;
mod coordination;
mod headers;
mod link;
mod memory;
mod redis;
mod rejections;
mod target;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::redis::RedisLimiter;
pub use coordination::{Coordination, Lease, Lock, LockGuard, Subscription};
pub use headers::{add_state, headers, names as header_names, retry_after_seconds};
pub use link::RedisLink;
pub use memory::MemoryLimiter;
pub use rejections::Rejections;

use crate::domain::key::{ApiKey, Secret};
use crate::domain::label::{LabelValue, LimitType, RedisOp};

/// Settings of this module.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A bucket's capacity in minutes of refill.
    pub burst: Burst,
    /// `REDIS_URL`; `None`: everything stays in this process.
    pub redis_url: Option<Secret>,
    /// The longest time a request waits for Redis. 50 ms is a hundred times a healthy round trip, and little beside a
    /// model's first token.
    pub redis_timeout: Duration,
    /// Identifies this replica's rejection counts: the same after a restart, different from every other replica's.
    pub instance_id: String,
}

impl Settings {
    /// The default of [`Settings::redis_timeout`].
    pub const REDIS_TIMEOUT: Duration = Duration::from_millis(50);
}

/// Adds rejections to the exposed counter of a type and a comment.
pub type ExposeRejections = Arc<dyn Fn(LimitType, &LabelValue, u64) + Send + Sync>;

/// Callbacks for metrics. Called from request paths and from background tasks: they must neither block nor panic.
#[derive(Clone)]
pub struct Observer {
    /// Expose this many more rejections. The first call for a comment may carry a count from before a restart, so the
    /// series must not have been exposed at 0 before it; the comment's other limit type may start at 0.
    pub rejections_exposed: ExposeRejections,
    /// No more seeds will come: series that are exposed from now on may start at 0.
    pub rejections_seeded: Arc<dyn Fn() + Send + Sync>,
    /// Another running process keeps its rejections under our `instance_id`. Called each time that is noticed.
    pub instance_shared: Arc<dyn Fn() + Send + Sync>,
    /// Redis came (true) or went.
    pub redis_up: Arc<dyn Fn(bool) + Send + Sync>,
    /// An operation failed.
    pub redis_error: Arc<dyn Fn(RedisOp) + Send + Sync>,
}

impl Default for Observer {
    /// An observer that does nothing.
    fn default() -> Self {
        Self {
            rejections_exposed: Arc::new(|_, _, _| {}),
            rejections_seeded: Arc::new(|| {}),
            instance_shared: Arc::new(|| {}),
            redis_up: Arc::new(|_| {}),
            redis_error: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// `REDIS_URL` cannot be used. Does not repeat the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("REDIS_URL cannot be used: {0}")]
pub struct InvalidRedisUrl(String);

impl InvalidRedisUrl {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// Whether a `REDIS_URL` can be read; nothing is connected.
///
/// # Errors
/// [`InvalidRedisUrl`].
pub fn check_url(url: &Secret) -> Result<(), InvalidRedisUrl> {
    target::Target::parse(url.expose()).map(drop)
}

/// Whole milliseconds, in which Redis takes times to live.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// All services of this module, started.
#[derive(Debug)]
pub struct LimitServices {
    /// Decides on requests.
    pub limiter: Limiter,
    /// Counts refused requests.
    pub rejections: Rejections,
    /// Coordination with other replicas; `None` without Redis.
    pub coordination: Option<Coordination>,
}

impl LimitServices {
    /// Starts with Redis or without. With it, this waits until the rejection counts are seeded; if Redis does not answer
    /// within two seconds, it goes on without and catches up later.
    ///
    /// # Errors
    ///
    /// When `REDIS_URL` is not a Redis URL. A Redis that cannot be reached is no error.
    pub async fn start(settings: &Settings, observer: Observer) -> Result<Self, InvalidRedisUrl> {
        let Some(url) = &settings.redis_url else {
            return Ok(Self {
                limiter: Limiter::memory(settings.burst),
                rejections: Rejections::in_memory(observer),
                coordination: None,
            });
        };
        let link = RedisLink::start(url, settings.redis_timeout, observer.clone()).await?;
        Ok(Self {
            limiter: Limiter::Redis(RedisLimiter::start(link.clone(), settings.burst)),
            rejections: Rejections::start(link.clone(), &settings.instance_id, observer).await,
            coordination: Some(Coordination::new(link)),
        })
    }

    /// Sends pending charges, rejections and releases of locks. Waits for Redis as long as one operation may take, but
    /// not for its return. Call it after the last request has ended.
    pub async fn flush(&self) {
        self.limiter.flush().await;
        self.rejections.flush().await;
        if let Some(coordination) = &self.coordination {
            coordination.flush().await;
        }
    }
}

/// Where the buckets live.
#[derive(Debug)]
pub enum Limiter {
    /// In this process.
    Memory(MemoryLimiter),
    /// In Redis, shared by all replicas; in this process while Redis is away.
    Redis(RedisLimiter),
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
            // Boxed, so that requests do not reserve space for it where there is no Redis.
            Self::Redis(redis) => Box::pin(redis.admit(key.id, key.limits)).await,
        }
    }

    /// Charges the tokens of a finished request (prompt and completion together), into debt if need be. Never waits.
    pub fn charge(&self, key: &ApiKey, tokens: u64) {
        match self {
            Self::Memory(memory) => {
                memory.charge(key.id, key.limits, tokens);
            }
            Self::Redis(redis) => redis.charge(key.id, key.limits, tokens),
        }
    }

    /// The usage of one key, for the admin API.
    pub async fn usage(&self, key: &ApiKey) -> KeyUsage {
        match self {
            Self::Memory(memory) => memory.usage(key.id, key.limits),
            Self::Redis(redis) => redis.usage(key.id, key.limits).await,
        }
    }

    /// The usage of every limited key that was used here since the last call, and of keys that still showed usage then:
    /// for the gauges. A key that has been deleted meanwhile may be among them. With Redis it is the usage over all
    /// replicas, so every replica that serves a key reports the same.
    pub async fn recent_usage(&self) -> Vec<KeyUsage> {
        match self {
            Self::Memory(memory) => memory.recent_usage(),
            Self::Redis(redis) => redis.recent_usage().await,
        }
    }

    /// Waits until the charges made so far have reached Redis, or have been put aside for its return.
    pub async fn flush(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(redis) => redis.flush().await,
        }
    }
}

/// A bucket's capacity in minutes of refill: 0.001 to 1000. The reference system's 3 is the default.
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
    /// The limit that refused; `rpm` when both did. `None`: allowed.
    pub refused_by: Option<LimitType>,
    /// Time until the same request would be allowed, if no other comes; zero when it was allowed.
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
    /// Whole requests or tokens available, up to `limit × burst`; 0 in debt.
    pub remaining: u64,
    /// The amount missing from a full bucket, rounded up; more than the capacity when in debt.
    pub used: u64,
    /// The time until the bucket is full again.
    pub reset: Duration,
}

/// One key's usage, in the shape of the admin API and of the usage gauges.
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
    /// Consumed and not yet refilled: the amount missing from a full bucket. Thus 0 for a key that was idle long
    /// enough, up to `limit × burst`, and beyond that when tokens are owed. A steady caller at the limit holds it where
    /// it is.
    pub current: u64,
    /// The configured limit, per minute.
    pub limit: u32,
    /// The amount available now, at most `limit` (the burst is not shown here, as in the reference).
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
