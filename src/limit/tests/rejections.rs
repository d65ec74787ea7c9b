//! Rejection counts across our restarts and Redis'.

use std::collections::HashMap;
use std::time::Duration;

use super::server::RedisServer;
use super::{Witness, eventually};
use crate::domain::key::Secret;
use crate::domain::label::{LabelValue, LimitType};
use crate::limit::{Burst, LimitServices, Rejections, Settings};

const REFERENCE: &str = "nexusgate:metrics:rate_limit_rejections";

/// One replica, as the application starts it.
struct Replica {
    services: LimitServices,
    witness: Witness,
}

impl Replica {
    async fn start(url: Secret, instance: &str) -> Self {
        let witness = Witness::default();
        let settings = Settings {
            burst: Burst::default(),
            redis_url: Some(url),
            // Long: these tests cause all failures on purpose.
            redis_timeout: Duration::from_secs(1),
            instance_id: instance.to_owned(),
        };
        let services = LimitServices::start(&settings, witness.observer()).await.unwrap();
        Self { services, witness }
    }

    fn reject(&self, comment: &str, times: u64) {
        for _ in 0..times {
            self.services.rejections.rejected(LimitType::Rpm, &LabelValue::new(comment));
        }
    }

    fn exposed(&self, comment: &str) -> u64 {
        self.witness.exposed(LimitType::Rpm, comment)
    }

    /// Ends it as `kill -9` does: nothing is flushed or announced. What it had sent is stored when this returns.
    async fn kill(self, server: &RedisServer) {
        drop(self);
        let clients = || server.run::<String>(&["CLIENT", "LIST", "TYPE", "normal"]).lines().count();
        eventually("Redis has read all that it was sent", async || clients() == 1).await;
    }
}

fn hash(server: &RedisServer, instance: &str) -> HashMap<String, u64> {
    server.run(&["HGETALL", &format!("{REFERENCE}:{instance}")])
}

