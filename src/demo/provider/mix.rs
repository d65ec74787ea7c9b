//! A weighted draw among replies.

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::reply::Reply;

/// Replies with weights. The same seed draws the same sequence.
#[derive(Debug)]
pub struct Mix {
    entries: Vec<(u32, Reply)>,
    total: u32,
    rng: Mutex<StdRng>,
}

impl Mix {
    pub fn seeded(seed: u64) -> Self {
        Self { entries: Vec::new(), total: 0, rng: Mutex::new(StdRng::seed_from_u64(seed)) }
    }

    /// Adds a reply that is drawn `weight` times as often as one of weight 1.
    pub fn with(mut self, weight: u32, reply: impl Into<Reply>) -> Self {
        self.total = self.total.saturating_add(weight);
        self.entries.push((weight, reply.into()));
        self
    }

    /// Draws; the default scripted text when nothing was added.
    pub(super) fn draw(&self) -> Reply {
        let mut ticket = if self.total == 0 { 0 } else { self.rng.lock().random_range(0..self.total) };
        for (weight, reply) in &self.entries {
            if ticket < *weight {
                return reply.clone();
            }
            ticket -= weight;
        }
        Reply::text("This is a scripted answer.")
    }
}
