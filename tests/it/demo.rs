//! The demo as a new user runs it: every metric of the reference system exists and grows, and the final account adds
//! up.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::Started;
use crate::support::scrape::Scrape;

/// The reference system's counters and histograms; all of them grow under the demo's traffic.
const GROWING: &[&str] = &[
    "nexusgate_completions_total",
    "nexusgate_embeddings_total",
    "nexusgate_tokens_prompt_total",
    "nexusgate_tokens_completion_total",
    "nexusgate_tokens_embedding_total",
    "nexusgate_cost_prompt_usd_total",
    "nexusgate_cost_completion_usd_total",
    "nexusgate_cost_total_usd_total",
    "nexusgate_completion_duration_seconds_count",
    "nexusgate_completion_duration_seconds_sum",
    "nexusgate_completion_ttft_seconds_count",
    "nexusgate_completion_ttft_seconds_sum",
    "nexusgate_embedding_duration_seconds_count",
    "nexusgate_rate_limit_rejections_total",
];

/// Its gauges, with the values that the demo's configuration gives them at least.
const GAUGES: &[(&str, f64)] = &[
    ("nexusgate_active_api_keys", 3.0),
    ("nexusgate_active_providers", 2.0),
    ("nexusgate_active_models", 3.0),
    ("nexusgate_api_key_rpm_limit", 1.0),
    ("nexusgate_api_key_tpm_limit", 1.0),
    ("nexusgate_api_key_rpm_usage", 0.0),
    ("nexusgate_api_key_tpm_usage", 0.0),
    ("nexusgate_info", 1.0),
    ("nexusgate_metrics_error", 0.0),
];

#[tokio::test]
async fn every_reference_metric_is_live_and_the_account_adds_up() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
        .args(["demo", "--port", "0", "--rate", "40", "--duration", "20s", "--json-ready"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut output = BufReader::new(demo.stdout.take().expect("piped"));
    let mut ready = String::new();
    output.read_line(&mut ready).expect("a line");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
    let metrics = ready["metrics_url"].as_str().expect("a URL").to_owned();
    let scrape = || async {
        Scrape::new(reqwest::get(&metrics).await.expect("an answer").text().await.expect("text"))
    };

    let deadline = Instant::now() + Duration::from_secs(18);
    let first = scrape().await;
    let last = loop {
        let now = scrape().await;
        let still: Vec<&&str> =
            GROWING.iter().filter(|name| now.metric(name).value() <= first.metric(name).value()).collect();
        let missing: Vec<&str> =
            GAUGES.iter().map(|(name, _)| *name).filter(|name| !now.metric(name).exists()).collect();
        if still.is_empty() && missing.is_empty() {
            break now;
        }
        assert!(Instant::now() < deadline, "these do not grow: {still:?}; these are missing: {missing:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    for (name, least) in GAUGES {
        assert!(last.metric(name).value() >= *least, "{name} is {}", last.metric(name).value());
    }

    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = String::new();
        output.read_to_string(&mut rest).map(|_| rest)
    });
    let rest = rest.await.expect("read").expect("text");
    assert!(demo.wait().expect("it ends").success(), "{rest}");
    assert!(rest.contains("Everything adds up."), "{rest}");
}

/// The first signal lets requests that are under way end, the second ends the demo.
#[tokio::test]
async fn a_second_signal_is_not_kept_waiting() {
    let demo = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
        .args(["demo", "--port", "0", "--rate", "40", "--json-ready"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut demo = Started(demo);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut ready = String::new();
    BufReader::new(demo.stdout.take().expect("piped")).read_line(&mut ready).expect("a line");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
    let http = reqwest::Client::new();
    for provider in ready["providers"].as_array().expect("a list") {
        let control = provider["control_url"].as_str().expect("a URL");
        let told = http.post(control).body(r#"{"mode":"hanging"}"#).send().await.expect("an answer");
        assert_eq!(told.status(), 200);
    }
    let metrics = ready["metrics_url"].as_str().expect("a URL");
    let in_flight = || async {
        let scrape = http.get(metrics).send().await.expect("an answer").text().await.expect("text");
        Scrape::new(scrape).metric("nexusgate_requests_in_flight").value()
    };
    while in_flight().await < 20.0 {
        assert!(Instant::now() < deadline, "requests do not hang");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let signal = |demo: &std::process::Child| {
        let id = rustix::process::Pid::from_child(demo);
        rustix::process::kill_process(id, rustix::process::Signal::INT).expect("signalled");
    };
    signal(&demo);
    // Without new requests the number of those that hang does not grow.
    let (mut before, mut same) = (in_flight().await, 0);
    while same < 10 {
        assert!(Instant::now() < deadline, "the traffic does not stop");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = in_flight().await;
        same = if now > before { 0 } else { same + 1 };
        before = now;
    }
    assert!(before > 0.0, "requests hang");
    signal(&demo);
    let ended = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        demo.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        (demo.wait().expect("it ends"), said)
    });
    let (status, said) = ended.await.expect("joined");
    assert!(!status.success() && said.contains("stopped before everything was counted"), "{said}");
}