fn stored(server: &RedisServer, instance: &str, field: &str) -> u64 {
    hash(server, instance).get(field).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_is_exposed_when_it_is_stored_and_seeded_after_a_restart() {
    let server = RedisServer::start();
    let replica = Replica::start(server.url(), "a").await;
    replica.reject("team:x", 3);
    replica.services.rejections.rejected(LimitType::Tpm, &LabelValue::new("team:x"));
    replica.services.flush().await;
    assert_eq!(replica.exposed("team:x"), 3);
    assert_eq!(hash(&server, "a"), HashMap::from([("rpm:team:x".into(), 3), ("tpm:team:x".into(), 1)]));
    let days = server.run::<u64>(&["TTL", &format!("{REFERENCE}:a")]).div_ceil(86_400);
    assert_eq!(days, 30);

    replica.reject("team:x", 100);
    replica.kill(&server).await;
    let before = stored(&server, "a", "rpm:team:x");
    let replica = Replica::start(server.url(), "a").await;
    assert_eq!(replica.exposed("team:x"), before, "seeded before anything else");
    assert_eq!(replica.witness.exposed(LimitType::Tpm, "team:x"), 1);
    replica.reject("team:x", 2);
    replica.services.flush().await;
    assert_eq!(replica.exposed("team:x"), before + 2);
    assert_eq!(stored(&server, "a", "rpm:team:x"), before + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_is_no_count_spoils_no_other() {
    let server = RedisServer::start();
    let own = format!("{REFERENCE}:a");
    server.run::<u64>(&["HSET", &own, "rpm:bad", "many"]);
    let replica = Replica::start(server.url(), "a").await;
    for round in 1..=3 {
        replica.reject("good", 2);
        replica.reject("bad", 1);
        replica.services.flush().await;
        assert_eq!((replica.exposed("good"), replica.exposed("bad")), (2 * round, round));
        assert_eq!(
            hash(&server, "a"),
            HashMap::from([("rpm:good".into(), 2 * round), ("rpm:bad".into(), round)])
        );
    }
}

/// Counts that a batch has added before it failed are not added again when it is retried.
#[tokio::test]
async fn a_batch_that_fails_half_way_is_added_once() {
    let server = RedisServer::start();
    let replica = Replica::start(server.url(), "a").await;
    // No room for five more.
    server.run::<u64>(&["HSET", &format!("{REFERENCE}:a"), "rpm:big", &(i64::MAX - 1).to_string()]);
    // On one thread, so both are in one batch.
    replica.reject("good", 5);
    replica.reject("big", 5);
    for _ in 0..3 {
        replica.services.flush().await;
        // The remaining counts are resent with it.
        replica.reject("other", 1);
        replica.services.flush().await;
        assert_eq!((stored(&server, "a", "rpm:good"), replica.exposed("good")), (5, 5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exposed_never_exceeds_stored_while_redis_is_well() {
    let server = RedisServer::start();
    let replica = Replica::start(server.url(), "a").await;
    for round in 1..=50 {
        replica.reject("k", 20);
        tokio::task::yield_now().await;
        let exposed = replica.exposed("k");
        assert!(exposed <= stored(&server, "a", "rpm:k"), "round {round}");
    }
    replica.services.flush().await;
    assert_eq!(replica.exposed("k"), 1000);
    // Coalesced: far fewer trips than rejections.
    assert!(server.calls("hincrby") < 500, "{}", server.calls("hincrby"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_forms_are_seeded_exactly() {
    let server = RedisServer::start();
    let put = |key: &str, field: &str, count: &str| server.run::<u64>(&["HSET", key, field, count]);
    let own = format!("{REFERENCE}:a");
    let long = "é".repeat(200);
    for (field, count) in [
        ("rpm:team:a:b", "1"),
        ("rpm:", "2"),
        ("rpm:unknown", "4"),
        (r#"tpm:say "hi", {x}='é'"#, "8"),
        (r"rpm:back\slash", "16"),
        ("rpm:back/slash", "32"),
        ("rpm:rpm", "64"),
        ("rpm:tpm", "128"),
        ("rpm: padded ", "256"),
        ("nonsense", "5"),
        ("rpm:not a number", "five"),
    ] {
        put(&own, field, count);
    }
    put(&own, &format!("rpm:{long}"), "512");
    for (field, count) in [
        ("team:a:b:rpm", "1000"),
        (":rpm", "2000"),
        (r#"say "hi", {x}='é':tpm"#, "8000"),
        (r"back\slash:rpm", "16000"),
        ("tpm:rpm", "128000"),
        ("line\nbreak:rpm", "3"),
        ("日本:🦀:rpm", "7"),
    ] {
        put(REFERENCE, field, count);
    }
    let replica = Replica::start(server.url(), "a").await;
    let truncated = "é".repeat(128);
    for (comment, count) in [
        ("team:a:b", 1001),
        ("unknown", 2006),
        ("back/slash", 16_048),
        ("rpm", 64),
        ("tpm", 128_128),
        ("padded", 256),
        ("line break", 3),
        ("日本:🦀", 7),
        (truncated.as_str(), 512),
    ] {
        assert_eq!(replica.exposed(comment), count, "{comment}");
    }
    assert_eq!(replica.witness.exposed(LimitType::Tpm, r#"say "hi", {x}='é'"#), 8008);
    let total = replica.witness.all_exposed();
    assert_eq!(server.run::<u64>(&["EXISTS", REFERENCE]), 0, "claimed");
    let fields: HashMap<String, String> = server.run(&["HGETALL", &own]);
    assert_eq!(fields["nonsense"], "5", "what we do not understand is left alone");
    assert_eq!(fields["rpm:not a number"], "five");
    let counted = fields.iter().filter(|(field, _)| *field != "nonsense" && *field != "rpm:not a number");
    assert_eq!(counted.map(|(_, count)| count.parse::<u64>().unwrap()).sum::<u64>(), total);

    // And once more, with nothing left to move; a rejection of each of two comments that look alike adds to their one
    // count.
    drop(replica);
    let replica = Replica::start(server.url(), "a").await;
    assert_eq!(replica.witness.all_exposed(), total);
    replica.reject(r"back\slash", 1);
    replica.reject("back/slash", 1);
    replica.reject("", 1);
    replica.services.flush().await;
    assert_eq!(replica.exposed("back/slash"), 16_050);
    assert_eq!(replica.exposed("unknown"), 2007);
    drop(replica);
    assert_eq!(Replica::start(server.url(), "a").await.witness.all_exposed(), total + 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_start_at_once_claim_the_references_hash_once() {
    for _ in 0..5 {
        let server = RedisServer::start();
        for n in 0..50 {
            let _: u64 = server.run(&["HSET", REFERENCE, &format!("key {n}:rpm"), "10"]);
        }
        let (a, b, c) = tokio::join!(
            Replica::start(server.url(), "a"),
            Replica::start(server.url(), "b"),
            Replica::start(server.url(), "c"),
        );
        let exposed = [&a, &b, &c].map(|replica| replica.witness.all_exposed());
        assert_eq!(exposed.iter().sum::<u64>(), 500, "{exposed:?}");
        let held = ["a", "b", "c"].map(|instance| hash(&server, instance).values().sum::<u64>());
        assert_eq!(held, exposed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lost_its_memory_is_told_again() {
    let mut server = RedisServer::start();
    let replica = Replica::start(server.url(), "a").await;
    replica.reject("kept", 7);
    replica.reject("grows", 7);
    replica.services.flush().await;
    server.kill();
    eventually("the outage is noticed", async || replica.witness.outages() == 1).await;
    replica.reject("grows", 5);
    replica.reject("new", 1);
    replica.services.rejections.flush().await;
    assert_eq!(replica.exposed("grows"), 12, "exposed at once while Redis is away");
    server.restart_empty();
    let all = HashMap::from([("rpm:kept".into(), 7), ("rpm:grows".into(), 12), ("rpm:new".into(), 1)]);
    eventually("everything is stored again", async || hash(&server, "a") == all).await;

    // Emptied behind our back: the next rejection repairs its own count at once, a reconnection repairs the others.
    let () = server.run(&["FLUSHALL"]);
    replica.reject("grows", 1);
    replica.services.flush().await;
    assert_eq!(stored(&server, "a", "rpm:grows"), 13);
    assert_eq!(replica.exposed("grows"), 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_answer_was_lost_counts_once() {
    let server = RedisServer::start();
    let replica = Replica::start(server.url(), "a").await;
    replica.reject("k", 1);
    replica.services.flush().await;
    // The command reaches the socket of a server that does not read; it will read it when it is resumed.
    server.pause();
    replica.reject("k", 10);
    replica.services.rejections.flush().await;
    assert_eq!(replica.exposed("k"), 11, "exposed when Redis turned out to be away");
    replica.reject("k", 100);
    replica.services.rejections.flush().await;
    assert_eq!(replica.exposed("k"), 111);
    server.resume();
    eventually("Redis is used again", async || replica.witness.recoveries() > 1).await;
    eventually("all is stored", async || stored(&server, "a", "rpm:k") >= 111).await;
    replica.reject("k", 1);
    replica.services.flush().await;
    assert_eq!(stored(&server, "a", "rpm:k"), 112);
    assert_eq!(replica.exposed("k"), 112);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_redis_makes_no_spike_later() {
    let mut server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let replica = Replica::start(server.url(), "a").await;
    replica.reject("busy", 1000);
    replica.reject("quiet", 1000);
    replica.services.flush().await;
    drop(replica);
    server.kill();

    let replica = Replica::start(server.url(), "a").await;
    replica.reject("busy", 3);
    replica.services.rejections.flush().await;
    assert_eq!(replica.exposed("busy"), 3, "begins again at 0");
    server.restart_empty(); // which is not empty: it reads its log
    eventually("it is stored", async || stored(&server, "a", "rpm:busy") == 1003).await;
    assert_eq!(replica.exposed("busy"), 3, "old rejections are not added to a series that began again");
    assert_eq!(replica.exposed("quiet"), 1000, "a series that has not begun is seeded late");
    replica.reject("busy", 1);
    replica.services.flush().await;
    drop(replica);

    // Redis loses its data; the restarted process must still know the hidden counts.
    let replica = Replica::start(server.url(), "a").await;
    assert_eq!(replica.exposed("busy"), 4, "a restart continues where the last scrape was");
    let () = server.run(&["FLUSHALL"]);
    let _: u64 = server.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually("it is stored again", async || stored(&server, "a", "rpm:busy") == 1004).await;
    drop(replica);
    assert_eq!(Replica::start(server.url(), "a").await.exposed("busy"), 4);
}

/// The first rejection of a comment shows both types, one of them at 0: neither may be seeded after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_seed_spares_both_types_of_a_comment() {
    let mut server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let replica = Replica::start(server.url(), "a").await;
    replica.reject("k", 1000);
    replica.services.rejections.rejected(LimitType::Tpm, &LabelValue::new("k"));
    replica.services.flush().await;
    drop(replica);
    server.kill();

    let replica = Replica::start(server.url(), "a").await;
    replica.reject("k", 1);
    replica.services.rejections.flush().await;
    server.restart_empty(); // which is not empty: it reads its log
    eventually("it is stored", async || stored(&server, "a", "rpm:k") == 1001).await;
    assert_eq!(replica.exposed("k"), 1);
    assert_eq!(replica.witness.exposed(LimitType::Tpm, "k"), 0);
    replica.services.rejections.rejected(LimitType::Tpm, &LabelValue::new("k"));
    replica.services.flush().await;
    assert_eq!(replica.witness.exposed(LimitType::Tpm, "k"), 1);
    assert_eq!(stored(&server, "a", "tpm:k"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_share_a_name_lose_nothing_and_are_told() {
    let server = RedisServer::start();
    let (one, other) =
        (Replica::start(server.url(), "host").await, Replica::start(server.url(), "host").await);
    for _ in 0..20 {
        one.reject("k", 5);
        other.reject("k", 5);
        tokio::join!(one.services.flush(), other.services.flush());
    }
    assert_eq!(stored(&server, "host", "rpm:k"), 200);
    assert_eq!(one.exposed("k") + other.exposed("k"), 200);
    assert!(one.witness.name_shared() && other.witness.name_shared());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_passes_on_at_a_restart_is_not_shared() {
    let server = RedisServer::start();
    let before = Replica::start(server.url(), "host").await;
    before.reject("k", 5);
    before.services.flush().await;
    drop(before.services);
    let after = Replica::start(server.url(), "host").await;
    for _ in 0..3 {
        after.reject("k", 5);
        after.services.flush().await;
    }
    assert_eq!(after.exposed("k"), 20);
    assert!(!before.witness.name_shared() && !after.witness.name_shared());
}

#[tokio::test]
async fn without_redis_rejections_are_exposed_at_once() {
    let witness = Witness::default();
    let rejections = Rejections::in_memory(witness.observer());
    rejections.rejected(LimitType::Tpm, &LabelValue::new("k"));
    assert_eq!(witness.exposed(LimitType::Tpm, "k"), 1);
    rejections.flush().await;
}
