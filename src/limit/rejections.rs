//! Counts of refused requests that outlive the process.
//!
//! Every instance keeps its counts in its own hash in Redis, and seeds its counters from there before it serves. A
//! rejection is exposed when Redis has acknowledged it, so the exposed value never exceeds the stored one and a
//! restart, after `kill -9` too, continues where the scrape left off. The request path only adds to a number in memory.
//!
//! Outages, in the order of their rarity:
//!
//! * Redis goes away: rejections are exposed immediately, and sent when it is back.
//! * An answer was lost, so that a batch may or may not have arrived: it is sent again under its number, by which Redis
//!   recognises a batch that had arrived.
//! * Redis comes back empty, or with an older snapshot: counts that it had acknowledged are stored again.
//! * Redis is away while we start: a series that is refused before Redis is back begins at 0, which Prometheus takes
//!   for the reset that it is. Its stored count must never be added to it (that would be a spike of old rejections), in
//!   this process or at a restart, so it is marked as *hidden*: it stays in the stored total and is subtracted when
//!   seeding. Series that were not refused meanwhile are simply seeded late.

mod hash;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use self::hash::{Change, HEARTBEAT, Hash, Series, Writer};
use super::Observer;
use super::link::{Failure, RedisLink};
use crate::domain::label::{LabelValue, LimitType};

/// Series sent in one batch.
const BATCH: usize = 500;

/// Counts rejections. One per process.
#[derive(Debug)]
pub struct Rejections {
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Memory(Observer),
    Redis { shared: Arc<Shared>, _sender: AbortOnDropHandle<()> },
}

#[derive(Debug)]
struct Shared {
    observer: Observer,
    hash: Hash,
    counts: Mutex<Counts>,
    wake: Notify,
    /// How many rejections have been exposed, through Redis or without it.
    done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    series: HashMap<Series, Count>,
    /// Series with rejections waiting or owed.
    dirty: Vec<Series>,
    /// Rejections ever.
    made: u64,
}

impl Counts {
    /// Adds to a series' waiting or owed count, and marks it dirty.
    fn change(&mut self, series: Series, add: impl FnOnce(&mut Count)) {
        let Self { series: all, dirty, .. } = self;
        match all.entry(series) {
            Entry::Occupied(mut known) => {
                if known.get().waiting == 0 && known.get().owed == 0 {
                    dirty.push(known.key().clone());
                }
                add(known.get_mut());
            }
            Entry::Vacant(new) => {
                dirty.push(new.key().clone());
                add(new.insert(Count::default()));
            }
        }
    }
}

/// The state of one series' rejections.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    /// Neither exposed nor sent.
    waiting: u64,
    /// Exposed, but Redis does not know.
    owed: u64,
    /// Whether anything was exposed in this process.
    exposed: bool,
    /// Acknowledged by Redis, in this process and earlier ones.
    stored: u64,
    /// The part of `stored` that must not be exposed.
    hidden: u64,
}

/// The batch being sent. Kept until it is acknowledged, and resent unchanged.
#[derive(Debug)]
struct Batch {
    number: u64,
    /// Whether Redis may have received it.
    sent: bool,
    /// The amount to add to each series, and the part of it that is still to be exposed.
    parts: Vec<(Series, u64, u64)>,
}

impl Rejections {
    /// Counts in this process only: exposed immediately.
    pub fn in_memory(observer: Observer) -> Self {
        (observer.rejections_seeded)();
        Self { backend: Backend::Memory(observer) }
    }

    /// Seeds the exposed counts from Redis, if it is there, and starts the task that keeps them. `instance` must be the
    /// same after a restart and different from every other replica's.
    pub async fn start(link: RedisLink, instance: &str, observer: Observer) -> Self {
        let status = link.status();
        let shared = Arc::new(Shared {
            observer,
            hash: Hash::new(link, instance),
            counts: Mutex::default(),
            wake: Notify::new(),
            done: watch::Sender::new(0),
        });
        let mut sender = Sender {
            shared: Arc::clone(&shared),
            status,
            seeded: false,
            number: 0,
            in_doubt: None,
            wrote: false,
        };
        sender.catch_up().await;
        let sender = tokio::spawn(sender.run());
        Self { backend: Backend::Redis { shared, _sender: AbortOnDropHandle::new(sender) } }
    }

