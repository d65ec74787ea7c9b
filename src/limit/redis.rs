//! Limits that replicas share: the buckets live in Redis, and every decision is one script there, on its clock.
//!
//! A request costs one round trip on its way in, for both limits together, and one for its charge, which is not waited
//! for. While Redis is away this process decides alone, from the balances that Redis last reported for a key, or from a
//! full bucket for a key it has not seen. Each replica then enforces the whole limit by itself, so `n` replicas
//! together allow at most `n` times `limit × burst` and `n` times the refill during the outage. Their consumption is
//! reported to Redis when it is back: tokens in full, requests down to an empty bucket.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::{RedisError, Script};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::bucket::{MAX_DEBT_MINUTES, PARTS, Rate};
use super::coordination::PATIENCE;
use super::link::{Failure, RedisLink};
use super::memory::{MemoryLimiter, Owed, decide};
use super::{Burst, Decision, KeyUsage, LimitState};
use crate::domain::key::Limits;
use crate::domain::label::RedisOp;

/// Charges sent in one batch. They share the connection, so this is one write and one read, and little memory.
const BATCH: usize = 128;

/// The limiter for several replicas.
#[derive(Debug)]
pub struct RedisLimiter {
    shared: Arc<Shared>,
    _charger: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    link: RedisLink,
    /// Stands in while Redis is away, and mirrors it meanwhile.
    memory: MemoryLimiter,
    scripts: Scripts,
    charges: Charges,
}

#[derive(Debug)]
struct Scripts {
    admit: Script,
    settle: Script,
}

/// Charges on their way to Redis, added up per key: as many entries as there are keys, however slow Redis is.
#[derive(Debug)]
struct Charges {
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// How many charges have been sent, or put aside.
    done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_key: HashMap<i64, (Limits, u64)>,
    /// How many charges have been made, ever.
    made: u64,
}

impl RedisLimiter {
    /// Starts the task that sends the charges.
    pub fn start(link: RedisLink, burst: Burst) -> Self {
        let bucket = include_str!("lua/bucket.lua");
        let script = |text: &str| Script::new(&format!("{bucket}\n{text}"));
        let shared = Arc::new(Shared {
            link,
            memory: MemoryLimiter::new(burst),
            scripts: Scripts {
                admit: script(include_str!("lua/admit.lua")),
                settle: script(include_str!("lua/settle.lua")),
            },
            charges: Charges { waiting: Mutex::default(), wake: Notify::new(), done: watch::Sender::new(0) },
        });
        let charger = tokio::spawn(send_charges(Arc::clone(&shared)));
        Self { shared, _charger: AbortOnDropHandle::new(charger) }
    }

    /// As [`super::Limiter::admit`].
    pub async fn admit(&self, key_id: i64, limits: Limits) -> Decision {
        if limits == Limits::default() {
            return Decision::unlimited();
        }
        let shared = &*self.shared;
        match shared.ask(key_id, limits).await {
            Ok(balances) => {
                let decision = decide(balances.rpm, balances.tpm);
                let taken = if decision.allowed() { PARTS } else { 0 };
                let rpm = balances.rpm.map(|(_, balance)| balance - taken);
                shared.memory.mirror(key_id, limits, rpm, balances.tpm.map(|(_, balance)| balance));
                decision
            }
            // Redis may have taken a request that it did not answer in time: to count it twice is worse than to
            // forgive those of one timeout.
            Err(failure) => shared.memory.stand_in(key_id, limits, matches!(failure, Failure::Down)),
        }
    }

    /// As [`super::Limiter::charge`].
    pub fn charge(&self, key_id: i64, limits: Limits, tokens: u64) {
        if limits.tpm.is_none() || tokens == 0 {
            return;
        }
        // Here too, so that standing in starts from what is known. Redis' next answer overrides it.
        let limits = self.shared.memory.charge(key_id, limits, tokens);
        self.shared.charges.add(key_id, limits, tokens);
    }

    /// As [`super::Limiter::usage`].
    pub async fn usage(&self, key_id: i64, limits: Limits) -> KeyUsage {
        let shared = &*self.shared;
        let work = |connection| async move {
            let balances = shared.settle(connection, key_id, limits, Owed::default()).await?;
            Ok(balances.usage(key_id))
        };
        match shared.link.run(RedisOp::Usage, shared.link.timeout(), work).await {
            Ok(usage) => usage,
            Err(_) => shared.memory.usage(key_id, limits),
        }
    }

