//! Stays awake while there is load.
//!
//! A process that waits for the next byte lets its core sleep, and the sender of the byte pays for waking it: on a
//! virtual machine an interrupt to another core costs the sender several microseconds, twice for each request. Over a
//! network that cost does not exist. Here it would be charged to the gateway, and the more so the slower it is, because
//! the faster one keeps the core of the load awake anyway. So under load both ends poll instead of waiting, and yield
//! to each other in between.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// After this much silence there is no load: the process sleeps until the next request. Shorter than the pause between
/// two requests at a fixed rate, so that such requests are measured as they are elsewhere.
const SILENCE: Duration = Duration::from_millis(2);

/// Whether there was recent activity.
#[derive(Debug)]
pub struct Awake {
    last: Cell<Instant>,
    asleep: Cell<bool>,
    stirred: Notify,
}

impl Default for Awake {
    fn default() -> Self {
        Self { last: Cell::new(Instant::now()), asleep: Cell::new(false), stirred: Notify::new() }
    }
}

impl Awake {
    /// Records activity.
    pub fn stir(&self) {
        self.last.set(Instant::now());
        if self.asleep.replace(false) {
            self.stirred.notify_one();
        }
    }

    /// Keeps the current runtime from waiting while there is activity.
    pub async fn keep(&self) {
        loop {
            if self.last.get().elapsed() < SILENCE {
                // The other end runs on the same core.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            } else {
                self.asleep.set(true);
                self.stirred.notified().await;
            }
        }
    }
}
