//! Limits in this process alone: the default, and the fallback while Redis is away.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use papaya::HashMap;
use parking_lot::Mutex;

use super::bucket::{Bucket, PARTS, Rate};
use super::{Burst, Decision, KeyUsage, LimitState};
use crate::domain::key::Limits;
use crate::domain::label::LimitType;

/// The map is first swept when it has grown to this many keys, and then at twice the number left.
const FIRST_SWEEP: usize = 1024;

/// Token buckets per key id. A decision costs one map look-up and one short lock; only a key's first request allocates.
#[derive(Debug)]
pub struct MemoryLimiter {
    burst: Burst,
    started: Instant,
    keys: HashMap<i64, Mutex<Entry>, RandomState>,
    sweep_at: AtomicUsize,
}

/// One key's buckets. A missing bucket is a full one.
#[derive(Debug, Default)]
struct Entry {
    rpm: Option<Bucket>,
    tpm: Option<Bucket>,
    /// The limits last seen, for [`MemoryLimiter::recent_usage`].
    limits: Limits,
    /// Whether the key was used, or still showed usage, since the usage was last read.
    recent: bool,
    /// Taken out of the map by a sweep: a thread that still holds it must look up the key again.
    swept: bool,
    /// Consumed here while Redis was away, and not yet reported to it.
    owed: Owed,
}

/// One key's consumption that Redis does not know of.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owed {
    pub(super) requests: u64,
    pub(super) tokens: u64,
}

