//! Three replicas on one Redis and one database, behind haproxy: they act as one.

use std::time::{Duration, Instant};

use entity::{completions, embeddings};
use nexusgate::demo::provider::{Gate, Reply};
use sea_orm::{EntityTrait, PaginatorTrait};

use crate::support::database::connect;
use crate::support::gateway::{KEY, Key};
use crate::support::haproxy::Haproxy;
use crate::support::load::{failed, p99};
use crate::support::{Load, PATIENCE, PAUSE, RedisServer, Replica, Site, eventually, machine};

const LIMITED: &str = "sk-limited-0123456789";
const SLOW: &str = "sk-slow-0123456789";

/// Far above a round trip on a busy machine: these tests are about the agreement of replicas; [`chaos`](crate::chaos)
/// is about a slow Redis.
const UNHURRIED: &str = "5s";

async fn sum(replicas: &[Replica], name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut sum = 0.0;
    for replica in replicas {
        let scrape = replica.scrape().await;
        let metric =
            labels.iter().fold(scrape.metric(name), |metric, (name, value)| metric.label(name, value));
        sum += metric.value();
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_at_once_pass_as_often_as_one_limit_allows() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[
        Key { key: LIMITED, comment: "limited", rpm: Some(60), tpm: None },
        Key { key: SLOW, comment: "slow", rpm: Some(20), tpm: None },
    ])
    .await;
    let settings = [("RATE_LIMIT_BURST", "1"), ("REDIS_TIMEOUT", UNHURRIED)];
    let mut replicas = site.three_replicas(&redis.url(), &settings).await;
    let haproxy = Haproxy::before(&replicas).await;

    let ask = |key: &'static str| {
        let body =
            serde_json::json!({ "model": "gpt-4o", "messages": [{ "role": "user", "content": "hi" }] });
        site.http.post(haproxy.url("/v1/chat/completions")).bearer_auth(key).json(&body).send()
    };
    let before = redis.clock();
    let answers = futures_util::future::join_all((0..600).map(|_| tokio::spawn(ask(LIMITED)))).await;
    let took = redis.clock() - before;
    let (mut allowed, mut refused) = (0_u32, 0_u32);
    for answer in answers {
        let answer = answer.expect("joined").expect("an answer");
        match answer.status().as_u16() {
            200 => allowed += 1,
            // One request is refilled every second.
            429 => {
                assert_eq!(answer.headers()["retry-after"], "1");
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    // The bucket held sixty requests, plus one, by Redis' clock, for each second of the burst.
    let most = 60.0 + took.floor();
    assert!((60.0..=most).contains(&f64::from(allowed)), "{allowed} of at most {most} in {took} s");

    // A caller that waits for the time it was told is admitted.
    let mut asked = 1;
    let mut answer = ask(LIMITED).await.expect("an answer");
    if answer.status() == 429 {
        refused += 1;
        tokio::time::sleep(retry_after(&answer)).await;
        answer = ask(LIMITED).await.expect("an answer");
        asked += 1;
    }
    assert_eq!(answer.status(), 200, "after {asked} requests");
    allowed += 1;

    let (slow_allowed, slow_refused) = retry_after_is_neither_too_short_nor_too_long(&site, &haproxy).await;

    // The counts of the clients, the replicas' expositions, Redis and the log agree.
    let total = f64::from(refused + slow_refused);
    eventually("every rejection is exposed", async || {
        sum(&replicas, "nexusgate_rate_limit_rejections_total", &[("limit_type", "rpm")]).await == total
    })
    .await;
    let limited = [("api_key_comment", "limited")];
    assert_eq!(sum(&replicas, "nexusgate_rate_limit_rejections_total", &limited).await, f64::from(refused));
    let stored: u64 = replicas.iter().map(|replica| redis.stored_rejections(&replica.name)).sum();
    assert_eq!(stored, u64::from(refused + slow_refused));
    let rejected = [("reason", "rate_limited")];
    assert_eq!(sum(&replicas, "nexusgate_requests_rejected_total", &rejected).await, total);
    for replica in &mut replicas {
        replica.settled().await;
        assert!(replica.terminate().await.success());
    }
    let rows = completions::Entity::find().count(&connect(&site.database_url).await).await.expect("a count");
    assert_eq!(rows, u64::from(allowed + slow_allowed));
    println!(
        "600 at once through haproxy to 3 replicas, limit 60: took {took:.2} s by Redis' clock, {} passed (60 to {most} \
         may), 429s {refused}; sum over replicas = HVALS = {stored} with the second key's {slow_refused}",
        allowed - 1
    );
}

fn retry_after(answer: &reqwest::Response) -> Duration {
    let seconds = answer.headers()["retry-after"].to_str().expect("text").parse().expect("whole seconds");
    Duration::from_secs(seconds)
}

/// A key that gets a request every three seconds: it is refused until the time it was told, rounded up to a whole second, and
/// not longer.
async fn retry_after_is_neither_too_short_nor_too_long(site: &Site, haproxy: &Haproxy) -> (u32, u32) {
    let body = serde_json::json!({ "model": "gpt-4o", "messages": [{ "role": "user", "content": "hi" }] });
    let ask = async || {
        let request = site.http.post(haproxy.url("/v1/chat/completions")).bearer_auth(SLOW).json(&body);
        request.send().await.expect("an answer")
    };
    let (mut allowed, mut refused) = (0, 0);
    let (told, at) = loop {
        let answer = ask().await;
        if answer.status() == 429 {
            refused += 1;
            break (retry_after(&answer), Instant::now());
        }
        allowed += 1;
    };
    assert!(told <= Duration::from_secs(3), "{told:?}");
    let mut last_refusal = at;
    loop {
        let asked = Instant::now();
        if ask().await.status() == 200 {
            allowed += 1;
            break;
        }
        refused += 1;
        last_refusal = asked;
        assert!(asked.duration_since(at) <= told, "told to wait {told:?}, and still refused");
        tokio::time::sleep(PAUSE).await;
    }
    let refused_for = last_refusal.duration_since(at) + PAUSE;
    assert!(
        refused_for + Duration::from_millis(1500) >= told,
        "told to wait {told:?}, let in after {refused_for:?}"
    );
    (allowed, refused)
}

/// An administrator's change on one replica reaches the others: at once through Redis, and by their timers without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_every_replica() {
    const INTERVAL: Duration = Duration::from_secs(4);
    let _machine = machine().await;
    let mut redis = RedisServer::start();
    let site = Site::new(&[Key { key: LIMITED, comment: "limited", rpm: None, tpm: None }]).await;
    let interval = humantime::format_duration(INTERVAL).to_string();
    let settings = [("SNAPSHOT_REFRESH_INTERVAL", interval.as_str()), ("REDIS_TIMEOUT", UNHURRIED)];
    let replicas = site.three_replicas(&redis.url(), &settings).await;

    // Several changes in sequence, so that the timers do not deliver all of them in time by chance.
    let mut slowest = Duration::ZERO;
    for round in 0..6 {
        let revoked = round % 2 == 0;
        revoke(&replicas[round % 3], revoked).await;
        let changed = Instant::now();
        everywhere(&replicas, if revoked { 401 } else { 200 }).await;
        slowest = slowest.max(changed.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");

    redis.kill();
    revoke(&replicas[0], true).await;
    let changed = Instant::now();
    everywhere(&replicas, 401).await;
    let by_timer = changed.elapsed();
    // A tenth of jitter, the reading itself, and the delays of a busy machine.
    assert!(by_timer < INTERVAL.mul_f64(1.1) + Duration::from_secs(1), "{by_timer:?}");
    println!(
        "an admin change on one of three replicas was in use on all within {slowest:?}, and without Redis in {by_timer:?} \
         (interval {INTERVAL:?})"
    );
}

/// Takes the limited key out of use, or back into it, through the admin API of one replica.
async fn revoke(replica: &Replica, revoked: bool) {
    let request = replica.admin(reqwest::Method::PUT, &format!("/api/admin/apiKey/{LIMITED}"));
    let answer = request.json(&serde_json::json!({ "revoked": revoked })).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

/// Waits until every replica answers the limited key's requests with this status.
async fn everywhere(replicas: &[Replica], status: u16) {
    for replica in replicas {
        eventually("the replica knows", async || {
            replica.chat(LIMITED).send().await.expect("an answer").status() == status
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_is_exclusive_over_all_replicas() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[]).await;
    let replicas = site.three_replicas(&redis.url(), &[("REDIS_TIMEOUT", UNHURRIED)]).await;
    let gate = Gate::new();
    site.provider.always(Reply::text("once").held_by(&gate));
    let ask = |replica: &Replica| replica.chat(KEY).header("x-nexusgate-reqid", "job-1").send();

    let running = tokio::spawn(ask(&replicas[0]));
    gate.reached(1).await;
    for replica in &replicas {
        let answer = ask(replica).await.expect("an answer");
        assert_eq!(answer.status(), 409, "{}", replica.name);
        assert_eq!(answer.headers()["retry-after"], "1");
    }
    gate.open();
    let first = running.await.expect("joined").expect("an answer");
    assert!(first.headers().get("x-cache").is_none());
    let first = first.text().await.expect("text");
    for replica in &replicas {
        // Busy until the others can see its row.
        let start = Instant::now();
        let answer = loop {
            let answer = ask(replica).await.expect("an answer");
            if answer.status() != 409 {
                break answer;
            }
            assert!(start.elapsed() < PATIENCE, "{} stays busy", replica.name);
            tokio::time::sleep(PAUSE).await;
        };
        assert_eq!(answer.headers()["x-cache"], "HIT", "{}", replica.name);
        assert_eq!(answer.text().await.expect("text"), first);
    }
    assert_eq!(site.provider.totals().requests, 1, "one call to the provider");
    let statuses = async |status| sum(&replicas, "nexusgate_completions_total", &[("status", status)]).await;
    assert_eq!((statuses("completed").await, statuses("cache_hit").await), (1.0, 3.0));
}

/// A request completed in one replica is answered by every other one while the first keeps working, and to all
/// concurrent callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completed_request_id_is_answered_under_load_and_to_many_at_once() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[]).await;
    let replicas = site.three_replicas(&redis.url(), &[("REDIS_TIMEOUT", UNHURRIED)]).await;
    let load = Load::on(&[replicas[0].url("")], 60).start();
    load.more(30).await;
    let ask = |replica: &Replica| replica.chat(KEY).header("x-nexusgate-reqid", "job-2").send();
    assert_eq!(ask(&replicas[0]).await.expect("an answer").status(), 200);
    eventually("another replica answers it", async || {
        ask(&replicas[1]).await.expect("an answer").status() == 200
    })
    .await;
    let answers = futures_util::future::join_all((0..20).map(|_| ask(&replicas[2]))).await;
    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-cache"], "HIT");
    }
    let seen = load.stop().await;
    assert!(failed(&seen, &[200]).is_empty());
}

/// Old rows are deleted, and only by a replica with the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_at_a_time_forgets_old_rows() {
    const LEASE: &str = "nexusgate:lease:retention";
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[]).await;
    let mut first = site.replica("first").started().await;
    for _ in 0..20 {
        first.chat(KEY).send().await.expect("an answer").bytes().await.expect("bytes");
    }
    assert!(first.terminate().await.success());
    let database = connect(&site.database_url).await;
    let rows = async || completions::Entity::find().count(&database).await.expect("a count");
    assert_eq!(rows().await, 20);

    // The lease is taken: the replicas request it, and delete nothing.
    let () = redis.run(&["SET", LEASE, "somebody else"]);
    let settings = [("REQUEST_LOG_RETENTION", "1ms"), ("REDIS_TIMEOUT", UNHURRIED)];
    let replicas = site.three_replicas(&redis.url(), &settings).await;
    let asked = || -> u64 {
        let stats: String = redis.run(&["INFO", "commandstats"]);
        let sets = stats.lines().find_map(|line| line.strip_prefix("cmdstat_set:calls=")?.split(',').next());
        sets.map_or(0, |calls| calls.parse().expect("a number"))
    };
    // Each replica's probe writes once a second, so a few more have passed when this many have.
    let before = asked();
    eventually("they have asked for the lease", async || asked() > before + 12).await;
    assert_eq!(rows().await, 20);
    assert_eq!(redis.run::<String>(&["GET", LEASE]), "somebody else");
    drop(replicas);

    let _: u64 = redis.run(&["DEL", LEASE]);
    let mut replicas = site.three_replicas(&redis.url(), &settings).await;
    eventually("the old rows are gone", async || rows().await == 0).await;
    assert_ne!(redis.run::<String>(&["GET", LEASE]), "somebody else", "one of them holds it");
    let mut held = 0;
    for replica in &mut replicas {
        let before: Option<String> = redis.run(&["GET", LEASE]);
        assert!(replica.terminate().await.success());
        let after: Option<String> = redis.run(&["GET", LEASE]);
        held += u32::from(before.is_some() && after.is_none());
    }
    assert_eq!(held, 1, "given back by the one that held it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[]).await;
    // Some answers are in progress when their replica gets SIGTERM.
    site.provider.always(Reply::text("Said slowly, word by word by word.").every(Duration::from_millis(40)));
    let settings = [("SHUTDOWN_DELAY", "2s"), ("REDIS_TIMEOUT", UNHURRIED)];
    let mut replicas = site.three_replicas(&redis.url(), &settings).await;
    let mut haproxy = Haproxy::before(&replicas).await;
    let load = Load::on(&[haproxy.url("")], 60).start();
    load.more(120).await;
    let restarted = Instant::now();
    for replica in &mut replicas {
        assert!(
            replica.terminate().await.success(),
            "everything was finished and written:\n{}",
            replica.output()
        );
        replica.start().await;
        haproxy.sees(3).await;
    }
    let done = Instant::now();
    load.more(120).await;
    let seen = load.stop().await;
    let failed = failed(&seen, &[200]);
    println!(
        "rolling restart of three replicas under 60 requests/s in {:.1} s: {} requests, {} failed; p99 {:.0} ms before, \
         {:.0} ms during",
        (done - restarted).as_secs_f64(),
        seen.len(),
        failed.len(),
        p99(&seen, seen[0].due..restarted),
        p99(&seen, restarted..done),
    );
    assert!(failed.is_empty(), "{failed:?}");
    for replica in &replicas {
        replica.settled().await;
    }
    let database = connect(&site.database_url).await;
    let completions = completions::Entity::find().count(&database).await.expect("a count");
    let embeddings = embeddings::Entity::find().count(&database).await.expect("a count");
    assert_eq!(completions + embeddings, seen.len() as u64, "and every one is in the log");
}

/// The requests are over and their rows are written: other replicas need not wait until the locks expire, nor need the
/// exit wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_leaves_no_request_id_locked() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[]).await;
    let replica = site.replica("a").setting("REDIS_URL", &redis.url()).setting("REDIS_TIMEOUT", UNHURRIED);
    let mut replica = replica.started().await;
    for job in ["one", "two"] {
        let answer = replica.chat(KEY).header("x-nexusgate-reqid", job).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.bytes().await.expect("bytes");
    }
    let locked = || redis.run::<Vec<String>>(&["KEYS", "nexusgate:inflight:*"]);
    assert!(!locked().is_empty(), "until their rows are sure to be found");
    assert!(replica.terminate().await.success());
    assert!(locked().is_empty(), "{:?}", locked());
}

/// An administrator's change is announced again and again while Redis is away; a shutdown does not wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_without_redis_owes_no_announcement() {
    let _machine = machine().await;
    let mut redis = RedisServer::start();
    let site = Site::new(&[]).await;
    let mut replica = site.replica("a").setting("REDIS_URL", &redis.url()).started().await;
    redis.kill();
    let change = replica.admin(reqwest::Method::POST, "/api/admin/apiKey");
    let made = change.json(&serde_json::json!({ "comment": "unannounced" })).send().await.expect("an answer");
    assert_eq!(made.status(), 200);
    assert!(replica.terminate().await.success());
    let said = replica.output();
    assert!(!said.contains("background work did not end in time"), "{said}");
}
