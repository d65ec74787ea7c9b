//! The in-memory limiter, on a simulated clock.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{burst, limits};
use crate::domain::key::Limits;
use crate::domain::label::LimitType;
use crate::limit::bucket::{Bucket, PARTS, Rate};
use crate::limit::{Burst, MemoryLimiter};

#[test]
fn a_key_starts_with_a_full_burst_and_refills() {
    let limiter = MemoryLimiter::new(Burst::default());
    let start = Instant::now();
    let limits = limits(60, None);
    for taken in 1..=180 {
        let decision = limiter.admit_at(1, limits, start);
        assert!(decision.allowed());
        assert_eq!(decision.state.rpm.unwrap().remaining, 180 - taken);
    }
    let refused = limiter.admit_at(1, limits, start);
    assert_eq!(refused.refused_by, Some(LimitType::Rpm));
    assert_eq!(refused.retry_after, Duration::from_secs(1));
    assert_eq!(refused.state.rpm.unwrap().reset, Duration::from_secs(180));

    let early = start + refused.retry_after - Duration::from_micros(1);
    assert!(!limiter.admit_at(1, limits, early).allowed());
    assert!(limiter.admit_at(1, limits, start + refused.retry_after).allowed());
    assert!(!limiter.admit_at(1, limits, start + refused.retry_after).allowed());
}

#[test]
fn keys_do_not_share_and_unlimited_keys_are_not_held() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    assert!(limiter.admit_at(1, limits(1, None), now).allowed());
    assert!(!limiter.admit_at(1, limits(1, None), now).allowed());
    assert!(limiter.admit_at(2, limits(1, None), now).allowed());
    assert!(limiter.admit_at(3, Limits::default(), now).allowed());
    limiter.charge_at(3, Limits::default(), 1_000_000, now);
    assert_eq!(limiter.len(), 2);
}

#[test]
fn one_answer_of_ten_limits_blocks_for_the_computed_time_and_not_longer() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let start = Instant::now();
    let limits = limits(None, 1000);
    assert!(limiter.admit_at(1, limits, start).allowed());
    limiter.charge_at(1, limits, 10_000, start);

    // 9,000 tokens of debt at 1,000 a minute are nine minutes; one part more makes the balance positive.
    let refused = limiter.admit_at(1, limits, start);
    assert_eq!(refused.refused_by, Some(LimitType::Tpm));
    assert_eq!(refused.retry_after, Duration::from_secs(540) + Duration::from_micros(1));
    assert_eq!(refused.state.tpm.unwrap().remaining, 0);
    assert_eq!(refused.state.tpm.unwrap().used, 10_000);
    assert!(!limiter.admit_at(1, limits, start + Duration::from_secs(540)).allowed());
    assert!(limiter.admit_at(1, limits, start + refused.retry_after).allowed());
}

#[test]
fn a_refusal_for_tokens_takes_no_request() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    let limits = limits(2, 10);
    assert!(limiter.admit_at(1, limits, now).allowed());
    limiter.charge_at(1, limits, 20, now);
    for _ in 0..5 {
        assert_eq!(limiter.admit_at(1, limits, now).refused_by, Some(LimitType::Tpm));
    }
    assert_eq!(limiter.usage_at(1, limits, now).rpm.unwrap().remaining, 1);
}

#[test]
fn both_refusing_wait_for_the_later() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    let limits = limits(1, 60);
    assert!(limiter.admit_at(1, limits, now).allowed());
    limiter.charge_at(1, limits, 600, now);
    let refused = limiter.admit_at(1, limits, now);
    assert_eq!(refused.refused_by, Some(LimitType::Rpm));
    assert_eq!(refused.retry_after, Duration::from_micros(540_000_001));
    assert!(limiter.admit_at(1, limits, now + refused.retry_after).allowed());
}

#[test]
fn a_changed_limit_takes_effect_at_once_and_keeps_the_debt() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    assert!(limiter.admit_at(1, limits(None, 100), now).allowed());
    limiter.charge_at(1, limits(None, 100), 1100, now);
    assert_eq!(
        limiter.admit_at(1, limits(None, 100), now).retry_after,
        Duration::from_micros(10 * 60_000_000 + 1)
    );
    // Ten times the limit pays the same 1,000 tokens back ten times as fast.
    assert_eq!(
        limiter.admit_at(1, limits(None, 1000), now).retry_after,
        Duration::from_micros(60_000_000 + 1)
    );
    // A full bucket stays full when its limit is raised, and does not exceed a lowered one.
    assert!(limiter.admit_at(2, limits(10, None), now).allowed());
    let later = now + Duration::from_secs(60);
    assert_eq!(limiter.admit_at(2, limits(1000, None), later).state.rpm.unwrap().remaining, 999);
    assert_eq!(limiter.admit_at(2, limits(10, None), later).state.rpm.unwrap().remaining, 8);
}

