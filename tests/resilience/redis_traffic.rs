//! The gateway's commands to Redis, and its use of the data it finds there.

use std::collections::BTreeMap;
use std::time::Instant;

use futures_util::StreamExt as _;
use nexusgate::demo::provider::{Answer, Reply};
use nexusgate::domain::usage::Usage;

use crate::support::gateway::{KEY, Key};
use crate::support::redis::REJECTIONS;
use crate::support::{PAUSE, RedisServer, Replica, Site, machine};

const LIMITED: &str = "sk-limited-0123456789";

/// Every command a server gets from its clients while `work` runs, except those that belong to no request: the probe of
/// Redis once a second, and the pings of the subscription.
async fn commands(redis: &RedisServer, work: impl AsyncFnOnce()) -> Vec<String> {
    const END: &str = "this is the end";
    let client = redis::Client::open(redis.url()).expect("a URL");
    let monitor = client.get_async_monitor().await.expect("it can be watched");
    let lines = monitor.into_on_message::<String>();
    work().await;
    let _: String = redis.run(&["ECHO", END]);
    // Calls by scripts inside Redis are no round trips.
    let noise = [" lua] ", "nexusgate:probe", "\"PING\"", "\"CLIENT\""];
    lines
        .take_while(|line| std::future::ready(!line.contains(END)))
        .filter(|line| std::future::ready(!noise.iter().any(|word| line.contains(word))))
        .collect()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_takes_at_most_two_round_trips_and_a_scrape_none() {
    const REQUESTS: usize = 300;
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site =
        Site::new(&[Key { key: LIMITED, comment: "limited", rpm: Some(1_000_000), tpm: Some(1_000_000) }])
            .await;
    let replica = site.replica("a").setting("REDIS_URL", &redis.url()).setting("REDIS_TIMEOUT", "5s");
    // The usage gauges query on their own timer, which is not measured here.
    let replica = replica.setting("GAUGE_REFRESH_INTERVAL", "1h").started().await;
    // The first calls load the scripts.
    answered(&replica, 1).await;

    let sent = commands(&redis, async || answered(&replica, REQUESTS).await).await;
    let scripts = sent.iter().filter(|line| line.contains("\"EVALSHA\"")).count();
    assert_eq!(scripts, sent.len(), "nothing but scripts: {sent:?}");
    assert!((REQUESTS..=2 * REQUESTS).contains(&scripts), "{scripts} for {REQUESTS} requests");

    let scrapes = commands(&redis, async || {
        for _ in 0..50 {
            replica.scrape().await;
        }
    })
    .await;
    assert!(scrapes.is_empty(), "{scrapes:?}");

    // A request id costs two more: the lock, and its release, which no caller waits for.
    let with_id = commands(&redis, async || {
        let answer =
            replica.chat(LIMITED).header("x-nexusgate-reqid", "job-1").send().await.expect("an answer");
        answer.bytes().await.expect("bytes");
    })
    .await;
    assert!(with_id.len() <= 4, "{with_id:?}");
    println!(
        "{REQUESTS} requests with both limits: {scripts} round trips to Redis ({:.2} each); 50 scrapes: {}",
        scripts as f64 / REQUESTS as f64,
        scrapes.len()
    );
}

async fn answered(replica: &Replica, requests: usize) {
    let calls =
        futures_util::stream::iter(0..requests).map(|_| replica.chat(LIMITED).send()).buffer_unordered(4);
    let answers: Vec<_> = calls.collect().await;
    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.bytes().await.expect("bytes");
    }
    // The charge comes after the answer.
    replica.settled().await;
}

