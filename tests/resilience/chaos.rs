//! Redis in trouble, seen from outside: two replicas under load go through every kind of trouble.
//!
//! The bound on a limit, for `n` replicas, a key's bucket of `capacity` that refills at `rate`, a test of `T` seconds and
//! an outage of `D` seconds in it: `capacity + rate × T` pass while Redis is well; during an outage each replica enforces
//! the whole limit by itself from what Redis last said, so that `n - 1` times `capacity + rate × D` may come on top; and
//! one more `capacity` where Redis forgot its buckets.

use std::time::{Duration, Instant};

use crate::support::gateway::Key;
use crate::support::load::{failed, p99, with_status};
use crate::support::proxy::SlowProxy;
use crate::support::{Load, RedisServer, Replica, Site, eventually, machine};

const BUSY: &str = "sk-busy-0123456789";
const LIMITED: &str = "sk-limited-0123456789";

/// The limited key's limit: two requests a second, and a burst of a tenth of a minute's worth.
const RPM: u32 = 120;
const RATE: f64 = 2.0;
const BURST: &str = "0.1";
const CAPACITY: f64 = 12.0;

/// Requests per second of the busy key, whose limits it never reaches, and of the limited one.
const BUSY_CALLS: u32 = 60;
const LIMITED_CALLS: u32 = 20;

/// The number of calls in a phase.
const CALLS: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Stopped,
    Paused,
    RestartedEmpty,
    Full,
    ReadOnly,
    Slow,
}

impl Trouble {
    const ALL: [Self; 6] =
        [Self::Stopped, Self::Paused, Self::RestartedEmpty, Self::Full, Self::ReadOnly, Self::Slow];

    fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Paused => "paused (SIGSTOP)",
            Self::RestartedEmpty => "restarted empty",
            Self::Full => "maxmemory reached",
            Self::ReadOnly => "read-only replica",
            Self::Slow => "200 ms latency",
        }
    }

    fn harm(self, redis: &mut RedisServer, wire: &SlowProxy, primary: &RedisServer) {
        match self {
            Self::Stopped => redis.save_and_stop(),
            Self::Paused => redis.pause(),
            Self::RestartedEmpty => redis.restart_empty(),
            Self::Full => redis.run(&["CONFIG", "SET", "maxmemory", "1"]),
            // Its data is replaced by the primary's: none.
            Self::ReadOnly => redis.run(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]),
            Self::Slow => wire.delay(Duration::from_millis(200)),
        }
    }

    fn heal(self, redis: &mut RedisServer, wire: &SlowProxy) {
        match self {
            Self::Stopped => redis.resume_from_disk(),
            Self::Paused => redis.resume(),
            Self::RestartedEmpty => {}
            Self::Full => redis.run(&["CONFIG", "SET", "maxmemory", "0"]),
            Self::ReadOnly => redis.run(&["REPLICAOF", "NO", "ONE"]),
            Self::Slow => wire.delay(Duration::ZERO),
        }
    }

    fn forgets(self) -> bool {
        matches!(self, Self::RestartedEmpty | Self::ReadOnly)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_in_every_kind_of_trouble() {
    let _machine = machine().await;
    let (mut redis, primary) = (RedisServer::start(), RedisServer::start());
    let wire = SlowProxy::to(redis.port).await;
    let site = Site::new(&[
        Key { key: BUSY, comment: "busy", rpm: Some(60_000_000), tpm: Some(600_000_000) },
        Key { key: LIMITED, comment: "limited", rpm: Some(RPM), tpm: None },
    ])
    .await;
    let url = format!("redis://127.0.0.1:{}", wire.port);
    let mut replicas = Vec::new();
    for name in ["a", "b"] {
        // The default timeout of 50 ms.
        let replica = site.replica(name).setting("REDIS_URL", &url).setting("RATE_LIMIT_BURST", BURST);
        replicas.push(replica.started().await);
    }
    let targets: Vec<String> = replicas.iter().map(|replica| replica.url("")).collect();

    println!(
        "| Redis | requests | failed | p99 before | during | after | limited: passed | at most | outage |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let (mut refused, mut passed) = (0, 0);
    for trouble in Trouble::ALL {
        let busy = Load::on(&targets, BUSY_CALLS).key(BUSY).start();
        let limited = Load::on(&targets, LIMITED_CALLS).key(LIMITED).start();
        let start = Instant::now();
        busy.more(CALLS).await;
        let errors = sum(&replicas, "nexusgate_redis_errors_total").await;
        let harmed = Instant::now();
        trouble.harm(&mut redis, &wire, &primary);
        eventually("both replicas notice", async || {
            sum(&replicas, "nexusgate_redis_errors_total").await >= errors + 2.0
        })
        .await;
        busy.more(CALLS).await;
        trouble.heal(&mut redis, &wire);
        eventually("Redis is used again", async || sum(&replicas, "nexusgate_redis_up").await == 2.0).await;
        let healed = Instant::now();
        busy.more(CALLS).await;
        let end = Instant::now();
        let (busy, limited) = (busy.stop().await, limited.stop().await);
        let stopped = Instant::now();

        let failures = failed(&busy, &[200]).len() + failed(&limited, &[200, 429]).len();
        let let_through = with_status(&limited, 200);
        let outage = (healed - harmed).as_secs_f64();
        let mut bound = CAPACITY + RATE * (stopped - start).as_secs_f64();
        bound += (replicas.len() - 1) as f64 * (CAPACITY + RATE * outage);
        bound += if trouble.forgets() { CAPACITY } else { 0.0 };
        println!(
            "| {} | {} | {failures} | {:.1} ms | {:.1} ms | {:.1} ms | {let_through} of {} | {bound:.0} | {outage:.1} s |",
            trouble.name(),
            busy.len() + limited.len(),
            p99(&busy, start..harmed),
            p99(&busy, harmed..healed),
            p99(&busy, healed..end),
            limited.len(),
        );
        assert_eq!(failures, 0, "{:?} {:?}", failed(&busy, &[200]), failed(&limited, &[200, 429]));
        assert!(let_through as f64 <= bound, "{}: {let_through} passed", trouble.name());
        // Nor does an outage lock a key out: the refill was available all the time.
        let least = RATE * (end - start).as_secs_f64() / 2.0;
        assert!(let_through as f64 >= least, "{}: only {let_through} passed", trouble.name());

        // The counters, right afterwards: the rejections that clients saw are exposed and stored.
        refused += with_status(&limited, 429);
        passed += busy.len() + let_through;
        counters_are_right(&replicas, &redis, refused, passed).await;
    }
}

async fn counters_are_right(replicas: &[Replica], redis: &RedisServer, refused: usize, passed: usize) {
    eventually("every rejection is exposed and stored", async || {
        let exposed = sum(replicas, "nexusgate_rate_limit_rejections_total").await;
        assert!(exposed <= refused as f64, "{exposed} exposed, {refused} seen");
        let stored: u64 = replicas.iter().map(|replica| redis.stored_rejections(&replica.name)).sum();
        assert!(stored <= refused as u64, "{stored} stored, {refused} seen");
        exposed == refused as f64 && stored == refused as u64
    })
    .await;
    for replica in replicas {
        replica.settled().await;
    }
    let counted = sum(replicas, "nexusgate_completions_total").await
        + sum(replicas, "nexusgate_embeddings_total").await;
    assert_eq!(counted, passed as f64);
}

async fn sum(replicas: &[Replica], name: &str) -> f64 {
    let mut sum = 0.0;
    for replica in replicas {
        sum += replica.scrape().await.metric(name).value();
    }
    sum
}