impl Owed {
    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl MemoryLimiter {
    /// Every bucket holds `burst` minutes' worth.
    pub fn new(burst: Burst) -> Self {
        Self {
            burst,
            started: Instant::now(),
            keys: HashMap::default(),
            sweep_at: AtomicUsize::new(FIRST_SWEEP),
        }
    }

    /// Decides on one request and, if it is allowed, takes it. A refused request takes nothing.
    pub fn admit(&self, key_id: i64, limits: Limits) -> Decision {
        self.admit_at(key_id, limits, Instant::now())
    }

    pub(super) fn admit_at(&self, key_id: i64, limits: Limits, now: Instant) -> Decision {
        self.decide_at(key_id, limits, now, false)
    }

    /// [`Self::admit`] in Redis' place. With `owed` the request is remembered, to report it to Redis when it is back.
    pub(super) fn stand_in(&self, key_id: i64, limits: Limits, owed: bool) -> Decision {
        self.decide_at(key_id, limits, Instant::now(), owed)
    }

    fn decide_at(&self, key_id: i64, limits: Limits, now: Instant, owed: bool) -> Decision {
        if limits == Limits::default() {
            return Decision::unlimited();
        }
        let now = self.micros(now);
        self.with_entry(key_id, now, |entry| {
            entry.see(limits);
            let rpm = entry.bucket(LimitType::Rpm, limits.rpm, self.burst, now);
            let rpm = rpm.map(|(rate, bucket)| (rate, bucket.balance));
            let tpm = entry.bucket(LimitType::Tpm, limits.tpm, self.burst, now);
            let tpm = tpm.map(|(rate, bucket)| (rate, bucket.balance));
            let decision = decide(rpm, tpm);
            if decision.allowed()
                && let Some(bucket) = &mut entry.rpm
                && limits.rpm.is_some()
            {
                bucket.take();
                if owed {
                    entry.owed.requests += 1;
                }
            }
            decision
        })
    }

    /// Charges the tokens of a finished request, into debt if need be. `limits` are those that it came under; returns
    /// those that it was charged under.
    pub fn charge(&self, key_id: i64, limits: Limits, tokens: u64) -> Limits {
        self.charge_at(key_id, limits, tokens, Instant::now())
    }

    pub(super) fn charge_at(&self, key_id: i64, limits: Limits, tokens: u64, now: Instant) -> Limits {
        if limits.tpm.is_none() || tokens == 0 {
            return limits;
        }
        let now = self.micros(now);
        self.with_entry(key_id, now, |entry| {
            // The key's limits may have changed since, and other requests have come under the new ones. The bucket must not
            // change back for this one: a token would count by the ratio of the limits.
            let known = if entry.limits == Limits::default() { limits } else { entry.limits };
            entry.see(known);
            if let Some((rate, bucket)) = entry.bucket(LimitType::Tpm, known.tpm, self.burst, now) {
                bucket.charge(rate, tokens);
            }
            known
        })
    }

    /// Remembers consumption that could not be reported to Redis.
    pub(super) fn owe(&self, key_id: i64, limits: Limits, owed: Owed) {
        self.with_entry(key_id, self.micros(Instant::now()), |entry| {
            entry.see(limits);
            entry.owed.requests = entry.owed.requests.saturating_add(owed.requests);
            entry.owed.tokens = entry.owed.tokens.saturating_add(owed.tokens);
        });
    }

    /// Takes all consumption not yet reported to Redis, for the caller to report.
    pub(super) fn take_owed(&self) -> Vec<(i64, Limits, Owed)> {
        let mut all = Vec::new();
        for (&key_id, entry) in &self.keys.pin() {
            let mut entry = entry.lock();
            if !entry.owed.is_nothing() {
                all.push((key_id, entry.limits, std::mem::take(&mut entry.owed)));
            }
        }
        all
    }

    /// Adopts Redis' balances of a key, so that this limiter can go on from there when Redis goes away.
    pub(super) fn mirror(&self, key_id: i64, limits: Limits, rpm: Option<i64>, tpm: Option<i64>) {
        let now = self.micros(Instant::now());
        self.with_entry(key_id, now, |entry| {
            entry.see(limits);
            let slots = [(&mut entry.rpm, limits.rpm, rpm), (&mut entry.tpm, limits.tpm, tpm)];
            for (bucket, limit, balance) in slots {
                if let (Some(limit), Some(balance)) = (limit, balance) {
                    *bucket = Some(Bucket::holding(Rate::new(limit, self.burst), balance, now));
                }
            }
        });
    }

    /// The keys that [`Self::recent_usage`] would report, with their limits.
    pub(super) fn recent_keys(&self) -> Vec<(i64, Limits)> {
        let keys = self.keys.pin();
        let recent = keys.iter().filter_map(|(&key_id, entry)| {
            let entry = entry.lock();
            entry.recent.then_some((key_id, entry.limits))
        });
        recent.collect()
    }

    pub(super) fn burst(&self) -> Burst {
        self.burst
    }

    /// The usage of one key; zero if the key was never seen.
    pub fn usage(&self, key_id: i64, limits: Limits) -> KeyUsage {
        self.usage_at(key_id, limits, Instant::now())
    }

    pub(super) fn usage_at(&self, key_id: i64, limits: Limits, now: Instant) -> KeyUsage {
        let now = self.micros(now);
        let guard = self.keys.pin();
        let entry = guard.get(&key_id).map(Mutex::lock);
        KeyUsage::new(key_id, state(entry.as_deref(), limits, self.burst, now))
    }

    /// The usage of every limited key that was used since the last call, and of keys that showed usage then: each key
    /// is reported down to zero, and then no more until it is used again.
    pub fn recent_usage(&self) -> Vec<KeyUsage> {
        self.recent_usage_at(Instant::now())
    }

    pub(super) fn recent_usage_at(&self, now: Instant) -> Vec<KeyUsage> {
        let now = self.micros(now);
        let mut usages = Vec::new();
        for (&key_id, entry) in &self.keys.pin() {
            let mut entry = entry.lock();
            if entry.recent {
                let usage = KeyUsage::new(key_id, state(Some(&entry), entry.limits, self.burst, now));
                entry.recent = !usage.is_idle();
                usages.push(usage);
            }
        }
        usages
    }

    /// Keys held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    #[cfg(test)]
    pub(super) fn sweep_at(&self, now: Instant) {
        self.sweep(self.micros(now));
    }

    /// Forgets every key whose buckets are full: a missing bucket is a full one, so nothing is lost.
    fn sweep(&self, now: u64) {
        let keys = self.keys.pin();
        for (key_id, entry) in &keys {
            let mut entry = entry.lock();
            // If another thread swept it, the map now holds a new entry under this key.
            if !entry.swept && entry.is_idle(self.burst, now) {
                entry.swept = true;
                drop(entry);
                keys.remove(key_id);
            }
        }
        self.sweep_at.store((keys.len() * 2).max(FIRST_SWEEP), Ordering::Relaxed);
    }

    /// Runs `act` on a key's entry, made if missing. The lock is held for a few arithmetic operations.
    fn with_entry<T>(&self, key_id: i64, now: u64, act: impl Fn(&mut Entry) -> T) -> T {
        let keys = self.keys.pin();
        loop {
            let entry = match keys.get(&key_id) {
                Some(entry) => entry,
                None => {
                    if keys.len() >= self.sweep_at.load(Ordering::Relaxed) {
                        self.sweep(now);
                    }
                    keys.get_or_insert_with(key_id, Mutex::default)
                }
            };
            let mut entry = entry.lock();
            if !entry.swept {
                return act(&mut entry);
            }
            // A sweep marked it and is about to remove it: the lock is free again in a moment.
            drop(entry);
            std::hint::spin_loop();
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Entry {
    fn see(&mut self, limits: Limits) {
        self.limits = limits;
        self.recent = true;
    }

    /// The bucket for a limit, refilled up to `now`; `None` when there is no such limit.
    fn bucket(
        &mut self,
        kind: LimitType,
        limit: Option<u32>,
        burst: Burst,
        now: u64,
    ) -> Option<(Rate, &mut Bucket)> {
        let rate = Rate::new(limit?, burst);
        let slot = match kind {
            LimitType::Rpm => &mut self.rpm,
            LimitType::Tpm => &mut self.tpm,
        };
        let bucket = slot.get_or_insert_with(|| Bucket::full(rate, now));
        bucket.advance(rate, now);
        Some((rate, bucket))
    }

    fn is_idle(&self, burst: Burst, now: u64) -> bool {
        let full = |bucket: Option<Bucket>, limit: Option<u32>| match (bucket, limit) {
            (Some(bucket), Some(limit)) => bucket.is_full(Rate::new(limit, burst), now),
            // Without a limit the bucket is meaningless.
            _ => true,
        };
        !self.recent
            && self.owed.is_nothing()
            && full(self.rpm, self.limits.rpm)
            && full(self.tpm, self.limits.tpm)
    }
}

/// The rule itself: a request needs one whole request, and a positive balance of tokens. Both limits are checked before
/// either is taken from, and the wait is the longer one.
pub(super) fn decide(rpm: Option<(Rate, i64)>, tpm: Option<(Rate, i64)>) -> Decision {
    let wait = |bucket: Option<(Rate, i64)>, wanted: i64| {
        bucket.filter(|(_, balance)| *balance < wanted).map(|(rate, balance)| rate.wait(balance, wanted))
    };
    let (rpm_wait, tpm_wait) = (wait(rpm, PARTS), wait(tpm, 1));
    let refused_by = match (rpm_wait, tpm_wait) {
        (None, None) => None,
        (Some(_), _) => Some(LimitType::Rpm),
        (None, Some(_)) => Some(LimitType::Tpm),
    };
    let taken = if refused_by.is_none() { PARTS } else { 0 };
    Decision {
        refused_by,
        retry_after: rpm_wait.max(tpm_wait).unwrap_or(Duration::ZERO),
        state: LimitState {
            rpm: rpm.map(|(rate, balance)| rate.state(balance - taken)),
            tpm: tpm.map(|(rate, balance)| rate.state(balance)),
        },
    }
}

fn state(entry: Option<&Entry>, limits: Limits, burst: Burst, now: u64) -> LimitState {
    let of = |limit: Option<u32>, bucket: Option<Bucket>| {
        let rate = Rate::new(limit?, burst);
        let mut bucket = bucket.unwrap_or_else(|| Bucket::full(rate, now));
        bucket.advance(rate, now);
        Some(rate.state(bucket.balance))
    };
    LimitState {
        rpm: of(limits.rpm, entry.and_then(|entry| entry.rpm)),
        tpm: of(limits.tpm, entry.and_then(|entry| entry.tpm)),
    }
}
