//! Latencies in logarithmic buckets.

use std::time::Duration;

/// Sub-buckets of each power of two: a value is known to within 1/32, about 3 %.
const SUB_BITS: u32 = 5;
const SUBS: usize = 1 << SUB_BITS;
/// 2^36 µs are 19 hours; nothing here takes longer.
const POWERS: usize = 36;

/// Counts durations from one microsecond on. Memory does not grow with the number of samples.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; SUBS * POWERS], total: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    pub fn record(&mut self, sample: Duration) {
        let index = index(micros(sample));
        if let Some(count) = self.counts.get_mut(index) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(sample);
    }

    /// How many samples were recorded.
    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn max(&self) -> Duration {
        self.max
    }

    /// The sample that `share` (0 to 1) of all samples do not exceed; `None` without samples.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        if self.total == 0 {
            return None;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank within the number of samples, which stays far below 2^53"
        )]
        let rank = ((self.total as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(Duration::from_micros(upper_bound(index)).min(self.max));
            }
        }
        Some(self.max)
    }
}

fn micros(sample: Duration) -> u64 {
    u64::try_from(sample.as_micros()).unwrap_or(u64::MAX)
}

/// The first 32 values have a bucket each; after that the leading bit chooses the group and the next five the bucket.
fn index(micros: u64) -> usize {
    let group = (u64::BITS - micros.leading_zeros()).saturating_sub(SUB_BITS);
    let group = usize::try_from(group).unwrap_or(usize::MAX).min(POWERS - 1);
    if group == 0 {
        return usize::try_from(micros).unwrap_or(0);
    }
    let sub = usize::try_from(micros >> (group - 1)).unwrap_or(usize::MAX).min(2 * SUBS - 1);
    group * SUBS + sub - SUBS
}

/// The largest value that belongs to a bucket.
fn upper_bound(index: usize) -> u64 {
    let (group, sub) = (index / SUBS, index % SUBS);
    let number = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    if group == 0 { number(sub) } else { ((number(sub + SUBS) + 1) << (group - 1)) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        let mut previous = 0;
        for power in 0..36 {
            for offset in [0u64, 1, 3] {
                let value = (1u64 << power) + offset;
                let at = index(value);
                assert!(value <= upper_bound(at), "{value}");
                assert!(at == 0 || value > upper_bound(at - 1), "{value}");
                assert!(at >= previous || offset == 0);
                previous = at;
            }
        }
        assert_eq!(index(u64::MAX), SUBS * POWERS - 1, "too long is the last bucket");
    }

    #[test]
    fn quantiles_are_right_to_three_percent() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for millis in 1..=1000 {
            histogram.record(Duration::from_millis(millis));
        }
        for (share, exact) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let found = histogram.quantile(share).unwrap().as_secs_f64() * 1000.0;
            assert!((exact..exact * 1.04).contains(&found), "{share}: {found}");
        }
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_secs(1)));
        assert_eq!(histogram.quantile(0.0), histogram.quantile(0.000_1));
        assert_eq!((histogram.count(), histogram.max()), (1000, Duration::from_secs(1)));
    }
}
