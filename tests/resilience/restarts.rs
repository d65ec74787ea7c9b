//! A real Prometheus watches three replicas, one of which is killed twice under load: its stored samples match what the
//! clients saw.

use std::collections::BTreeMap;

use crate::support::gateway::{KEY, Key};
use crate::support::haproxy::Haproxy;
use crate::support::load::{End, Kind, Seen, now, with_status};
use crate::support::prometheus::{Prometheus, growth};
use crate::support::{Load, RedisServer, Site, eventually, machine};

const LIMITED: &str = "sk-limited-0123456789";

/// Prometheus may shift a sample's time by 2 ms for even steps (`scrapeTimestampTolerance`), and clocks are read at
/// slightly different moments.
const SLACK: f64 = 0.01;

/// The replica that is killed.
const VICTIM: &str = "b";

/// A metric, and the load and answers that it counts.
struct Counted {
    what: &'static str,
    selector: &'static str,
    status: u16,
    limited: bool,
}

const COUNTED: [Counted; 3] = [
    Counted {
        what: "completions of the unlimited key",
        selector: r#"nexusgate_completions_total{status="completed",api_key_comment="tests"}"#,
        status: 200,
        limited: false,
    },
    Counted {
        what: "completions of the limited key",
        selector: r#"nexusgate_completions_total{status="completed",api_key_comment="limited"}"#,
        status: 200,
        limited: true,
    },
    Counted {
        what: "rejections of the limited key",
        selector: r#"nexusgate_rate_limit_rejections_total{limit_type="rpm",api_key_comment="limited"}"#,
        status: 429,
        limited: true,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_stores_what_clients_saw() {
    let _machine = machine().await;
    let redis = RedisServer::start();
    let site = Site::new(&[Key { key: LIMITED, comment: "limited", rpm: Some(600), tpm: None }]).await;
    // The limited key sends ten requests a second, and is over its limit from the beginning.
    let settings = [("RATE_LIMIT_BURST", "0.1"), ("REDIS_TIMEOUT", "5s")];
    let mut replicas = site.three_replicas(&redis.url(), &settings).await;
    let mut haproxy = Haproxy::before(&replicas).await;
    let prometheus = Prometheus::of(&replicas).await;
    // A key's series begin with its first request: from here on every count is visible to Prometheus.
    for replica in &replicas {
        for key in [KEY, LIMITED] {
            assert_eq!(replica.chat(key).send().await.expect("an answer").status(), 200);
        }
    }
    eventually("Prometheus has the first requests", async || {
        prometheus.value("sum(nexusgate_completions_total)").await == Some(6.0)
            && prometheus.value(&format!("count({})", COUNTED[2].selector)).await == Some(3.0)
    })
    .await;

    // Starting at the last scrape that saw only these requests.
    let began = now() - 1.5;
    let through = [haproxy.url("")];
    let unlimited = Load::on(&through, 80).only(Kind::Whole).start();
    let limited = Load::on(&through, 40).key(LIMITED).only(Kind::Whole).start();
    let victim = replicas.iter().position(|replica| replica.name == VICTIM).expect("one of them");
    let mut kills = Vec::new();
    for calls in [1300, 1300] {
        unlimited.more(calls).await;
        kills.push(now());
        replicas[victim].kill();
        replicas[victim].start().await;
        haproxy.sees(3).await;
    }
    unlimited.more(1300).await;
    let seen = BTreeMap::from([(false, unlimited.stop().await), (true, limited.stop().await)]);
    let stopped = now();
    // The last requests are in every replica's next scrape, and so are the rejections, once Redis has acknowledged
    // them.
    for replica in &replicas {
        replica.settled().await;
    }
    eventually("Prometheus has scraped twice more", async || {
        prometheus.value("min(timestamp(up))").await.is_some_and(|at| at > stopped + 1.0)
    })
    .await;
    let ended = prometheus.value("max(timestamp(up))").await.expect("a time");

    for counted in COUNTED {
        let seen = &seen[&counted.limited];
        let stored = prometheus.samples(counted.selector).await;
        assert_eq!(stored.len(), 3, "one series for each replica");
        let (mut grown, mut clients) = (0.0, 0.0);
        for (labels, samples) in &stored {
            let name = (replicas
                .iter()
                .find(|replica| labels.contains(&format!("\"instance\":\"{}\"", replica.name))))
            .map(|replica| replica.name.as_str())
            .expect("a replica");
            let samples: Vec<_> = samples.iter().copied().filter(|(at, _)| *at > began).collect();
            assert!(samples.iter().all(|(_, value)| *value >= 0.0 && value.fract() == 0.0));
            let growth = growth(&samples);
            let answered: Vec<&Seen> = (seen.iter())
                .filter(|one| {
                    one.served_by.as_deref() == Some(name) && one.end == End::Answered(counted.status)
                })
                .collect();
            grown += growth;
            clients += answered.len() as f64;
            if name == VICTIM {
                // Counts between the last scrape and the kill died with the process; requests that were cut off may
                // have been counted before.
                let unscraped = answered.iter().filter(|one| is_unscraped(&samples, &kills, one)).count();
                let cut_off = seen.iter().filter(|one| matches!(one.end, End::Broken(_))).count();
                let (least, most) = (answered.len() - unscraped, answered.len() + cut_off);
                println!(
                    "{}: {name}, killed twice: {growth} stored, {} seen by clients ({unscraped} of them after the last \
                     scrape before a kill; {cut_off} cut off)",
                    counted.what,
                    answered.len()
                );
                assert!((least as f64..=most as f64).contains(&growth), "{least} to {most}");
                if counted.status == 429 {
                    // Kept by Redis: it continues from its last value, and no sample is below an earlier one.
                    assert!(samples.is_sorted_by(|one, next| one.1 <= next.1), "{samples:?}");
                } else {
                    let falls = samples.windows(2).filter(|pair| pair[1].1 < pair[0].1).count();
                    assert_eq!(falls, kills.len(), "a reset for each restart: {samples:?}");
                }
            } else {
                assert_eq!(growth, answered.len() as f64, "{}: {name}, which was not hurt", counted.what);
            }
        }
        let window = ended - began;
        let query = format!("sum(increase({}[{:.0}ms]))", counted.selector, window * 1e3);
        let increase = prometheus.value_at(&query, Some(ended)).await.expect("a value");
        let off = (increase / clients - 1.0) * 100.0;
        println!(
            "{}: {grown} stored in {window:.0} s, {clients} seen by clients; increase() says {increase:.1}: {off:+.2} %",
            counted.what
        );
        assert!(off.abs() < 2.0, "{}: {off} %", counted.what);
    }

    // Redis, the replicas and the clients agree on the rejections, including those before the kills.
    let refused = with_status(&seen[&true], 429);
    let stored: u64 = replicas.iter().map(|replica| redis.stored_rejections(&replica.name)).sum();
    let stored = usize::try_from(stored).expect("few");
    let cut_off = seen[&true].iter().filter(|one| matches!(one.end, End::Broken(_))).count();
    println!("rejections: {refused} seen by clients, {stored} kept by Redis, {cut_off} requests cut off");
    let unacknowledged =
        seen[&true].iter().filter(|one| kills.iter().any(|kill| (kill - one.ended).abs() < 1.0)).count();
    assert!((refused.saturating_sub(unacknowledged)..=refused + cut_off).contains(&stored));
}

/// Whether a call ended between the victim's last sample before a kill and that kill.
fn is_unscraped(samples: &[(f64, f64)], kills: &[f64], call: &Seen) -> bool {
    kills.iter().any(|kill| {
        let last = samples.iter().map(|(at, _)| *at).filter(|at| at < kill).fold(f64::MIN, f64::max);
        (last - SLACK..kill + SLACK).contains(&call.ended)
    })
}
