//! Announcements, locks and leases over real Redis servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::eventually;
use super::server::RedisServer;
use crate::domain::label::LogTable;
use crate::limit::{Coordination, Lock, Observer, RedisLink};

async fn replica(server: &RedisServer) -> Coordination {
    let link = RedisLink::start(&server.url(), Duration::from_secs(5), Observer::default()).await.unwrap();
    Coordination::new(link)
}

fn counter() -> (Arc<AtomicU64>, impl Fn() + Send + Sync + 'static) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    (count, move || {
        counted.fetch_add(1, Ordering::SeqCst);
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announcements_reach_the_others_and_survive_a_restart_of_redis() {
    let mut server = RedisServer::start();
    let (one, other) = (replica(&server).await, replica(&server).await);
    let (heard_by_one, on_one) = counter();
    let (heard_by_other, on_other) = counter();
    let _one = one.on_announcement(on_one);
    let _other = other.on_announcement(on_other);
    let at_least = |count: &Arc<AtomicU64>, wanted: u64| {
        let count = Arc::clone(count);
        async move { eventually("it is heard", async || count.load(Ordering::SeqCst) >= wanted).await }
    };
    // Once for the subscription itself: something may have been missed before it.
    at_least(&heard_by_one, 1).await;
    at_least(&heard_by_other, 1).await;
    assert!(one.announce().await);
    at_least(&heard_by_other, 2).await;
    assert_eq!(heard_by_one.load(Ordering::SeqCst), 1, "nobody hears himself");

    server.restart_empty();
    at_least(&heard_by_other, 3).await;
    at_least(&heard_by_one, 2).await;
    let before = heard_by_other.load(Ordering::SeqCst);
    eventually("the link is back", async || one.announce().await).await;
    at_least(&heard_by_other, before + 1).await;
}

/// A change is announced once Redis accepts it, even if not at once; the others' subscriptions have seen no
/// interruption.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announcement_that_failed_is_made_again() {
    let server = RedisServer::start();
    let (one, other) = (replica(&server).await, replica(&server).await);
    let (heard, on_other) = counter();
    let _other = other.on_announcement(on_other);
    eventually("the subscription is there", async || heard.load(Ordering::SeqCst) == 1).await;
    let _: () = server.run(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let tell = || {
        let one = one.clone();
        tokio::spawn(async move { one.announce_surely().await })
    };
    let telling = tell();
    eventually("the link is given up", async || !one.announce().await).await;
    let more = tell();
    eventually("one of both leaves it to the other", async || telling.is_finished() || more.is_finished())
        .await;
    assert_eq!(heard.load(Ordering::SeqCst), 1, "Redis did not take it");
    let _: () = server.run(&["CLIENT", "UNPAUSE"]);
    eventually("it is heard", async || heard.load(Ordering::SeqCst) >= 2).await;
    telling.await.unwrap();
    more.await.unwrap();
}

/// A client that disconnects while its id is being locked may retry at once.
#[tokio::test]
async fn a_lock_whose_caller_has_left_is_released() {
    let server = RedisServer::start();
    let (one, other) = (replica(&server).await, replica(&server).await);
    let before = server.calls("set");
    let mut lock = Box::pin(one.lock(LogTable::Completions, 1, "request"));
    assert!(futures_util::poll!(&mut lock).is_pending());
    drop(lock);
    one.flush().await;
    assert_eq!(server.calls("set"), before + 1, "it had been taken");
    assert!(matches!(other.lock(LogTable::Completions, 1, "request").await, Lock::Held(_)));
}

/// Redis answers too late, and carries the lock out all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_comes_too_late_is_released() {
    let server = RedisServer::start();
    let one = replica(&server).await;
    let before = server.calls("set");
    // What has been sent lies in the socket, and is read whether or not its sender still waits.
    server.pause();
    assert!(matches!(one.lock(LogTable::Completions, 1, "request").await, Lock::Unavailable));
    server.resume();
    eventually("it is carried out", async || server.calls("set") > before).await;
    let held = || server.run::<Vec<String>>(&["KEYS", "nexusgate:inflight:*"]);
    // From now on only a release can end it.
    for key in held() {
        let _: u64 = server.run(&["PERSIST", &key]);
    }
    eventually("it is released", async || held().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_is_locked_for_one_replica_at_a_time() {
    let server = RedisServer::start();
    let (one, other) = (replica(&server).await, replica(&server).await);
    let Lock::Held(guard) = one.lock(LogTable::Completions, 1, "request").await else { panic!("not held") };
    assert!(matches!(other.lock(LogTable::Completions, 1, "request").await, Lock::Busy));
    assert!(matches!(one.lock(LogTable::Completions, 1, "request").await, Lock::Busy));
    assert!(
        matches!(other.lock(LogTable::Completions, 2, "request").await, Lock::Held(_)),
        "another key's request"
    );
    drop(guard);
    eventually("it is released", async || {
        matches!(other.lock(LogTable::Completions, 1, "request").await, Lock::Held(_))
    })
    .await;
    one.flush().await;
    other.flush().await;
    assert!(server.run::<Vec<String>>(&["KEYS", "nexusgate:inflight:*"]).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_lock_is_renewed_and_someone_elses_is_not_released() {
    let server = RedisServer::start();
    let one = replica(&server).await;
    let Lock::Held(guard) = one.lock(LogTable::Completions, 1, "long").await else { panic!("not held") };
    let key = server.run::<Vec<String>>(&["KEYS", "nexusgate:inflight:*"]).remove(0);
    let _: u64 = server.run(&["PEXPIRE", &key, "9000"]);
    eventually("it is renewed", async || server.run::<i64>(&["PTTL", &key]) > 9000).await;
    let () = server.run(&["SET", &key, "somebody else"]);
    drop(guard);
    one.flush().await;
    assert_eq!(server.run::<String>(&["GET", &key]), "somebody else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_belongs_to_one_until_it_is_given_back_or_runs_out() {
    let server = RedisServer::start();
    let (one, other) = (replica(&server).await, replica(&server).await);
    let minute = Duration::from_secs(60);
    let (ours, theirs) = (one.lease("retention", minute), other.lease("retention", minute));
    assert_eq!(ours.hold().await, Some(true));
    assert_eq!(ours.hold().await, Some(true), "prolonged");
    assert_eq!(theirs.hold().await, Some(false));
    theirs.release().await;
    assert_eq!(theirs.hold().await, Some(false), "only the holder gives it back");
    ours.release().await;
    assert_eq!(theirs.hold().await, Some(true));
    let short = one.lease("short", Duration::from_millis(50));
    assert_eq!(short.hold().await, Some(true));
    let waiting = other.lease("short", minute);
    eventually("it runs out", async || waiting.hold().await == Some(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_nobody_knows() {
    let mut server = RedisServer::start();
    let one = replica(&server).await;
    server.kill();
    eventually("the outage is noticed", async || {
        matches!(one.lock(LogTable::Completions, 1, "request").await, Lock::Unavailable)
    })
    .await;
    assert_eq!(one.lease("retention", Duration::from_secs(1)).hold().await, None);
    assert!(!one.announce().await);
}
