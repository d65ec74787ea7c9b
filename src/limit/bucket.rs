//! The arithmetic of one token bucket, in integers, so that memory and Redis agree and nothing is lost to rounding.
//!
//! A bucket counts in *parts*: one sixty-millionth of a request or token. A limit of `n` per minute then refills exactly
//! `n` parts per microsecond. Times are microseconds on a clock of the caller's choosing.

use std::time::Duration;

use super::{BucketState, Burst};

/// Parts in one request or token: microseconds in a minute.
pub(super) const PARTS: i64 = 60_000_000;

/// The longest debt, in minutes of refill. A provider that reports an absurd usage must not lock a key out for years.
pub(super) const MAX_DEBT_MINUTES: i64 = 24 * 60;

/// A larger capacity is as good as no limit, and Redis' scripts count in floats, which round upwards near the end of an
/// `i64`.
const MAX_CAPACITY: i64 = 1 << 62;

/// The wait at a limit of zero: the limit must be raised first, so retry in a minute.
const NEVER: Duration = Duration::from_secs(60);

/// How fast a bucket refills and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// Requests or tokens per minute, which is parts per microsecond.
    pub(super) limit: u32,
    /// In parts. At least one whole request, unless the limit is zero.
    pub(super) capacity: i64,
}

impl Rate {
    pub(super) fn new(limit: u32, burst: Burst) -> Self {
        let capacity = i64::from(limit).saturating_mul(burst.thousandths()).saturating_mul(PARTS / 1000);
        Self { limit, capacity: if limit == 0 { 0 } else { capacity.clamp(PARTS, MAX_CAPACITY) } }
    }

    /// The limit that went with another `capacity`, in parts per microsecond. It assumes the same burst, which is not
    /// stored and changes only with a restart.
    fn limit_of(&self, capacity: i64) -> i128 {
        match self.capacity {
            0 => 0,
            own => i128::from(self.limit) * i128::from(capacity) / i128::from(own),
        }
    }

    /// The lowest balance a charge may leave, in parts.
    pub(super) fn floor(&self) -> i64 {
        i64::from(self.limit).saturating_mul(PARTS).saturating_mul(MAX_DEBT_MINUTES).saturating_neg()
    }

    /// Microseconds until `balance` has grown to `wanted` parts, rounded up; `None`: never.
    fn micros_until(&self, balance: i64, wanted: i64) -> Option<u64> {
        let missing = i128::from(wanted) - i128::from(balance);
        match (missing, self.limit) {
            (..=0, _) => Some(0),
            (_, 0) => None,
            (missing, limit) => {
                let limit = i128::from(limit);
                Some(u64::try_from((missing + limit - 1) / limit).unwrap_or(u64::MAX))
            }
        }
    }

    /// How long until `balance` has grown to `wanted` parts.
    pub(super) fn wait(&self, balance: i64, wanted: i64) -> Duration {
        self.micros_until(balance, wanted).map_or(NEVER, Duration::from_micros)
    }

    /// The state to report of a bucket that holds `balance` parts.
    pub(super) fn state(&self, balance: i64) -> BucketState {
        let used = (i128::from(self.capacity) - i128::from(balance)).max(0);
        let parts = i128::from(PARTS);
        BucketState {
            limit: self.limit,
            remaining: u64::try_from(balance / PARTS).unwrap_or(0),
            used: u64::try_from((used + parts - 1) / parts).unwrap_or(u64::MAX),
            reset: self.wait(balance, self.capacity),
        }
    }
}

/// One bucket. It starts full, so a bucket that has been full again may be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    /// In parts; negative: debt.
    pub(super) balance: i64,
    /// The capacity that `balance` was counted against, in parts.
    capacity: i64,
    /// When `balance` was right, in microseconds.
    at: u64,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: u64) -> Self {
        Self { balance: rate.capacity, capacity: rate.capacity, at: now }
    }

    /// A bucket that held `balance` parts at `now`.
    pub(super) fn holding(rate: Rate, balance: i64, now: u64) -> Self {
        Self { balance: balance.min(rate.capacity), capacity: rate.capacity, at: now }
    }

    /// Refills up to `now`. When the limit has changed, the time until now refills at the old one; then the filled
    /// share is kept (a full bucket stays full, an empty one empty) and so is a debt, token by token. A clock that went
    /// back adds nothing.
    pub(super) fn advance(&mut self, rate: Rate, now: u64) {
        if self.capacity != rate.capacity {
            self.refill(rate.limit_of(self.capacity), self.capacity, now);
            if self.capacity == 0 {
                // Full, as a bucket that was never used, but for what was owed before the limit became zero.
                self.balance = if self.balance < 0 { self.balance } else { rate.capacity };
            } else if self.balance > 0 {
                let scaled = i128::from(self.balance) * i128::from(rate.capacity) / i128::from(self.capacity);
                self.balance = i64::try_from(scaled).unwrap_or(rate.capacity);
            }
            self.capacity = rate.capacity;
        }
        self.refill(i128::from(rate.limit), rate.capacity, now);
    }

    fn refill(&mut self, limit: i128, capacity: i64, now: u64) {
        let elapsed = now.saturating_sub(self.at);
        let balance = (i128::from(self.balance) + i128::from(elapsed) * limit).min(i128::from(capacity));
        self.balance = i64::try_from(balance).unwrap_or(capacity);
        self.at = self.at.max(now);
    }

    /// Whether nothing would be lost by forgetting this bucket at `now`.
    pub(super) fn is_full(mut self, rate: Rate, now: u64) -> bool {
        self.advance(rate, now);
        self.balance >= rate.capacity
    }

    /// Takes one request; the caller has checked the balance.
    pub(super) fn take(&mut self) {
        self.balance = self.balance.saturating_sub(PARTS);
    }

    /// Takes `tokens`, into debt if need be.
    pub(super) fn charge(&mut self, rate: Rate, tokens: u64) {
        let parts = i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(PARTS);
        self.balance = self.balance.saturating_sub(parts).max(rate.floor().min(self.balance));
    }
}