#[test]
fn a_request_from_before_a_change_is_charged_under_the_new_limit() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    let (old, new) = (limits(None, 1000), limits(None, 100));
    assert!(limiter.admit_at(1, old, now).allowed());
    assert!(limiter.admit_at(1, new, now).allowed());
    assert_eq!(limiter.charge_at(1, old, 600, now), new);
    // 500 tokens of debt, of which 100 a minute are paid back.
    let refused = limiter.admit_at(1, new, now);
    assert_eq!(refused.retry_after, Duration::from_micros(5 * 60_000_000 + 1));
}

#[test]
fn a_changed_limit_says_nothing_of_the_time_before_it() {
    let limiter = MemoryLimiter::new(burst(3.0));
    let now = Instant::now();
    for key in [1, 2] {
        assert!(limiter.admit_at(key, limits(None, 60_000), now).allowed());
    }
    // A debt of 20,000, paid back in 20 seconds.
    limiter.charge_at(1, limits(None, 60_000), 200_000, now);
    let later = now + Duration::from_secs(30);
    assert!(limiter.admit_at(1, limits(None, 600), later).allowed(), "it has paid what it owed");
    // And a debt that 30 seconds of a small limit do not pay back.
    assert!(limiter.admit_at(2, limits(None, 600), now).allowed());
    limiter.charge_at(2, limits(None, 600), 21_600, now);
    let refused = limiter.admit_at(2, limits(None, 60_000), later);
    assert_eq!(refused.retry_after, Duration::from_micros(19_500_000 + 1));
    let refused = limiter.admit_at(2, limits(None, 60_000), later + Duration::from_secs(10));
    assert_eq!(refused.retry_after, Duration::from_micros(9_500_000 + 1), "the new limit counts from now on");
}

#[test]
fn a_limit_of_zero_lets_nothing_pass() {
    let limiter = MemoryLimiter::new(Burst::default());
    let now = Instant::now();
    let refused = limiter.admit_at(1, limits(0, None), now);
    assert_eq!(refused.refused_by, Some(LimitType::Rpm));
    assert_eq!(refused.retry_after, Duration::from_secs(60));
    // Once raised, it is a full bucket.
    assert!(limiter.admit_at(1, limits(5, None), now).allowed());
}

#[test]
fn a_debt_outlasts_a_limit_of_zero() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    let limits_of = |tpm| limits(None, tpm);
    assert!(limiter.admit_at(1, limits_of(1000), now).allowed());
    limiter.charge_at(1, limits_of(1000), 10_000, now);
    let before = limiter.admit_at(1, limits_of(1000), now);
    assert!(!limiter.admit_at(1, limits_of(0), now).allowed());
    assert_eq!(limiter.admit_at(1, limits_of(1000), now), before, "nine minutes are still owed");
}

#[test]
fn an_absurd_usage_blocks_for_a_day_at_most() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    limiter.charge_at(1, limits(None, 100), u64::MAX, now);
    limiter.charge_at(1, limits(None, 100), u64::MAX, now);
    let refused = limiter.admit_at(1, limits(None, 100), now);
    assert_eq!(refused.retry_after.as_secs(), 24 * 3600);
}

#[test]
fn usage_is_reported_down_to_zero_and_then_no_more() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    assert!(limiter.recent_usage_at(now).is_empty());
    limiter.admit_at(7, limits(60, 100), now);
    limiter.charge_at(7, limits(60, 100), 30, now);
    let usage = limiter.recent_usage_at(now);
    assert_eq!(usage.len(), 1);
    assert_eq!(usage[0].key_id, 7);
    let (rpm, tpm) = (usage[0].rpm.unwrap(), usage[0].tpm.unwrap());
    assert_eq!((rpm.current, rpm.limit, rpm.remaining), (1, 60, 59));
    assert_eq!((tpm.current, tpm.limit, tpm.remaining), (30, 100, 70));

    let later = now + Duration::from_secs(60);
    assert_eq!(limiter.recent_usage_at(later)[0].tpm.unwrap().current, 0);
    assert!(limiter.recent_usage_at(later).is_empty());
    limiter.admit_at(7, limits(60, 100), later);
    assert_eq!(limiter.recent_usage_at(later).len(), 1);
}

#[test]
fn idle_keys_are_swept_and_busy_ones_kept() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let start = Instant::now();
    for key_id in 0..1000 {
        limiter.admit_at(key_id, limits(60, None), start);
    }
    limiter.charge_at(5000, limits(60, 10), 1000, start);
    let later = start + Duration::from_secs(120);
    limiter.recent_usage_at(later);
    limiter.recent_usage_at(later);
    limiter.sweep_at(later);
    assert_eq!(limiter.len(), 1);
    assert!(!limiter.admit_at(5000, limits(60, 10), later).allowed());
}