    /// As [`super::Limiter::recent_usage`].
    pub async fn recent_usage(&self) -> Vec<KeyUsage> {
        let shared = &*self.shared;
        // Asked first: the mirror must not forget a key as idle while it is being read.
        let keys = shared.memory.recent_keys();
        let mut usages = Vec::with_capacity(keys.len());
        // In batches, so that requests in between do not wait for thousands of answers.
        for batch in keys.chunks(BATCH) {
            let work = |connection: super::target::Connection| async move {
                let asked = batch.iter().map(|&(key_id, limits)| {
                    let connection = connection.clone();
                    async move {
                        (key_id, limits, shared.settle(connection, key_id, limits, Owed::default()).await)
                    }
                });
                let mut found = Vec::with_capacity(batch.len());
                for (key_id, limits, balances) in join_all(asked).await {
                    let balances = balances?;
                    let balance = |bucket: Option<(Rate, i64)>| bucket.map(|(_, balance)| balance);
                    shared.memory.mirror(key_id, limits, balance(balances.rpm), balance(balances.tpm));
                    found.push(balances.usage(key_id));
                }
                Ok(found)
            };
            match shared.link.run(RedisOp::Usage, PATIENCE.max(shared.link.timeout()), work).await {
                Ok(found) => usages.extend(found),
                Err(_) => return shared.memory.recent_usage(),
            }
        }
        // The mirror's report is not needed; reading it lets the mirror forget the keys that have become idle.
        shared.memory.recent_usage();
        usages
    }

    /// As [`super::Limiter::flush`].
    pub async fn flush(&self) {
        let made = self.shared.charges.waiting.lock().made;
        // The sender lives in `self`.
        let _ = self.shared.charges.done.subscribe().wait_for(|done| *done >= made).await;
    }
}

impl Shared {
    /// Asks Redis to decide.
    async fn ask(&self, key_id: i64, limits: Limits) -> Result<Balances, Failure> {
        let rates = Rates::new(limits, self.memory.burst());
        let work = |mut connection| async move {
            let mut call = self.scripts.admit.prepare_invoke();
            for key in keys(key_id) {
                call.key(key);
            }
            for rate in [rates.rpm, rates.tpm] {
                match rate {
                    Some(rate) => call.arg(rate.limit).arg(rate.capacity),
                    None => call.arg("").arg(""),
                };
            }
            let answer: (String, String) = call.invoke_async(&mut connection).await?;
            Balances::read(rates, &answer)
        };
        self.link.run(RedisOp::Admit, self.link.timeout(), work).await
    }

    /// Takes consumption that has already happened; with none, only reads the balances.
    async fn settle(
        &self,
        mut connection: super::target::Connection,
        key_id: i64,
        limits: Limits,
        consumed: Owed,
    ) -> Result<Balances, RedisError> {
        let rates = Rates::new(limits, self.memory.burst());
        let mut call = self.scripts.settle.prepare_invoke();
        for key in keys(key_id) {
            call.key(key);
        }
        // Requests are never owed beyond an empty bucket: a request that was admitted has had its answer.
        let requests = (rates.rpm, consumed.requests, 0);
        let tokens = (rates.tpm, consumed.tokens, MAX_DEBT_MINUTES);
        for (rate, amount, debt) in [requests, tokens] {
            match rate {
                Some(rate) => {
                    let parts = i64::try_from(amount).unwrap_or(i64::MAX).saturating_mul(PARTS);
                    call.arg(rate.limit).arg(rate.capacity).arg(parts).arg(debt)
                }
                None => call.arg("").arg("").arg("").arg(""),
            };
        }
        let answer: (String, String) = call.invoke_async(&mut connection).await?;
        Balances::read(rates, &answer)
    }

    /// Sends a batch at once. A charge that Redis may have received is not sent again: to charge twice is worse than to
    /// forgive one batch per outage.
    async fn settle_all(&self, batch: Vec<(i64, Limits, Owed)>) {
        let sent = &batch;
        let work = |connection: super::target::Connection| async move {
            let all = sent.iter().map(|&(key_id, limits, owed)| {
                let connection = connection.clone();
                async move { (key_id, self.settle(connection, key_id, limits, owed).await) }
            });
            let mut worst = Ok(());
            for (key_id, answer) in join_all(all).await {
                if let Err(error) = answer {
                    tracing::debug!(key_id, %error, "charge failed");
                    worst = Err(error);
                }
            }
            worst
        };
        if let Err(Failure::Down) = self.link.run(RedisOp::Charge, self.link.timeout(), work).await {
            for (key_id, limits, owed) in batch {
                self.memory.owe(key_id, limits, owed);
            }
        }
    }
}

