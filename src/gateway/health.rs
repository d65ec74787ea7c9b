//! Which providers are fit to be called: a circuit breaker and a concurrency limit for each.
//!
//! A breaker opens after [`FAILURES_TO_OPEN`] failures in a row, stays open for a while that doubles with every failed
//! probe, then lets one probe through (half-open); the probe's outcome closes or reopens it. An answer of 429 is no
//! failure here: the provider works, it only wants less.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::domain::label::{LabelValue, Outcome};
use crate::domain::provider::Provider;
use crate::telemetry::Telemetry;
use crate::telemetry::events::ProviderUpChanged;

/// Failures in a row that open the breaker: enough not to be chance, few enough to spare most callers (Envoy's outlier
/// detection has the same default).
const FAILURES_TO_OPEN: u32 = 5;

/// How long the breaker stays open the first time, and at most.
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
}

struct Open {
    until: Instant,
    lasts: Duration,
    probing: bool,
}

impl Health {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, providers: papaya::HashMap::default() }
    }

    /// Shows these providers as up, unless their breakers say otherwise, and no others.
    pub(super) fn configured<'a>(&self, providers: impl Iterator<Item = &'a Provider>) {
        let names: HashMap<i64, &LabelValue> = providers.map(|p| (p.id, &p.name)).collect();
        self.providers.pin().retain(|id, health| names.get(id) == Some(&&health.name));
        self.telemetry.providers_configured(names.into_values());
    }

    /// Whether a call to this provider would be let through now. Takes nothing.
    pub(super) fn is_fit(&self, provider: &Provider, now: Instant) -> bool {
        let health = self.of(provider);
        let state = health.lock();
        state.has_room(provider) && state.lets_through(now)
    }

    /// Takes the right to call `provider`. With `force` an open breaker is ignored: when no provider is fit, trying is
    /// better than refusing. `None`: its breaker is open or its concurrency limit is reached.
    pub(super) fn admit(&self, provider: &Provider, now: Instant, force: bool) -> Option<Permit> {
        let health = self.of(provider);
        {
            let mut state = health.lock();
            if !state.has_room(provider) || !(force || state.lets_through(now)) {
                return None;
            }
            if let Some(open) = state.open.as_mut().filter(|open| now >= open.until) {
                open.probing = true;
            }
            state.active += 1;
        }
        Some(Permit { health: Some(health) })
    }

    fn of(&self, provider: &Provider) -> Arc<ProviderHealth> {
        let guard = self.providers.guard();
        if let Some(health) =
            self.providers.get(&provider.id, &guard).filter(|health| health.name == provider.name)
        {
            return health.clone();
        }
        let health = Arc::new(ProviderHealth {
            telemetry: self.telemetry.clone(),
            name: provider.name.clone(),
            state: Mutex::default(),
        });
        self.providers.insert(provider.id, health.clone(), &guard);
        health
    }
}

impl State {
    fn has_room(&self, provider: &Provider) -> bool {
        provider.max_concurrency.is_none_or(|max| self.active < max)
    }

    fn lets_through(&self, now: Instant) -> bool {
        self.open.as_ref().is_none_or(|open| now >= open.until && !open.probing)
    }

    /// Takes in an outcome; returns whether the provider is up now, if that changed.
    fn report(&mut self, outcome: Outcome, now: Instant) -> Option<bool> {
        match outcome {
            Outcome::Connect
            | Outcome::Timeout
            | Outcome::Http5xx
            | Outcome::Protocol
            | Outcome::StreamCut => {
                self.failures += 1;
                let reopened = match &mut self.open {
                    // Calls from before the breaker opened say nothing new.
                    Some(open) if !open.probing => return None,
                    Some(open) => Some((open.lasts * 2).min(LONGEST_OPEN)),
                    None => None,
                };
                if reopened.is_none() && self.failures < FAILURES_TO_OPEN {
                    return None;
                }
                let lasts = reopened.unwrap_or(FIRST_OPEN);
                self.open = Some(Open { until: now + lasts, lasts, probing: false });
                reopened.is_none().then_some(false)
            }
            Outcome::Cancelled => {
                // The probe told nothing, so the next call may be one.
                if let Some(open) = &mut self.open {
                    open.probing = false;
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
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to make one call; give it back with what came of it.
pub(super) struct Permit {
    health: Option<Arc<ProviderHealth>>,
}

impl Permit {
    pub(super) fn report(mut self, outcome: Outcome) {
        self.give_back(outcome);
    }

    fn give_back(&mut self, outcome: Outcome) {
        let Some(health) = self.health.take() else { return };
        let changed = {
            let mut state = health.lock();
            state.active = state.active.saturating_sub(1);
            state.report(outcome, Instant::now())
        };
        if let Some(up) = changed {
            ProviderUpChanged { telemetry: &health.telemetry, provider: &health.name, up }.emit();
        }
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

    #[test]
    fn a_breaker_opens_probes_and_closes() {
        let mut state = State::default();
        let start = Instant::now();
        for _ in 1..FAILURES_TO_OPEN {
            assert_eq!(state.report(Outcome::Http5xx, start), None);
        }
        assert!(state.lets_through(start));
        assert_eq!(state.report(Outcome::Connect, start), Some(false));
        assert!(!state.lets_through(start));
        let later = start + FIRST_OPEN;
        assert!(state.lets_through(later));
        state.open.as_mut().expect("open").probing = true;
        assert!(!state.lets_through(later), "one probe at a time");
        assert_eq!(state.report(Outcome::Timeout, later), None);
        assert!(!state.lets_through(later + FIRST_OPEN), "a failed probe doubles the wait");
        state.open.as_mut().expect("open").probing = true;
        assert_eq!(state.report(Outcome::Ok, later), Some(true));
        assert!(state.lets_through(later));
    }

    #[test]
    fn a_provider_that_answers_429_is_healthy() {
        let mut state = State::default();
        for _ in 0..100 {
            assert_eq!(state.report(Outcome::Http429, Instant::now()), None);
        }
        assert!(state.lets_through(Instant::now()));
    }
}
