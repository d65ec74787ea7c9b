//! The measurements, as one line of JSON.

use std::time::Duration;

use serde_json::{Value, json};

/// How the requests of one run ended, and how long they took.
#[derive(Debug, Default)]
pub struct Tally {
    /// Complete answers with the expected status and events.
    pub ok: u64,
    /// Answers with another status.
    pub refused: u64,
    /// Answers that were cut off, or unexpected.
    pub broken: u64,
    /// Good answers that ended within the measured time.
    pub measured: u64,
    pub events: u64,
    pub bytes: u64,
    /// Latencies of the measured requests, in nanoseconds.
    pub latencies: Vec<u64>,
    /// Times to the first byte of the body.
    pub first: Vec<u64>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.refused += other.refused;
        self.broken += other.broken;
        self.measured += other.measured;
        self.events += other.events;
        self.bytes += other.bytes;
        self.latencies.extend(other.latencies);
        self.first.extend(other.first);
    }

    /// The figures of a run that was measured for `elapsed`.
    pub fn report(mut self, mode: &str, elapsed: Duration) -> Value {
        self.latencies.sort_unstable();
        self.first.sort_unstable();
        let seconds = elapsed.as_secs_f64();
        let rate = |count: u64| as_f64(count) / seconds;
        json!({
            "mode": mode,
            "seconds": seconds,
            "ok": self.ok,
            "refused": self.refused,
            "broken": self.broken,
            "measured": self.measured,
            "per_second": rate(self.measured),
            "events": self.events,
            "events_per_second": rate(self.events),
            "bytes": self.bytes,
            "latency_us": quantiles(&self.latencies),
            "first_byte_us": quantiles(&self.first),
        })
    }
}

fn quantiles(sorted: &[u64]) -> Value {
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a length that fits in memory"
        )]
        let rank = (share * as_f64(sorted.len() as u64)).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).map(|nanos| as_f64(*nanos) / 1000.0)
    };
    json!({
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
        "max": sorted.last().map(|nanos| as_f64(*nanos) / 1000.0),
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds of a run stay far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// Nanoseconds, for [`Tally::latencies`].
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks() {
        let sorted: Vec<u64> = (1..=100).map(|n| n * 1000).collect();
        let found = quantiles(&sorted);
        assert_eq!((found["p50"].as_f64(), found["p99"].as_f64()), (Some(50.0), Some(99.0)));
        assert_eq!(found["max"].as_f64(), Some(100.0));
        assert_eq!(quantiles(&[])["p50"], Value::Null);
    }
}
