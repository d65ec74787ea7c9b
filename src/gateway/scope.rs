//! One inference request, from its arrival to its single count.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::domain::label::RejectReason;
use crate::domain::record::Call;
use crate::telemetry::events::RequestRejected;
use crate::telemetry::{InFlight, Telemetry};

/// A request from the moment it arrives. It is in flight while this lives, and it is counted exactly once: when it is
/// refused, when its record is finished, or, if it ended before either, when this is dropped.
pub struct RequestScope {
    in_flight: InFlight,
    pub call: Call,
    pub arrived: Instant,
    pub arrived_at: DateTime<Utc>,
    /// Nanoseconds spent waiting for the client's body.
    client_wait: AtomicU64,
    client_left: OnceLock<Instant>,
    counted: AtomicBool,
    slot: Option<Slot>,
}

impl RequestScope {
    pub(super) fn open(telemetry: Arc<Telemetry>, call: Call, slot: Option<Slot>) -> Arc<Self> {
        Arc::new(Self {
            in_flight: InFlight::start(telemetry, call),
            call,
            arrived: Instant::now(),
            arrived_at: Utc::now(),
            client_wait: AtomicU64::new(0),
            client_left: OnceLock::new(),
            counted: AtomicBool::new(false),
            slot,
        })
    }

    /// Whether there was room for one more request.
    pub fn has_slot(&self) -> bool {
        self.slot.is_some()
    }

    /// The request was refused before it reached a model.
    pub fn refuse(&self, reason: RejectReason) {
        if self.claim() {
            RequestRejected { telemetry: self.in_flight.telemetry(), reason, call: self.call }.emit();
        }
    }

    /// Whether the caller is the one to count this request; true once.
    pub(super) fn claim(&self) -> bool {
        !self.counted.swap(true, Ordering::AcqRel)
    }

    /// Adds time spent waiting for the client's body.
    pub fn waited_for_client(&self, wait: Duration) {
        self.client_wait.fetch_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn client_wait(&self) -> Duration {
        Duration::from_nanos(self.client_wait.load(Ordering::Relaxed))
    }

    /// The client has left; returns when that was noticed first.
    pub(super) fn client_left(&self) -> Instant {
        *self.client_left.get_or_init(Instant::now)
    }

    pub(super) fn has_client_left(&self) -> bool {
        self.client_left.get().is_some()
    }
}

impl Drop for RequestScope {
    fn drop(&mut self) {
        // The client left before the request was accepted.
        self.refuse(RejectReason::ClientClosed);
    }
}

/// Limits the requests in flight.
pub(super) struct Slots {
    taken: Arc<AtomicUsize>,
    max: usize,
}

/// Room for one request, given back when dropped.
pub struct Slot(Arc<AtomicUsize>);

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Takes a slot, if one is free.
    pub(super) fn take(&self) -> Option<Slot> {
        let slot = Slot(self.taken.clone());
        // A surplus slot gives its count back when it is dropped.
        (self.taken.fetch_add(1, Ordering::AcqRel) < self.max).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