#[test]
fn a_sweep_under_load_gives_nobody_a_second_bucket() {
    let limiter = MemoryLimiter::new(burst(1.0));
    let now = Instant::now();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let allowed: usize = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                limiter.sweep_at(now);
                limiter.recent_usage_at(now);
            }
        });
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..50_000).filter(|n| limiter.admit_at(n % 10, limits(100, None), now).allowed()).count()
                })
            })
            .collect();
        let sum = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        sum
    });
    assert_eq!(allowed, 10 * 100);
}

/// One step of a schedule: wait for a number of microseconds, then ask, or charge.
#[derive(Debug, Clone)]
enum Step {
    Ask { after: u64 },
    Charge { after: u64, tokens: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after = prop_oneof![Just(0u64), 0..1_000u64, 0..10_000_000u64, 0..600_000_000u64];
    let step = prop_oneof![
        3 => after.clone().prop_map(|after| Step::Ask { after }),
        1 => (after, 0..5_000u64).prop_map(|(after, tokens)| Step::Charge { after, tokens }),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Over any schedule, the allowed requests between two moments never exceed the capacity plus the refill between
    /// them.
    #[test]
    fn allowed_never_exceeds_capacity_and_refill(
        steps in steps(), rpm in 1u32..5_000, thousandths in 1u32..5_000,
    ) {
        let limiter = MemoryLimiter::new(burst(f64::from(thousandths) / 1000.0));
        let rate = Rate::new(rpm, burst(f64::from(thousandths) / 1000.0));
        let mut now = Instant::now();
        let start = now;
        let mut allowed_at = Vec::new();
        for step in steps {
            let (Step::Ask { after } | Step::Charge { after, .. }) = step;
            now += Duration::from_micros(after);
            if limiter.admit_at(1, limits(rpm, None), now).allowed() {
                allowed_at.push(now);
            }
        }
        for (from, &first) in allowed_at.iter().enumerate() {
            for (to, &last) in allowed_at.iter().enumerate().skip(from) {
                let elapsed = i128::try_from((last - first).as_micros()).unwrap();
                let most = i128::from(rate.capacity) + elapsed * i128::from(rpm);
                prop_assert!(((to - from + 1) as i128) * i128::from(PARTS) <= most);
            }
        }
        prop_assert!(start <= now);
    }

    /// A request is refused only when the balance of the model (exact sums, no clock) is too low, and the reported wait
    /// is exactly long enough.
    #[test]
    fn refusals_are_exact_and_waits_truthful(steps in steps(), rpm in 1u32..5_000, tpm in 1u32..100_000) {
        let limiter = MemoryLimiter::new(Burst::default());
        let (requests, tokens) = (Rate::new(rpm, Burst::default()), Rate::new(tpm, Burst::default()));
        let limits = limits(rpm, tpm);
        let mut now = Instant::now();
        let mut model: Option<(i128, i128)> = None;
        for step in steps {
            let (Step::Ask { after } | Step::Charge { after, .. }) = step;
            now += Duration::from_micros(after);
            let (r, t) = model.unwrap_or((requests.capacity.into(), tokens.capacity.into()));
            let elapsed = i128::from(after);
            let mut r = (r + elapsed * i128::from(rpm)).min(requests.capacity.into());
            let mut t = (t + elapsed * i128::from(tpm)).min(tokens.capacity.into());
            match step {
                Step::Charge { tokens: charged, .. } => {
                    limiter.charge_at(1, limits, charged, now);
                    t = (t - i128::from(charged) * i128::from(PARTS)).max(tokens.floor().into());
                }
                Step::Ask { .. } => {
                    let enough = r >= i128::from(PARTS) && t > 0;
                    let decision = limiter.admit_at(1, limits, now);
                    prop_assert_eq!(decision.allowed(), enough);
                    if enough {
                        r -= i128::from(PARTS);
                        prop_assert_eq!(decision.retry_after, Duration::ZERO);
                    } else {
                        let wait = i128::try_from(decision.retry_after.as_micros()).unwrap();
                        let there = |wait: i128| {
                            (r + wait * i128::from(rpm)).min(requests.capacity.into()) >= i128::from(PARTS)
                                && t + wait * i128::from(tpm) > 0
                        };
                        prop_assert!(there(wait) && !there(wait - 1));
                    }
                }
            }
            model = Some((r, t));
        }
    }

    /// Whatever the new limit, the balance stays between the old debt and the new capacity.
    #[test]
    fn a_limit_change_neither_forgives_nor_overfills(
        old in 0u32.., new in 0u32.., charged in 0u64..1_000_000_000_000, after in 0u64..10_000_000_000,
    ) {
        let (before, now) = (Rate::new(old, Burst::default()), Rate::new(new, Burst::default()));
        let mut bucket = Bucket::full(before, 0);
        bucket.charge(before, charged);
        let debt = bucket.balance.min(0);
        bucket.advance(now, after);
        prop_assert!(bucket.balance <= now.capacity);
        prop_assert!(bucket.balance >= debt);
    }
}
