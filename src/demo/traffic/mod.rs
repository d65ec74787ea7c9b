//! Traffic through the gateway's own port, as many applications would send it, with the clients' view of the answers.
//!
//! The schedule is open-loop: request `n` is due at `n / rate`, whether the earlier ones have been answered or not, and
//! one that could not be sent in time is sent late, never skipped. Latency counts from the due time, so a gateway that
//! stalls cannot hide it by making the generator wait (coordinated omission).

mod client;
mod histogram;
mod plan;
mod reader;
mod tally;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use client::{Arrivals, Client};
pub use histogram::Histogram;
pub use plan::{Job, Kind, LEAVES_MID_STREAM, LEAVES_WAITING, Plan, Planner};
pub use tally::{Ending, Seen, Tally};

/// The most requests in flight at one time. Beyond it the generator itself is late, which its latencies show.
const MAX_IN_FLIGHT: usize = 2_000;

/// Sends planned requests at a steady rate.
#[derive(Debug)]
pub struct Traffic {
    client: Client,
    /// Requests per second; above 0.
    rate: f64,
    tally: Arc<Mutex<Tally>>,
}

impl Traffic {
    pub fn new(client: Client, rate: f64) -> Self {
        Self { client, rate, tally: Arc::default() }
    }

    /// The tally so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }

    /// Sends until it is told to stop, then waits for the answers that are still to come.
    pub async fn run(&self, mut planner: Planner, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let mut requests = JoinSet::new();
        let start = Instant::now();
        let mut number: u32 = 0;
        while !stop.is_cancelled() {
            let due = start + Duration::from_secs_f64(f64::from(number) / self.rate);
            number = number.wrapping_add(1);
            // A past due time elapses at once: a late request is sent, not skipped.
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(due) => {}
            }
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
            let (client, tally, job) = (self.client.clone(), Arc::clone(&self.tally), planner.next_job());
            requests.spawn(async move {
                let seen = client.send(&job, due.into_std()).await;
                tally.lock().add(&seen);
                drop(slot);
            });
            while requests.try_join_next().is_some() {}
        }
        while requests.join_next().await.is_some() {}
    }
}
