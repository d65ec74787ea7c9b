//! Health of the providers: a circuit breaker and a concurrency limit for each.
//!
//! A breaker opens after [`FAILURES_TO_OPEN`] failures in a row, stays open for a while that doubles with every failed
//! probe, then lets one probe through (half-open); the probe's outcome closes or reopens it. While a probe takes longer
//! than that while, another one is let through: it may be a healthy provider's longest answer. An answer of 429 is not a
//! failure here: the provider works, it only wants less traffic.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::domain::label::{LabelValue, Outcome};
use crate::domain::provider::Provider;
use crate::telemetry::Telemetry;
use crate::telemetry::events::ProviderUpChanged;

/// Failures in a row that open the breaker: enough not to be chance, few enough to spare most callers (Envoy's outlier
/// detection has the same default).
const FAILURES_TO_OPEN: u32 = 5;

/// How long the breaker stays open: the first time, and at most.
const FIRST_OPEN: Duration = Duration::from_secs(5);
const LONGEST_OPEN: Duration = Duration::from_secs(60);

/// The health of all providers.
pub(super) struct Health {
    telemetry: Arc<Telemetry>,
    providers: papaya::HashMap<i64, Arc<ProviderHealth>, RandomState>,
}

struct ProviderHealth {
    telemetry: Arc<Telemetry>,
    name: LabelValue,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// Set while the breaker is open.
    open: Option<Open>,
    /// Calls under way.
    active: u32,
    /// Probes so far.
    probes: u64,
}

struct Open {
    /// When the next probe is let through.
    until: Instant,
    lasts: Duration,
    /// The number of the latest probe: only it can reopen the breaker.
    probe: u64,
}

impl Health {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, providers: papaya::HashMap::default() }
    }

    /// Shows exactly these providers, as up unless their breakers are open; drops the health of all others.
    pub(super) fn configured<'a>(&self, providers: impl Iterator<Item = &'a Provider>) {
        let names: HashMap<i64, &LabelValue> = providers.map(|p| (p.id, &p.name)).collect();
        self.providers.pin().retain(|id, health| names.get(id) == Some(&&health.name));
        self.telemetry.providers_configured(names.into_values());
    }

    /// Whether a call to this provider would be let through now. Does not take a permit.
    pub(super) fn is_fit(&self, provider: &Provider, now: Instant) -> bool {
        let health = self.of(provider);
        let state = health.state.lock();
        state.has_room(provider) && state.lets_through(now)
    }

    /// Takes the right to call `provider`. With `force` an open breaker is ignored: when no provider is fit, trying is
    /// better than refusing. `None`: its breaker is open or its concurrency limit is reached.
    pub(super) fn admit(&self, provider: &Provider, now: Instant, force: bool) -> Option<Permit> {
        let health = self.of(provider);
        let mut state = health.state.lock();
        if !state.has_room(provider) || !(force || state.lets_through(now)) {
            return None;
        }
        state.active += 1;
        let probe = state.begin_probe(now);
        drop(state);
        Some(Permit { health: Some(health), probe })
    }

    /// A permit for a call that ignores the breaker and does not affect it. `None`: the provider's concurrency limit is
    /// reached.
    pub(super) fn room(&self, provider: &Provider) -> Option<Permit> {
        let health = self.of(provider);
        let mut state = health.state.lock();
        if !state.has_room(provider) {
            return None;
        }
        state.active += 1;
        drop(state);
        Some(Permit { health: Some(health), probe: None })
    }

    fn of(&self, provider: &Provider) -> Arc<ProviderHealth> {
        let new = || {
            let (telemetry, name) = (self.telemetry.clone(), provider.name.clone());
            Arc::new(ProviderHealth { telemetry, name, state: Mutex::default() })
        };
        let providers = self.providers.pin();
        let health = providers.get_or_insert_with(provider.id, new);
        if health.name == provider.name {
            return health.clone();
        }
        // Renamed: its series carry the name, so it gets new ones.
        let renamed = new();
        providers.insert(provider.id, renamed.clone());
        renamed
    }
}

impl State {
    fn has_room(&self, provider: &Provider) -> bool {
        provider.max_concurrency.is_none_or(|max| self.active < max)
    }

    fn lets_through(&self, now: Instant) -> bool {
        self.open.as_ref().is_none_or(|open| now >= open.until)
    }

    /// The number of the call that is let through now, if it is a probe of an open breaker.
    fn begin_probe(&mut self, now: Instant) -> Option<u64> {
        let open = self.open.as_mut().filter(|open| now >= open.until)?;
        open.until = now + open.lasts;
        self.probes += 1;
        open.probe = self.probes;
        Some(self.probes)
    }

    /// The probe is being answered; returns whether the provider is up now, if that changed. The answer may go on for
    /// minutes, so it is not waited for.
    fn probe_answers(&mut self) -> Option<bool> {
        self.failures = 0;
        self.open.take().map(|_| true)
    }

