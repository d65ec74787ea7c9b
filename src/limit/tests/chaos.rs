//! Redis in trouble: decisions go on, and an outage costs one timeout in total.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::server::{RedisServer, SlowProxy};
use super::{Witness, burst, eventually, limits};
use crate::domain::key::Secret;
use crate::limit::bucket::PARTS;
use crate::limit::{Burst, Observer, RedisLimiter, RedisLink, Settings};

/// A limiter under load, which runs through each of the troubles.
struct Load {
    limiter: Arc<RedisLimiter>,
    witness: Witness,
    stop: Arc<AtomicBool>,
    decisions: Arc<AtomicU64>,
    /// Allowed requests of the limited key.
    allowed: Arc<AtomicU64>,
    slowest_us: Arc<AtomicU64>,
    workers: JoinSet<()>,
    started: Instant,
}

/// Twice the default, for the sake of busy machines, and half the latency that counts as trouble.
const TIMEOUT: Duration = Duration::from_millis(100);

/// The limited key's limit, per minute; its bucket holds as much.
const LIMIT: u32 = 600;

impl Load {
    async fn start(url: Secret) -> Self {
        let witness = Witness::default();
        let link = RedisLink::start(&url, TIMEOUT, witness.observer()).await.unwrap();
        let load = Self {
            limiter: Arc::new(RedisLimiter::start(link, burst(1.0))),
            witness,
            stop: Arc::default(),
            decisions: Arc::default(),
            allowed: Arc::default(),
            slowest_us: Arc::default(),
            workers: JoinSet::new(),
            started: Instant::now(),
        };
        eventually("the link is up", async || load.witness.recoveries() > 0).await;
        load.with_workers()
    }

