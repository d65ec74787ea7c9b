//! One call to one provider, counted however it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::label::Outcome;
use crate::domain::model::Target;
use crate::telemetry::events::AttemptFinished;
use crate::telemetry::series::UpstreamSeries;

use super::health::Permit;

/// A provider that has sent no head of a stream after this time counts as failing when the call is cancelled. Otherwise one
/// that hangs would stay in use for as long as callers are less patient than `UPSTREAM_TIMEOUT`.
const HANGS: Duration = Duration::from_secs(60);

/// A call that is under way. Dropped without an outcome, it was cancelled.
pub(super) struct Attempt {
    series: Arc<UpstreamSeries>,
    target: Arc<Target>,
    started: Instant,
    permit: Option<Permit>,
    begun: bool,
    finished: bool,
}

impl Attempt {
    /// `series` are those of calls to `target`.
    pub(super) fn start(
        series: &Arc<UpstreamSeries>,
        target: &Arc<Target>,
        permit: Permit,
        started: Instant,
    ) -> Self {
        Self {
            series: series.clone(),
            target: target.clone(),
            started,
            permit: Some(permit),
            begun: false,
            finished: false,
        }
    }

    /// The head of an answer has come, or is not waited for: to cancel the call then says nothing of the provider.
    pub(super) fn begins(&mut self) {
        self.begun = true;
    }

    /// The first content of a stream has come; the outcome is reported later, by `finish`.
    pub(super) fn answers(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.answers();
        }
    }

    /// However the call ends, it says nothing about the provider's health.
    pub(super) fn excuse(&mut self) {
        // Reported as cancelled.
        self.permit = None;
    }

    /// Ends the call.
    pub(super) fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        AttemptFinished {
            series: &self.series,
            target: &self.target,
            outcome,
            duration: self.started.elapsed(),
        }
        .emit();
        if let Some(permit) = self.permit.take() {
            let hangs = outcome == Outcome::Cancelled && !self.begun && self.started.elapsed() >= HANGS;
            permit.report(if hangs { Outcome::Timeout } else { outcome });
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.finish(Outcome::Cancelled);
    }
}