    /// Takes in the outcome of a call; returns whether the provider is up now, if that changed.
    fn report(&mut self, outcome: Outcome, probe: Option<u64>, now: Instant) -> Option<bool> {
        match outcome {
            Outcome::Connect
            | Outcome::Timeout
            | Outcome::Http5xx
            | Outcome::Protocol
            | Outcome::StreamCut => {
                self.failures += 1;
                let reopened = match &mut self.open {
                    // Calls from before the breaker opened say nothing new, nor do probes that were not waited for.
                    Some(open) if probe != Some(open.probe) => return None,
                    Some(open) => Some((open.lasts * 2).min(LONGEST_OPEN)),
                    None => None,
                };
                if reopened.is_none() && self.failures < FAILURES_TO_OPEN {
                    return None;
                }
                let lasts = reopened.unwrap_or(FIRST_OPEN);
                self.open = Some(Open { until: now + lasts, lasts, probe: 0 });
                reopened.is_none().then_some(false)
            }
            Outcome::Cancelled => {
                // The probe was inconclusive, so the next call may be one.
                if let Some(open) = self.open.as_mut().filter(|open| probe == Some(open.probe)) {
                    open.until = now;
                }
                None
            }
            Outcome::Ok | Outcome::Http429 | Outcome::Http4xx => {
                self.failures = 0;
                self.open.take().map(|_| true)
            }
        }
    }
}

impl ProviderHealth {
    fn tell(&self, changed: Option<bool>) {
        if let Some(up) = changed {
            ProviderUpChanged { telemetry: &self.telemetry, provider: &self.name, up }.emit();
        }
    }
}

/// The right to make one call; report its outcome to give it back.
pub(super) struct Permit {
    health: Option<Arc<ProviderHealth>>,
    /// The number of the probe that the call is, if it is one.
    probe: Option<u64>,
}

impl Permit {
    pub(super) fn report(mut self, outcome: Outcome) {
        self.give_back(outcome);
    }

    /// Whether the call goes through an open breaker, to see whether it may be closed.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// A good answer is coming. The outcome is still to follow.
    pub(super) fn answers(&mut self) {
        if let Some(health) = self.health.as_ref().filter(|_| self.probe.take().is_some()) {
            let changed = health.state.lock().probe_answers();
            health.tell(changed);
        }
    }

    fn give_back(&mut self, outcome: Outcome) {
        let Some(health) = self.health.take() else { return };
        let changed = {
            let mut state = health.state.lock();
            state.active = state.active.saturating_sub(1);
            state.report(outcome, self.probe, Instant::now())
        };
        health.tell(changed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back(Outcome::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(at: Instant) -> State {
        let mut state = State::default();
        for _ in 1..FAILURES_TO_OPEN {
            assert_eq!(state.report(Outcome::Http5xx, None, at), None);
        }
        assert!(state.lets_through(at));
        assert_eq!(state.report(Outcome::Connect, None, at), Some(false));
        assert!(!state.lets_through(at));
        state
    }

    #[test]
    fn a_breaker_opens_probes_and_closes() {
        let start = Instant::now();
        let mut state = opened(start);
        assert_eq!(state.begin_probe(start), None);
        let later = start + FIRST_OPEN;
        assert!(state.lets_through(later));
        let probe = state.begin_probe(later);
        assert!(probe.is_some());
        assert!(!state.lets_through(later) && state.begin_probe(later).is_none(), "one probe at a time");
        assert_eq!(state.report(Outcome::Timeout, probe, later), None);
        assert!(!state.lets_through(later + FIRST_OPEN), "a failed probe doubles the wait");
        let later = later + 2 * FIRST_OPEN;
        let probe = state.begin_probe(later);
        assert_eq!(state.report(Outcome::Ok, probe, later), Some(true));
        assert!(state.lets_through(later));
    }

    #[test]
    fn only_the_probe_speaks_for_itself() {
        let start = Instant::now();
        let mut state = opened(start);
        let later = start + FIRST_OPEN;
        let probe = state.begin_probe(later);
        assert_eq!(state.report(Outcome::Cancelled, None, later), None);
        assert_eq!(state.report(Outcome::Timeout, None, later), None);
        assert!(!state.lets_through(later), "the probe is still under way");
        assert_eq!(state.report(Outcome::Cancelled, probe, later), None);
        assert!(state.lets_through(later), "it told nothing, so the next call may");
    }

    #[test]
    fn a_long_probe_does_not_hold_up_the_next() {
        let start = Instant::now();
        let mut state = opened(start);
        let later = start + FIRST_OPEN;
        let first = state.begin_probe(later);
        let later = later + FIRST_OPEN;
        let second = state.begin_probe(later);
        assert!(second.is_some() && second != first && state.begin_probe(later).is_none());
        assert_eq!(state.report(Outcome::Timeout, second, later), None);
        // The first one is not waited for any more: neither its failure nor its client's leaving changes the wait.
        assert_eq!(state.report(Outcome::Timeout, first, later), None);
        assert_eq!(state.report(Outcome::Cancelled, first, later), None);
        assert!(!state.lets_through(later + FIRST_OPEN) && state.lets_through(later + 2 * FIRST_OPEN));
        assert_eq!(state.report(Outcome::Ok, first, later), Some(true), "it answers at last");
    }

    #[test]
    fn a_probe_that_begins_to_answer_lets_the_others_through() {
        let start = Instant::now();
        let mut state = opened(start);
        let later = start + FIRST_OPEN;
        assert!(state.begin_probe(later).is_some());
        assert_eq!(state.probe_answers(), Some(true));
        assert!(state.lets_through(later));
        assert_eq!(state.report(Outcome::Ok, None, later), None);
    }

    #[test]
    fn a_provider_that_answers_429_is_healthy() {
        let mut state = State::default();
        for _ in 0..100 {
            assert_eq!(state.report(Outcome::Http429, None, Instant::now()), None);
        }
        assert!(state.lets_through(Instant::now()));
    }
}