/// Sends charges as they come, and after an outage the consumption during it.
async fn send_charges(shared: Arc<Shared>) {
    let mut status = shared.link.status();
    let mut settled = status.borrow_and_update().generation;
    loop {
        tokio::select! {
            () = shared.charges.wake.notified() => {}
            _ = status.changed() => {}
        }
        let now = *status.borrow_and_update();
        if now.up && now.generation != settled {
            settled = now.generation;
            let mut owed = shared.memory.take_owed();
            while !owed.is_empty() {
                let rest = owed.split_off(owed.len().min(BATCH));
                shared.settle_all(owed).await;
                owed = rest;
            }
        }
        loop {
            let (batch, upto) = shared.charges.take();
            if !batch.is_empty() {
                shared.settle_all(batch).await;
            }
            if let Some(upto) = upto {
                shared.charges.done.send_replace(upto);
                break;
            }
        }
    }
}

impl Charges {
    fn add(&self, key_id: i64, limits: Limits, tokens: u64) {
        let mut waiting = self.waiting.lock();
        let (known, sum) = waiting.by_key.entry(key_id).or_insert((limits, 0));
        *known = limits;
        *sum = sum.saturating_add(tokens);
        waiting.made += 1;
        drop(waiting);
        self.wake.notify_one();
    }

    /// Up to a batch of waiting charges and, when that is all, how many charges have thereby been handled.
    fn take(&self) -> (Vec<(i64, Limits, Owed)>, Option<u64>) {
        let mut waiting = self.waiting.lock();
        let keys: Vec<i64> = waiting.by_key.keys().copied().take(BATCH).collect();
        let mut batch = Vec::with_capacity(keys.len());
        for key_id in keys {
            if let Some((limits, tokens)) = waiting.by_key.remove(&key_id) {
                batch.push((key_id, limits, Owed { requests: 0, tokens }));
            }
        }
        let all = waiting.by_key.is_empty().then_some(waiting.made);
        (batch, all)
    }
}

/// The two rates of one key.
#[derive(Debug, Clone, Copy)]
struct Rates {
    rpm: Option<Rate>,
    tpm: Option<Rate>,
}

impl Rates {
    fn new(limits: Limits, burst: Burst) -> Self {
        let rate = |limit: Option<u32>| limit.map(|limit| Rate::new(limit, burst));
        Self { rpm: rate(limits.rpm), tpm: rate(limits.tpm) }
    }
}

/// A script's answer.
#[derive(Debug, Clone, Copy)]
struct Balances {
    rpm: Option<(Rate, i64)>,
    tpm: Option<(Rate, i64)>,
}

impl Balances {
    fn read(rates: Rates, (rpm, tpm): &(String, String)) -> Result<Self, RedisError> {
        let read = |rate: Option<Rate>, text: &str| match rate {
            None => Ok(None),
            Some(rate) => match text.parse::<i64>() {
                Ok(balance) => Ok(Some((rate, balance))),
                Err(_) => Err(RedisError::from((
                    redis::ErrorKind::UnexpectedReturnType,
                    "a balance is not a whole number",
                    text.to_owned(),
                ))),
            },
        };
        Ok(Self { rpm: read(rates.rpm, rpm)?, tpm: read(rates.tpm, tpm)? })
    }

    fn usage(&self, key_id: i64) -> KeyUsage {
        let state = |bucket: Option<(Rate, i64)>| bucket.map(|(rate, balance)| rate.state(balance));
        KeyUsage::new(key_id, LimitState { rpm: state(self.rpm), tpm: state(self.tpm) })
    }
}

/// Both buckets of a key carry the key's id as hash tag, so that Redis Cluster keeps them on one server.
fn keys(key_id: i64) -> [String; 2] {
    [format!("nexusgate:limit:{{{key_id}}}:rpm"), format!("nexusgate:limit:{{{key_id}}}:tpm")]
}