    fn with_workers(mut self) -> Self {
        for worker in 0..20 {
            let limiter = Arc::clone(&self.limiter);
            let (stop, decisions) = (Arc::clone(&self.stop), Arc::clone(&self.decisions));
            let (allowed, slowest) = (Arc::clone(&self.allowed), Arc::clone(&self.slowest_us));
            self.workers.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let start = Instant::now();
                    // One key that is limited, and others that always write.
                    let decision = if worker == 0 {
                        limiter.admit(1, limits(LIMIT, None)).await
                    } else {
                        limiter.admit(worker, limits(60_000_000, 600_000_000)).await
                    };
                    let took = u64::try_from(start.elapsed().as_micros()).unwrap();
                    slowest.fetch_max(took, Ordering::SeqCst);
                    decisions.fetch_add(1, Ordering::SeqCst);
                    if worker == 0 {
                        allowed.fetch_add(u64::from(decision.allowed()), Ordering::SeqCst);
                    } else {
                        assert!(decision.allowed());
                        limiter.charge(worker, limits(60_000_000, 600_000_000), 1);
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            });
        }
        self
    }

    async fn some_decisions(&self) {
        let before = self.decisions.load(Ordering::SeqCst);
        eventually("decisions are made", async || self.decisions.load(Ordering::SeqCst) > before + 200).await;
    }

    #[expect(clippy::print_stdout, reason = "the chaos table's figures, for those who run it by hand")]
    /// Runs one trouble: `harm`, the checks of its effect, `heal`.
    async fn go_through(mut self, name: &str, harm: impl AsyncFnOnce(), heal: impl AsyncFnOnce()) {
        self.some_decisions().await;
        // A machine that is busy enough may have had an outage of its own.
        eventually("the link is up", async || self.witness.recoveries() > self.witness.outages()).await;
        let (outages, failures) = (self.witness.outages(), self.witness.failures());
        let recoveries = self.witness.recoveries();
        let slow_before = self.slowest_us.swap(0, Ordering::SeqCst);

        harm().await;
        eventually("the outage is noticed", async || self.witness.outages() > outages).await;
        // Long enough for several attempts to come back.
        self.some_decisions().await;
        eventually("it was tried to come back", async || {
            self.witness.errors.lock().get(&super::RedisOp::Connect).copied().unwrap_or(0) >= 2
        })
        .await;
        self.some_decisions().await;
        let slow_during = self.slowest_us.swap(0, Ordering::SeqCst);
        assert_eq!(self.witness.outages(), outages + 1, "{name}: taken over once");
        assert_eq!(
            self.witness.failures(),
            failures + 1,
            "{name}: one timeout altogether, {:?}",
            self.witness.errors
        );
        // One timeout, and the delay of a busy machine.
        assert!(slow_during < 500_000, "{name}: a decision took {slow_during} µs");

        heal().await;
        eventually("Redis is used again", async || self.witness.recoveries() > recoveries).await;
        self.some_decisions().await;
        self.stop.store(true, Ordering::SeqCst);
        while let Some(worker) = self.workers.join_next().await {
            worker.unwrap();
        }
        // The bucket that Redis had, one more at most where Redis forgot it or this process began without a mirror, and
        // the refill.
        let allowed = self.allowed.load(Ordering::SeqCst);
        let refilled = self.started.elapsed().as_secs() * u64::from(LIMIT) / 60 + 10;
        assert!(allowed <= 2 * u64::from(LIMIT) + refilled, "{name}: {allowed} allowed");
        let slow_after = self.slowest_us.load(Ordering::SeqCst);
        println!(
            "{name}: slowest decision before {slow_before} µs, during {slow_during} µs, after {slow_after} µs"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped() {
    let mut server = RedisServer::start();
    let load = Load::start(server.url()).await;
    let server = std::cell::RefCell::new(&mut server);
    load.go_through(
        "stopped",
        async || server.borrow_mut().kill(),
        async || {
            server.borrow_mut().restart_empty();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused() {
    let server = RedisServer::start();
    let load = Load::start(server.url()).await;
    load.go_through("paused", async || server.pause(), async || server.resume()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]);
    let load = Load::start(server.url()).await;
    let limit = async |bytes: &str| server.run::<()>(&["CONFIG", "SET", "maxmemory", bytes]);
    load.go_through("maxmemory reached", async || limit("1").await, async || limit("0").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only() {
    let server = RedisServer::start();
    let primary = RedisServer::start();
    let load = Load::start(server.url()).await;
    let port = primary.port.to_string();
    load.go_through(
        "read-only replica",
        async || server.run::<()>(&["REPLICAOF", "127.0.0.1", &port]),
        async || server.run::<()>(&["REPLICAOF", "NO", "ONE"]),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow() {
    let server = RedisServer::start();
    let proxy = SlowProxy::before(&server).await;
    let load = Load::start(proxy.url()).await;
    load.go_through(
        "200 ms latency",
        async || proxy.delay(Duration::from_millis(200)),
        async || proxy.delay(Duration::ZERO),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_empty_between_two_requests() {
    let mut server = RedisServer::start();
    let witness = Witness::default();
    let link = RedisLink::start(&server.url(), Duration::from_secs(5), witness.observer()).await.unwrap();
    let limiter = RedisLimiter::start(link, burst(1.0));
    assert_eq!(limiter.admit(1, limits(10, None)).await.state.rpm.unwrap().remaining, 9);
    server.restart_empty();
    eventually("Redis is used again", async || witness.recoveries() > 1).await;
    assert!(limiter.admit(1, limits(10, None)).await.allowed());
    assert_eq!(server.run::<u64>(&["EXISTS", "nexusgate:limit:{1}:rpm"]), 1);
}

/// The stand-in continues from Redis' state, and Redis learns its charges afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_neither_refills_nor_forgives() {
    let server = RedisServer::start();
    let witness = Witness::default();
    let link = RedisLink::start(&server.url(), Duration::from_millis(500), witness.observer()).await.unwrap();
    let limiter = RedisLimiter::start(link, burst(10.0));
    // Ten requests and a thousand tokens at once; hardly any refill.
    let limits = limits(1, 100);
    for _ in 0..4 {
        assert!(limiter.admit(1, limits).await.allowed());
    }
    limiter.charge(1, limits, 300);
    limiter.flush().await;

    let () = server.run(&["CONFIG", "SET", "maxmemory", "1"]);
    eventually("the outage is noticed", async || witness.outages() == 1).await;
    let decision = limiter.admit(1, limits).await;
    assert_eq!(decision.state.rpm.unwrap().remaining, 5);
    assert!((695..=710).contains(&decision.state.tpm.unwrap().remaining), "{decision:?}");
    assert!(limiter.admit(1, limits).await.allowed());
    limiter.charge(1, limits, 2000);
    limiter.flush().await;
    assert!(!limiter.admit(1, limits).await.allowed());

    let () = server.run(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("Redis is used again", async || witness.recoveries() == 2).await;
    eventually("Redis knows what was consumed", async || {
        let usage = limiter.usage(1, limits).await;
        usage.rpm.unwrap().current == 6 && usage.tpm.unwrap().current > 2200
    })
    .await;
    assert!(!limiter.admit(1, limits).await.allowed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_redis_works_and_joins_it_later() {
    let mut server = RedisServer::start();
    server.kill();
    let witness = Witness::default();
    let link = RedisLink::start(&server.url(), Settings::REDIS_TIMEOUT, witness.observer()).await.unwrap();
    assert!(!link.is_up());
    let limiter = RedisLimiter::start(link, Burst::default());
    let start = Instant::now();
    for _ in 0..30 {
        assert!(limiter.admit(1, limits(10, None)).await.allowed());
    }
    assert!(!limiter.admit(1, limits(10, None)).await.allowed());
    assert!(start.elapsed() < Duration::from_secs(1), "nobody waits for a Redis that is known to be away");
    server.restart_empty();
    eventually("Redis is used", async || witness.recoveries() == 1).await;
    eventually("Redis knows what was consumed", async || {
        limiter.usage(1, limits(10, None)).await.rpm.unwrap().current >= 29
    })
    .await;
}

/// Redis carries out a request although its answer is not waited for any more: then it is counted there already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_redis_may_have_taken_is_not_reported_again() {
    let server = RedisServer::start();
    let link =
        RedisLink::start(&server.url(), Duration::from_millis(500), Observer::default()).await.unwrap();
    let limiter = RedisLimiter::start(link.clone(), burst(10.0));
    // Ten requests at once; hardly any refill.
    let limits = limits(1, 1_000);
    // Redis knows the scripts from here on.
    assert!(limiter.admit(2, limits).await.allowed());
    let mut status = link.status();
    let before = status.borrow_and_update().generation;

    // What has been sent lies in the socket.
    server.pause();
    assert!(limiter.admit(1, limits).await.allowed());
    assert!(!link.is_up());
    server.resume();
    status.wait_for(|status| status.up && status.generation > before).await.unwrap();
    // What is owed is reported before this.
    limiter.charge(1, limits, 1);
    limiter.flush().await;
    let taken = || {
        let stored: Option<String> = server.run(&["GET", "nexusgate:limit:{1}:rpm"]);
        let fields = |text: String| text.split(' ').map(|field| field.parse().unwrap()).collect::<Vec<i64>>();
        let used = stored.map(fields).map_or(0, |fields| fields[1] - fields[0]);
        (used + PARTS / 2) / PARTS
    };
    eventually("it is carried out", async || taken() > 0).await;
    assert_eq!(taken(), 1);
}

/// Without traffic the probe finds an outage, which is told like any other: the log says how long it took.
#[tokio::test]
async fn an_outage_that_the_probe_finds_begins_when_it_is_found() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let writer = Arc::new(log.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let server = RedisServer::start();
    let witness = Witness::default();
    let link = RedisLink::start(&server.url(), TIMEOUT, witness.observer()).await.unwrap();
    eventually("the link is up", async || link.is_up()).await;
    server.pause();
    let mut not_yet = Instant::now();
    eventually("the probe finds it", async || {
        let found = witness.outages() > 0;
        if !found {
            not_yet = Instant::now();
        }
        found
    })
    .await;
    server.resume();
    eventually("Redis is used again", async || witness.recoveries() > 1).await;
    let most = not_yet.elapsed();
    let log = std::fs::read_to_string(log.path()).unwrap();
    let after = log.lines().rfind(|line| line.contains("Redis is there")).unwrap().split("after=").nth(1);
    let told = seconds(after.unwrap());
    assert!(told <= most.as_secs_f64(), "{told} s of at most {most:?}:\n{log}");
}

/// Reads a duration as its `Debug` has it.
fn seconds(text: &str) -> f64 {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap();
    let unit = match &text[at..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        other => panic!("{other}"),
    };
    text[..at].parse::<f64>().unwrap() * unit
}