/// An answer of ten times the limit is paid back at the limit's pace, on Redis' clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_answer_blocks_its_key_for_the_computed_time() {
    const LIMIT: u32 = 6_000;
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[Key { key: LIMITED, comment: "limited", rpm: None, tpm: Some(LIMIT) }]).await;
    let settings = [("RATE_LIMIT_BURST", "1"), ("REDIS_TIMEOUT", "5s")];
    let replicas = site.three_replicas(&redis.url(), &settings).await;
    let usage =
        Usage { prompt: Some(1_000), completion: Some(u64::from(LIMIT) * 10 - 1_000), ..Usage::default() };
    site.provider.next(Reply::answer(Answer::text("A lot.").usage(usage)));
    assert_eq!(replicas[0].chat(LIMITED).send().await.expect("an answer").status(), 200);
    replicas[0].settled().await;

    // The bucket held a minute's worth, so nine minutes' worth is owed; every replica reports it.
    let bucket = format!("nexusgate:limit:{{{}}}:tpm", key_of(&redis));
    for replica in &replicas {
        let told = refused(replica).await.expect("refused");
        assert!((535..=540).contains(&told), "{}: {told} s", replica.name);
    }
    // As if all but five seconds of it had passed.
    let left = 5.0;
    let owed = balance(&redis, &bucket).0;
    let to_wait = -owed / f64::from(LIMIT) / 1e6 + 1.0 / (f64::from(LIMIT) / 60.0);
    age(&redis, &bucket, to_wait - left - (redis.clock() - balance(&redis, &bucket).1));
    let aged = Instant::now();
    let mut turn = replicas.iter().cycle();
    let (mut last_refusal, mut last_told) = (aged, 0);
    loop {
        let asked = Instant::now();
        match refused(turn.next().expect("endless")).await {
            Some(told) => {
                let end = asked.duration_since(aged).as_secs_f64() + told as f64;
                assert!((left - 1.0..=left + 1.5).contains(&end), "told at {asked:?}: {told} s");
                (last_refusal, last_told) = (asked, told);
            }
            None => break,
        }
        tokio::time::sleep(PAUSE).await;
    }
    let blocked = aged.elapsed().as_secs_f64();
    assert_eq!(last_told, 1);
    // The delay between reading a clock and writing the time, on a busy machine.
    assert!(last_refusal.duration_since(aged).as_secs_f64() <= left + 0.5, "not longer than computed");
    assert!(blocked >= left - 0.5, "not shorter: {blocked} s");
    println!(
        "TPM debt of 10 × the limit: told 540 s; aged to {left} s before its end, the key was blocked for {blocked:.2} s more"
    );
}

/// The seconds a caller is told to wait; `None` when it is admitted.
async fn refused(replica: &Replica) -> Option<u64> {
    let answer = replica.chat(LIMITED).send().await.expect("an answer");
    match answer.status().as_u16() {
        200 => None,
        429 => answer.headers()["retry-after"].to_str().expect("text").parse().ok(),
        other => panic!("{other}"),
    }
}

/// The id of the only key that has a bucket.
fn key_of(redis: &RedisServer) -> String {
    let keys: Vec<String> = redis.run(&["KEYS", "nexusgate:limit:*:tpm"]);
    let [key] = &keys[..] else { panic!("one bucket: {keys:?}") };
    key.split(['{', '}']).nth(1).expect("a hash tag").to_owned()
}

/// A bucket's balance in parts (sixty million a token), and its time in seconds.
fn balance(redis: &RedisServer, bucket: &str) -> (f64, f64) {
    let stored: String = redis.run(&["GET", bucket]);
    let fields: Vec<f64> = stored.split(' ').map(|field| field.parse().expect("a number")).collect();
    (fields[0], fields[2] / 1e6)
}

/// Ages a bucket, as if these seconds had passed.
fn age(redis: &RedisServer, bucket: &str, seconds: f64) {
    let stored: String = redis.run(&["GET", bucket]);
    let (rest, at) = stored.rsplit_once(' ').expect("fields");
    let at = at.parse::<f64>().expect("microseconds") - seconds * 1e6;
    let () = redis.run(&["SET", bucket, &format!("{rest} {at:.0}"), "KEEPTTL"]);
}

