//! Limits shared through one healthy Redis.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;

use super::server::RedisServer;
use super::{burst, eventually, limits};
use crate::domain::key::Limits;
use crate::domain::label::LimitType;
use crate::limit::{Burst, Observer, RedisLimiter, RedisLink};

/// A timeout that a busy machine does not reach: these tests are about arithmetic.
const UNHURRIED: Duration = Duration::from_secs(10);

async fn limiter(server: &RedisServer, burst: Burst) -> RedisLimiter {
    let link = RedisLink::start(&server.url(), UNHURRIED, Observer::default()).await.unwrap();
    assert!(link.is_up());
    RedisLimiter::start(link, burst)
}

/// Ages a bucket, as if this time had passed.
fn age(server: &RedisServer, key: &str, by: Duration) {
    let stored: String = server.run(&["GET", key]);
    let (rest, at) = stored.rsplit_once(' ').unwrap();
    let at = at.parse::<u128>().unwrap() - by.as_micros();
    let _: () = server.run(&["SET", key, &format!("{rest} {at}"), "KEEPTTL"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_allow_exactly_the_limit_together() {
    let server = RedisServer::start();
    // Sixty requests at once, and one more a minute: the test does not last that long.
    let limits = limits(1, None);
    let replicas = [
        limiter(&server, burst(60.0)).await,
        limiter(&server, burst(60.0)).await,
        limiter(&server, burst(60.0)).await,
    ];
    let start = Instant::now();
    let decisions = join_all((0..600).map(|n| replicas[n % 3].admit(1, limits))).await;
    assert!(start.elapsed() < Duration::from_secs(60), "too slow to tell");
    assert_eq!(decisions.iter().filter(|decision| decision.allowed()).count(), 60);
    for refused in decisions.iter().filter(|decision| !decision.allowed()) {
        assert_eq!(refused.refused_by, Some(LimitType::Rpm));
        assert!(refused.retry_after <= Duration::from_secs(60));
        assert!(refused.retry_after + start.elapsed() + Duration::from_secs(1) >= Duration::from_secs(60));
    }
    // Each allowed request was told a different remainder.
    let mut remaining: Vec<u64> = decisions
        .iter()
        .filter(|decision| decision.allowed())
        .map(|decision| decision.state.rpm.unwrap().remaining)
        .collect();
    remaining.sort_unstable();
    assert_eq!(remaining, (0..60).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_is_neither_too_short_nor_too_long() {
    let server = RedisServer::start();
    let limiter = limiter(&server, burst(0.001)).await;
    // A bucket of one, refilled every half second.
    let limits = limits(120, None);
    assert!(limiter.admit(1, limits).await.allowed());
    let asked = Instant::now();
    let refused = limiter.admit(1, limits).await;
    assert!(!refused.allowed());
    assert!(refused.retry_after <= Duration::from_millis(500));
    let (mut last_refusal, mut waits) = (Instant::now(), vec![refused.retry_after]);
    loop {
        let decision = limiter.admit(1, limits).await;
        if decision.allowed() {
            break;
        }
        last_refusal = Instant::now();
        waits.push(decision.retry_after);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Refused until that time, and allowed at the first request after it.
    assert!(last_refusal.duration_since(asked) <= refused.retry_after + Duration::from_millis(250));
    assert!(asked.elapsed() + Duration::from_millis(1) >= refused.retry_after);
    assert!(waits.is_sorted_by(|a, b| a >= b), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debt_blocks_for_the_computed_time_and_not_longer() {
    let server = RedisServer::start();
    let (one, other) = (limiter(&server, burst(1.0)).await, limiter(&server, burst(1.0)).await);
    let limits = limits(None, 1000);
    assert!(one.admit(7, limits).await.allowed());
    one.charge(7, limits, 10_000);
    one.flush().await;

    // 9,000 tokens of debt at 1,000 a minute: nine minutes, for the other replica too.
    let refused = other.admit(7, limits).await;
    assert_eq!(refused.refused_by, Some(LimitType::Tpm));
    assert!(refused.retry_after <= Duration::from_micros(540_000_001));
    assert!(refused.retry_after > Duration::from_secs(535));
    let used = refused.state.tpm.unwrap().used;
    assert!((9_900..=10_000).contains(&used), "{used}");

    let key = "nexusgate:limit:{7}:tpm";
    let life: i64 = server.run(&["PTTL", key]);
    assert!((595_000..=601_000).contains(&life), "kept until it is full again: {life}");
    age(&server, key, refused.retry_after - Duration::from_secs(5));
    assert!(!other.admit(7, limits).await.allowed());
    age(&server, key, Duration::from_secs(5));
    assert!(other.admit(7, limits).await.allowed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_takes_nothing_and_a_changed_limit_counts_at_once() {
    let server = RedisServer::start();
    let limiter = limiter(&server, burst(1.0)).await;
    assert!(limiter.admit(1, limits(10, 10)).await.allowed());
    limiter.charge(1, limits(10, 10), 110);
    limiter.flush().await;
    for _ in 0..5 {
        assert_eq!(limiter.admit(1, limits(10, 10)).await.refused_by, Some(LimitType::Tpm));
    }
    assert_eq!(limiter.usage(1, limits(10, 10)).await.rpm.unwrap().remaining, 9);
    // The debt of 100 stays, and is paid back a hundred times as fast.
    let refused = limiter.admit(1, limits(10, 1000)).await;
    assert!(
        refused.retry_after <= Duration::from_millis(6001) && refused.retry_after > Duration::from_secs(1)
    );
    // Nine tenths full stays nine tenths full.
    assert!((900..=999).contains(&limiter.usage(1, limits(1000, None)).await.rpm.unwrap().remaining));
    assert_eq!(limiter.admit(2, limits(0, None)).await.refused_by, Some(LimitType::Rpm));
    assert!(limiter.admit(2, limits(3, None)).await.allowed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_limit_says_nothing_of_the_time_before_it() {
    let server = RedisServer::start();
    let limiter = limiter(&server, burst(3.0)).await;
    // A debt of 20,000, paid back in thirty seconds.
    limiter.charge(1, limits(None, 60_000), 200_000);
    limiter.flush().await;
    age(&server, "nexusgate:limit:{1}:tpm", Duration::from_secs(30));
    assert!(limiter.admit(1, limits(None, 600)).await.allowed());
    // And a debt that thirty seconds of a small limit do not pay back.
    limiter.charge(2, limits(None, 600), 21_600);
    limiter.flush().await;
    age(&server, "nexusgate:limit:{2}:tpm", Duration::from_secs(30));
    let refused = limiter.admit(2, limits(None, 60_000)).await;
    let (least, most) = (Duration::from_secs(18), Duration::from_millis(19_501));
    assert!((least..=most).contains(&refused.retry_after), "{:?}", refused.retry_after);
    // The new limit counts from the change on, though the request was refused.
    age(&server, "nexusgate:limit:{2}:tpm", Duration::from_secs(10));
    let refused = limiter.admit(2, limits(None, 60_000)).await;
    let (least, most) = (Duration::from_secs(8), Duration::from_millis(9_501));
    assert!((least..=most).contains(&refused.retry_after), "{:?}", refused.retry_after);
}

/// A replica that has not seen the key since its limit was changed still asks for its usage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_look_changes_nothing() {
    let server = RedisServer::start();
    let (one, other) = (limiter(&server, burst(3.0)).await, limiter(&server, burst(3.0)).await);
    assert!(one.admit(1, limits(None, 60_000)).await.allowed());
    one.charge(1, limits(None, 60_000), 200_000);
    one.flush().await;
    assert!(!other.admit(1, limits(None, 600)).await.allowed());
    let bucket = || server.run::<String>(&["GET", "nexusgate:limit:{1}:tpm"]);
    let before = bucket();
    assert!(before.contains(" 108000000000 "), "it counts against the new limit: {before}");
    assert_eq!(one.recent_usage().await.len(), 1);
    assert_eq!(bucket(), before);
}

/// For a moment, or longer when an announcement is lost, replicas know different limits of a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_counts_the_same_whichever_limit_its_replica_knows() {
    let server = RedisServer::start();
    // Large buckets that hardly refill during the test.
    let (one, other) = (limiter(&server, burst(1000.0)).await, limiter(&server, burst(1000.0)).await);
    for (key, old, new) in [(1, 600, 6), (2, 6, 600)] {
        let (old, new) = (limits(None, old), limits(None, new));
        assert!(one.admit(key, old).await.allowed());
        assert!(other.admit(key, new).await.allowed());
        other.charge(key, new, 1);
        other.flush().await;
        let bucket = format!("nexusgate:limit:{{{key}}}:tpm");
        let capacity = || server.run::<String>(&["GET", &bucket]).split(' ').nth(1).unwrap().to_owned();
        let before = capacity();
        one.charge(key, old, 1_500);
        one.flush().await;
        assert_eq!(capacity(), before, "the last decision's limit is the bucket's");
        let used = other.usage(key, new).await.tpm.unwrap().current;
        assert!((1_300..=1_501).contains(&used), "{used} of 1,501 under {new:?}");
        // The time until then is refilled at the rate of the bucket.
        age(&server, &bucket, Duration::from_secs(60));
        one.charge(key, old, 100);
        one.flush().await;
        let refilled = u64::from(new.tpm.unwrap());
        let used = other.usage(key, new).await.tpm.unwrap().current;
        assert!((1_400 - refilled..=1_601 - refilled).contains(&used), "{used} under {new:?}");
    }
}

/// The longest debt, a day of refill, is that of the bucket too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debt_is_bounded_by_the_limit_of_its_bucket() {
    const DAY: u64 = 24 * 60;
    let server = RedisServer::start();
    let (one, other) = (limiter(&server, burst(1.0)).await, limiter(&server, burst(1.0)).await);
    let large = 100_000_000;
    for (key, old, new) in [(1, 600, 6), (2, 6, 600), (3, large, 600), (4, 600, large)] {
        let (old, new) = (limits(None, old), limits(None, new));
        assert!(one.admit(key, old).await.allowed());
        assert!(other.admit(key, new).await.allowed());
        other.charge(key, new, 1);
        other.flush().await;
        one.charge(key, old, u64::MAX);
        one.flush().await;
        let refused = other.admit(key, new).await;
        let minutes = refused.retry_after.as_secs() / 60;
        assert!((DAY - 1..=DAY).contains(&minutes), "{minutes} minutes under {new:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_costs_at_most_two_round_trips() {
    let server = RedisServer::start();
    let limiter = limiter(&server, Burst::default()).await;
    let client = redis::Client::open(server.url().expose()).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    let requests = 200;
    join_all((0..200).map(|n| {
        let limiter = &limiter;
        async move {
            let limits = limits(1000, 100_000);
            assert!(limiter.admit(n % 5, limits).await.allowed());
            limiter.charge(n % 5, limits, 10);
        }
    }))
    .await;
    limiter.flush().await;
    let () = server.run(&["ECHO", "the end"]);
    let lines: Vec<String> = monitor
        .into_on_message::<String>()
        .take_while(|line| std::future::ready(!line.contains("the end")))
        .collect()
        .await;
    // Calls by scripts inside Redis are no round trips; the probe belongs to no request; each script is loaded once.
    let trips = lines.iter().filter(|line| !line.contains(" lua] ") && line.contains("EVALSHA")).count();
    let others: Vec<_> = lines
        .iter()
        .filter(|line| !line.contains(" lua] ") && !line.contains("EVALSHA"))
        .filter(|line| !line.contains("nexusgate:probe") && !line.contains("CLIENT"))
        .collect();
    assert!(others.iter().all(|line| line.contains("SCRIPT")), "{others:?}");
    // The first calls found no script and were repeated.
    assert!(trips - others.len() <= 2 * requests, "{trips} for {requests}");
    assert!(trips >= requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_redis_has_forgotten_are_loaded_again() {
    let server = RedisServer::start();
    let limiter = limiter(&server, Burst::default()).await;
    assert!(limiter.admit(1, limits(10, None)).await.allowed());
    let () = server.run(&["SCRIPT", "FLUSH"]);
    assert_eq!(limiter.admit(1, limits(10, None)).await.state.rpm.unwrap().remaining, 28);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_bucket_concerns_its_key_alone() {
    let server = RedisServer::start();
    let limiter = limiter(&server, Burst::default()).await;
    let () = server.run(&["SET", "nexusgate:limit:{1}:rpm", "nonsense"]);
    assert!(limiter.admit(1, limits(10, None)).await.allowed());
    let _: u64 = server.run(&["RPUSH", "nexusgate:limit:{2}:rpm", "a list"]);
    assert!(limiter.admit(2, limits(10, None)).await.allowed());
    // Still in Redis: the link did not go down for that.
    assert!(limiter.admit(3, limits(10, None)).await.allowed());
    assert_eq!(server.run::<u64>(&["EXISTS", "nexusgate:limit:{3}:rpm"]), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_that_of_all_replicas_and_buckets_expire() {
    let server = RedisServer::start();
    let (one, other) = (limiter(&server, burst(1.0)).await, limiter(&server, burst(1.0)).await);
    // Slow enough not to refill during the test.
    let limits = limits(60, 6);
    assert!(one.admit(1, limits).await.allowed());
    assert!(other.admit(1, limits).await.allowed());
    other.charge(1, limits, 4);
    other.flush().await;
    let usage = one.recent_usage().await;
    assert_eq!(usage.len(), 1);
    assert_eq!(usage[0].tpm.unwrap().current, 4);
    assert_eq!(usage[0].tpm.unwrap().remaining, 2);
    assert!(usage[0].rpm.unwrap().current <= 2);
    assert!(one.admit(99, Limits::default()).await.allowed());
    assert_eq!(one.recent_usage().await.len(), 1, "a key without limits has no usage");

    // Two requests are refilled in two seconds, and the bucket expires a second later.
    let life: i64 = server.run(&["PTTL", "nexusgate:limit:{1}:rpm"]);
    assert!((0..=3000).contains(&life), "{life}");
    eventually("the bucket is gone", async || server.run::<u64>(&["EXISTS", "nexusgate:limit:{1}:rpm"]) == 0)
        .await;
    age(&server, "nexusgate:limit:{1}:tpm", Duration::from_secs(60));
    let usage = one.recent_usage().await;
    assert_eq!(usage[0].tpm.unwrap().current, 0);
    assert!(one.recent_usage().await.is_empty(), "reported down to zero, and then no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_back_does_not_stop_the_refill() {
    let server = RedisServer::start();
    let limiter = limiter(&server, burst(1.0)).await;
    let limits = limits(60, None);
    for _ in 0..60 {
        limiter.admit(1, limits).await;
    }
    // An hour ahead of the clock.
    let key = "nexusgate:limit:{1}:rpm";
    let stored: String = server.run(&["GET", key]);
    let (rest, at) = stored.rsplit_once(' ').unwrap();
    let () = server.run(&["SET", key, &format!("{rest} {}", at.parse::<u64>().unwrap() + 3_600_000_000)]);
    eventually("a request is allowed again", async || limiter.admit(1, limits).await.allowed()).await;
}

/// More keys than one batch: each is reported, and concurrent decisions do not wait for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_usage_of_many_keys_is_read_in_batches() {
    let server = RedisServer::start();
    let limiter = limiter(&server, burst(1.0)).await;
    let limits = limits(60, None);
    for key in 1..=300 {
        assert!(limiter.admit(key, limits).await.allowed());
    }
    let mut keys: Vec<i64> = limiter.recent_usage().await.iter().map(|usage| usage.key_id).collect();
    keys.sort_unstable();
    assert_eq!(keys, (1..=300).collect::<Vec<_>>());
}