    /// Counts one rejection. Never waits.
    pub fn rejected(&self, limit_type: LimitType, comment: &LabelValue) {
        match &self.backend {
            Backend::Memory(observer) => (observer.rejections_exposed)(limit_type, comment, 1),
            Backend::Redis { shared, .. } => {
                let mut counts = shared.counts.lock();
                counts.change((limit_type, comment.clone()), |count| count.waiting += 1);
                counts.made += 1;
                drop(counts);
                shared.wake.notify_one();
            }
        }
    }

    /// Waits until every rejection so far has been exposed, which with a healthy Redis means: stored.
    pub async fn flush(&self) {
        if let Backend::Redis { shared, .. } = &self.backend {
            let made = shared.counts.lock().made;
            // The sender lives in `self`.
            let _ = shared.done.subscribe().wait_for(|done| *done >= made).await;
        }
    }
}

impl Shared {
    fn expose(&self, (limit_type, comment): &Series, count: u64) {
        if count > 0 {
            (self.observer.rejections_exposed)(*limit_type, comment, count);
        }
    }

    /// Exposes all waiting rejections, and owes them to Redis.
    fn expose_waiting(&self) {
        let mut guard = self.counts.lock();
        let counts = &mut *guard;
        let mut exposed = Vec::new();
        for series in &counts.dirty {
            if let Some(count) = counts.series.get_mut(series)
                && count.waiting > 0
            {
                exposed.push((series.clone(), count.waiting));
                count.owed += std::mem::take(&mut count.waiting);
                count.exposed = true;
            }
        }
        let made = counts.made;
        drop(guard);
        for (series, count) in &exposed {
            self.expose(series, *count);
        }
        self.done.send_replace(made);
    }
}

/// The task that talks to Redis.
struct Sender {
    shared: Arc<Shared>,
    status: watch::Receiver<super::link::Status>,
    seeded: bool,
    /// The number of the last batch.
    number: u64,
    in_doubt: Option<Batch>,
    /// Whether this process has written to its hash.
    wrote: bool,
}

impl Sender {
    async fn run(mut self) {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.tick().await;
        loop {
            tokio::select! {
                () = self.shared.wake.notified() => self.send().await,
                _ = self.status.changed() => {
                    self.catch_up().await;
                    self.send().await;
                }
                _ = heartbeat.tick() => {
                    self.catch_up().await;
                    self.send().await;
                }
            }
        }
    }

    /// After Redis came up: seeds if that is still to be done, and stores again counts that it has lost.
    async fn catch_up(&mut self) {
        if !self.status.borrow_and_update().up {
            return;
        }
        if !self.seeded {
            match self.shared.hash.read().await {
                Ok(stored) => self.seed(stored),
                Err(error) => {
                    tracing::warn!(%error, "the rejection counts could not be read; trying again later");
                    return;
                }
            }
        }
        let known: Vec<Change> = {
            let counts = self.shared.counts.lock();
            let known = counts.series.iter().filter(|(_, count)| count.stored > 0).map(|(series, count)| {
                Change { series: series.clone(), add: 0, least: count.stored, hidden: count.hidden }
            });
            known.collect()
        };
        for changes in known.chunks(BATCH) {
            // On a failure the link is down again, and its return leads back here.
            let Ok(before) = self.shared.hash.store(0, changes).await else { return };
            self.look_at(before);
        }
    }