/// Counts left by an earlier process, or the reference system, are on the first scrape: each count once, whichever
/// replica claims it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_scrape_has_what_was_stored() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[Key { key: LIMITED, comment: "team:ops", rpm: Some(1), tpm: None }]).await;
    let own = format!("{REJECTIONS}:a");
    for (hash, field, count) in [
        // Ours: the type comes first.
        (own.as_str(), "rpm:team:ops", "1"),
        (&own, r#"tpm:say "hi", {x}='é'"#, "2"),
        (&own, "rpm:", "4"),
        (&own, "rpm:日本:🦀", "8"),
        // Ours, in the old form.
        (&own, "team:ops:rpm", "16"),
        // The reference system's: the type comes last.
        (REJECTIONS, "team:ops:rpm", "100"),
        (REJECTIONS, r#"say "hi", {x}='é':tpm"#, "200"),
        (REJECTIONS, ":rpm", "400"),
        (REJECTIONS, "日本:🦀:rpm", "800"),
        (REJECTIONS, "rpm:tpm", "1600"),
    ] {
        let _: u64 = redis.run(&["HSET", hash, field, count]);
    }
    // The answers of the first scrapes, before any request.
    let mut replicas = ["a", "b"].map(|name| site.replica(name).setting("REDIS_URL", &redis.url()));
    for replica in &mut replicas {
        replica.launch();
    }
    let mut sums = BTreeMap::new();
    for replica in &mut replicas {
        replica.is_ready().await;
        let scrape = replica.scrape().await;
        for (comment, limit_type) in [
            ("team:ops", "rpm"),
            (r#"say "hi", {x}='é'"#, "tpm"),
            ("unknown", "rpm"),
            ("日本:🦀", "rpm"),
            ("rpm", "tpm"),
        ] {
            let metric = scrape.metric("nexusgate_rate_limit_rejections_total");
            *sums.entry(comment).or_insert(0.0) +=
                metric.label("api_key_comment", comment).label("limit_type", limit_type).value();
        }
    }
    let expected = [
        ("team:ops", 117.0),
        (r#"say "hi", {x}='é'"#, 202.0),
        ("unknown", 404.0),
        ("日本:🦀", 808.0),
        ("rpm", 1600.0),
    ];
    assert_eq!(sums, BTreeMap::from(expected));
    assert_eq!(redis.run::<u64>(&["EXISTS", REJECTIONS]), 0, "claimed");
    let stored: u64 = ["a", "b"].map(|name| redis.stored_rejections(name)).iter().sum();
    assert_eq!(stored as f64, sums.values().sum::<f64>());
}

/// The counters of a process begin at 0, except those that Redis keeps, which go on; so a restart is either a reset, which
/// Prometheus knows how to read, or nothing at all. A new series begins at 0 as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_counters_begin_at_zero_or_go_on() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[Key { key: LIMITED, comment: "limited", rpm: Some(1), tpm: None }]).await;
    let replica = site.replica("a").setting("REDIS_URL", &redis.url()).setting("REDIS_TIMEOUT", "5s");
    let mut replica = replica.setting("RATE_LIMIT_BURST", "1").started().await;
    let mut rejected = 0;
    for round in 0..3 {
        for _ in 0..20 {
            replica.chat(KEY).send().await.expect("an answer").bytes().await.expect("bytes");
            rejected += u32::from(replica.chat(LIMITED).send().await.expect("an answer").status() == 429);
        }
        let rejections = |scrape: &crate::support::scrape::Scrape| {
            let metric = scrape.metric("nexusgate_rate_limit_rejections_total");
            metric.label("api_key_comment", "limited").label("limit_type", "rpm").value()
        };
        let before = replica.eventually("counted", |scrape| rejections(scrape) == f64::from(rejected)).await;
        if round % 2 == 0 {
            replica.kill();
        } else {
            assert!(replica.terminate().await.success());
        }
        replica.start().await;
        let after = replica.scrape().await;
        assert_eq!(rejections(&after), f64::from(rejected), "it goes on");
        for (series, value) in counters(&after.text) {
            let name = series.split('{').next().expect("a name");
            match name {
                "nexusgate_rate_limit_rejections_total" => {
                    assert_eq!(counters(&before.text).get(series), Some(&value), "{series}");
                }
                // Counts since the restart: the rows of the journal's replay, and our own scrapes.
                "nexusgate_request_log_rows_total" => assert!(value <= 41.0, "{series} {value}"),
                "nexusgate_http_requests_total" => assert!(value < 500.0, "{series} {value}"),
                _ if name.starts_with("process_") || name.starts_with("tokio_") => {}
                _ => assert_eq!(value, 0.0, "{series} begins at 0"),
            }
        }
    }
    assert!(rejected > 30);
}

/// The samples of all counters.
fn counters(text: &str) -> BTreeMap<&str, f64> {
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| counters.contains(&series.split('{').next().expect("a name")))
        .map(|(series, value)| (series, value.parse().expect("a number")))
        .collect()
}
