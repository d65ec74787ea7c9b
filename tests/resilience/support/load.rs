//! Clients that call at a fixed rate, whatever the outcomes, and record the outcome of each call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::eventually;
use super::gateway::{EMBEDDING_MODEL, KEY, MODEL};
use super::haproxy::SERVED_BY;

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Whole,
    Stream,
    Embedding,
}

/// The usual mix.
const MIXTURE: [Kind; 5] = [Kind::Whole, Kind::Stream, Kind::Whole, Kind::Embedding, Kind::Stream];

/// How one call ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A complete answer with this status.
    Answered(u16),
    /// No answer, or one that broke off; the reason in words.
    Broken(String),
}

/// One finished call.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The call's unique `user` field.
    pub marker: String,
    pub end: End,
    /// The time it was due.
    pub due: Instant,
    /// The time from then to its end.
    pub latency: Duration,
    /// Its end by the machine's clock, in seconds since 1970, as on Prometheus' samples.
    pub ended: f64,
    /// The replica that answered, according to haproxy.
    pub served_by: Option<String>,
}

/// Calls at a fixed rate, until stopped.
pub struct Load {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: CancellationToken,
    calls: TaskTracker,
}

/// A load's clients, targets and rate.
pub struct Builder {
    /// Base URLs, called in turn.
    targets: Vec<String>,
    key: String,
    per_second: u32,
    kinds: Vec<Kind>,
}

impl Builder {
    pub fn key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }

    pub fn only(mut self, kind: Kind) -> Self {
        self.kinds = vec![kind];
        self
    }

    /// Begins.
    pub fn start(self) -> Load {
        let load = Load { seen: Arc::default(), stop: CancellationToken::new(), calls: TaskTracker::new() };
        let (seen, stop, calls) = (load.seen.clone(), load.stop.clone(), load.calls.clone());
        let http = reqwest::Client::builder().timeout(Duration::from_secs(45)).build().expect("a client");
        load.calls.spawn(async move {
            let mut clock = tokio::time::interval(Duration::from_secs(1) / self.per_second);
            // Late calls are made up for: the rate holds on average on a busy machine too.
            clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            for number in 0_usize.. {
                let due = tokio::select! {
                    due = clock.tick() => due.into_std(),
                    () = stop.cancelled() => return,
                };
                let target = &self.targets[number % self.targets.len()];
                let kind = self.kinds[number % self.kinds.len()];
                let marker = format!("{}-{number}", self.key);
                let request = request(&http, target, &self.key, kind, &marker);
                let seen = seen.clone();
                calls.spawn(async move {
                    let (end, served_by) = outcome(request, kind).await;
                    let one = Seen { marker, end, due, latency: due.elapsed(), ended: now(), served_by };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                });
            }
        });
        load
    }
}

impl Load {
    /// Calls these base URLs in turn, with the key without limits, in the usual mix.
    pub fn on(targets: &[String], per_second: u32) -> Builder {
        Builder { targets: targets.to_vec(), key: KEY.to_owned(), per_second, kinds: MIXTURE.to_vec() }
    }

    /// The calls so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn answered(&self) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|one| matches!(one.end, End::Answered(_))).count()
    }

    /// Waits until this many more calls have been answered.
    pub async fn more(&self, calls: usize) {
        let wanted = self.answered() + calls;
        eventually("calls are answered", async || self.answered() >= wanted).await;
    }

    /// Stops calling, waits for the last answers, and returns all calls.
    pub async fn stop(self) -> Vec<Seen> {
        self.stop.cancel();
        self.calls.close();
        self.calls.wait().await;
        self.seen()
    }
}

/// The 99th percentile of the latency of the calls due within `phase`, in milliseconds.
pub fn p99(seen: &[Seen], phase: std::ops::Range<Instant>) -> f64 {
    let mut latencies: Vec<Duration> =
        seen.iter().filter(|one| phase.contains(&one.due)).map(|one| one.latency).collect();
    latencies.sort_unstable();
    let rank = (latencies.len() * 99).div_ceil(100).saturating_sub(1);
    latencies.get(rank).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
}

/// The calls that did not end with one of these statuses.
pub fn failed<'a>(seen: &'a [Seen], good: &[u16]) -> Vec<&'a Seen> {
    let is_good = |one: &&Seen| matches!(one.end, End::Answered(status) if good.contains(&status));
    seen.iter().filter(|one| !is_good(one)).collect()
}

/// The number of calls answered with this status.
pub fn with_status(seen: &[Seen], status: u16) -> usize {
    seen.iter().filter(|one| one.end == End::Answered(status)).count()
}

fn request(
    http: &reqwest::Client,
    target: &str,
    key: &str,
    kind: Kind,
    marker: &str,
) -> reqwest::RequestBuilder {
    let messages = json!([{ "role": "user", "content": "Say something." }]);
    let (path, body) = match kind {
        Kind::Whole => {
            ("/v1/chat/completions", json!({ "model": MODEL, "user": marker, "messages": messages }))
        }
        Kind::Stream => (
            "/v1/chat/completions",
            json!({ "model": MODEL, "user": marker, "messages": messages, "stream": true }),
        ),
        Kind::Embedding => {
            ("/v1/embeddings", json!({ "model": EMBEDDING_MODEL, "user": marker, "input": "Something." }))
        }
    };
    http.post(format!("{target}{path}")).bearer_auth(key).json(&body)
}

async fn outcome(request: reqwest::RequestBuilder, kind: Kind) -> (End, Option<String>) {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return (End::Broken(format!("no answer: {error:?}")), None),
    };
    let status = response.status().as_u16();
    let served_by = response.headers().get(SERVED_BY).and_then(|name| name.to_str().ok()).map(str::to_owned);
    let text = match response.text().await {
        Ok(text) => text,
        Err(error) => return (End::Broken(format!("{status}, and then {error:?}")), served_by),
    };
    let whole = match kind {
        _ if status != 200 => true,
        Kind::Stream => text.ends_with("data: [DONE]\n\n"),
        Kind::Whole | Kind::Embedding => serde_json::from_str::<Value>(&text).is_ok(),
    };
    (if whole { End::Answered(status) } else { End::Broken(format!("not whole: {text}")) }, served_by)
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}