    fn seed(&mut self, stored: HashMap<Series, hash::Stored>) {
        self.seeded = true;
        let mut seeds = Vec::new();
        let mut counts = self.shared.counts.lock();
        // Exposing one type of a comment also exposes the other, at 0.
        let begun: HashSet<LabelValue> = (counts.series.iter())
            .filter(|(_, count)| count.exposed)
            .map(|((_, comment), _)| comment.clone())
            .collect();
        for (series, stored) in stored {
            let has_begun = begun.contains(&series.1);
            let count = counts.series.entry(series.clone()).or_default();
            count.stored = stored.count;
            if has_begun {
                count.exposed = true;
                count.hidden = stored.count;
            } else {
                count.hidden = stored.hidden;
                count.exposed = true;
                seeds.push((series, stored.count - stored.hidden));
            }
        }
        drop(counts);
        for (series, count) in &seeds {
            self.shared.expose(series, *count);
        }
        (self.shared.observer.rejections_seeded)();
    }

    /// Sends waiting rejections; exposes them when Redis has them, or cannot take them soon.
    async fn send(&mut self) {
        loop {
            if !self.seeded {
                self.shared.expose_waiting();
                return;
            }
            let (batch, upto) = match self.in_doubt.take() {
                Some(batch) => (batch, None),
                None => self.take(),
            };
            if !batch.parts.is_empty() {
                let sent = self.shared.hash.store(batch.number, &self.changes(&batch)).await;
                for (series, _, to_expose) in &batch.parts {
                    self.shared.expose(series, *to_expose);
                }
                match sent {
                    Ok(before) => self.look_at(before),
                    Err(failure) => {
                        self.put_aside(batch, &failure);
                        self.shared.expose_waiting();
                        return;
                    }
                }
                self.acknowledged(batch);
            }
            if let Some(upto) = upto {
                self.shared.done.send_replace(upto);
                return;
            }
        }
    }

    /// A process that has written since our last write is running beside us, under the name that should be ours alone.
    fn look_at(&mut self, before: Writer) {
        if self.wrote && before == Writer::Another {
            (self.shared.observer.instance_shared)();
        }
        self.wrote = true;
    }

    fn acknowledged(&self, batch: Batch) {
        let mut counts = self.shared.counts.lock();
        for (series, add, _) in batch.parts {
            let count = counts.series.entry(series).or_default();
            count.stored += add;
            count.exposed = true;
        }
    }

    /// Up to a batch of rejections that Redis does not have yet and, when that is all, how many rejections it covers.
    fn take(&mut self) -> (Batch, Option<u64>) {
        self.number += 1;
        let mut batch = Batch { number: self.number, sent: false, parts: Vec::new() };
        let mut guard = self.shared.counts.lock();
        let counts = &mut *guard;
        let rest = counts.dirty.len().saturating_sub(BATCH);
        for series in counts.dirty.drain(rest..) {
            if let Some(count) = counts.series.get_mut(&series) {
                batch.parts.push((series, count.waiting + count.owed, count.waiting));
                (count.waiting, count.owed) = (0, 0);
            }
        }
        (batch, (rest == 0).then_some(counts.made))
    }

    fn changes(&self, batch: &Batch) -> Vec<Change> {
        let counts = self.shared.counts.lock();
        let change = |(series, add, _): &(Series, u64, u64)| {
            let count = counts.series.get(series).copied().unwrap_or_default();
            Change { series: series.clone(), add: *add, least: count.stored + add, hidden: count.hidden }
        };
        batch.parts.iter().map(change).collect()
    }

    /// The batch has been exposed and not acknowledged. If it was never sent, its counts are simply owed; if it may
    /// have arrived, it is kept unchanged, to be sent again under its number.
    fn put_aside(&mut self, mut batch: Batch, failure: &Failure) {
        batch.sent |= !matches!(failure, Failure::Down);
        let mut counts = self.shared.counts.lock();
        for (series, add, to_expose) in &mut batch.parts {
            *to_expose = 0;
            if batch.sent {
                counts.series.entry(series.clone()).or_default().exposed = true;
            } else {
                counts.change(series.clone(), |count| {
                    count.exposed = true;
                    count.owed += *add;
                });
            }
        }
        drop(counts);
        self.in_doubt = batch.sent.then_some(batch);
    }
}
