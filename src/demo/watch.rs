//! The output for a person watching the demo: the banner, a line every few seconds, and the clients' results.

use std::fmt::Write;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::console::Console;
use super::scrape::Scrape;
use super::setup::Secrets;
use super::traffic::{Client, Tally};
use super::upstreams::{self, Upstream};

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// Reads the gateway's `/metrics`.
pub(super) async fn scrape(client: &Client) -> Option<Scrape> {
    client.get("/metrics").await.map(|text| Scrape::parse(&text))
}

pub(super) fn banner(url: &str, secrets: &Secrets, all: &[Upstream], rate: f64) -> String {
    let controls: String = (all.iter())
        .map(|upstream| format!("  {:<11}{}  (scripted)\n", upstream.name, upstream.provider.control_url()))
        .collect();
    let models = upstreams::names(all).join(", ");
    let first = all.first().map(|upstream| upstream.provider.control_url()).unwrap_or_default();
    format!(
        "nexusgate demo: two scripted providers, a temporary database, {rate} requests/s. Ctrl-C ends it.

  gateway    {url}
  metrics    {url}/metrics
  models     {models}
  API key    {key}
  admin      Authorization: Bearer {admin}
{controls}
  Ask it yourself:
    curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\
      -H 'Content-Type: application/json' \\
      -d '{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'
  Make a provider fail, and well again:
    curl -d '{{\"mode\":\"failing\"}}' {first}
    curl -d '{{\"mode\":\"healthy\"}}' {first}
",
        key = secrets.visitor,
        admin = secrets.admin,
    )
}

/// Prints a line every few seconds, all of it read from `/metrics`.
pub(super) async fn lines(console: Console, client: &Client, stop: CancellationToken) {
    let start = Instant::now();
    let mut earlier = (start, Scrape::default());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let now = Instant::now();
        match scrape(client).await {
            Some(scrape) => {
                let period = now.duration_since(earlier.0);
                console.say(&line(&scrape, &earlier.1, now.duration_since(start), period));
                earlier = (now, scrape);
            }
            None => console.say("  /metrics could not be read"),
        }
    }
}

fn line(scrape: &Scrape, earlier: &Scrape, running: Duration, period: Duration) -> String {
    let ended = |scrape: &Scrape, status: &str| -> f64 {
        let labels = [("status", status)];
        scrape.sum("nexusgate_completions_total", &labels) + scrape.sum("nexusgate_embeddings_total", &labels)
    };
    let rejected = |scrape: &Scrape| scrape.sum("nexusgate_requests_rejected_total", &[]);
    let statuses = ["completed", "failed", "aborted", "cache_hit"];
    let all =
        |scrape: &Scrape| statuses.iter().map(|status| ended(scrape, status)).sum::<f64>() + rejected(scrape);
    let per_second = (all(scrape) - all(earlier)) / period.as_secs_f64();
    let p95 = scrape
        .quantile("nexusgate_completion_duration_seconds", 0.95, earlier)
        .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}s"));
    format!(
        "{:>5}s  {} requests ({} completed, {} failed, {} aborted, {} rejected)  {per_second:.1}/s  p95 {p95}  \
         tokens {} in, {} out  ${:.4}",
        running.as_secs(),
        all(scrape),
        ended(scrape, "completed"),
        ended(scrape, "failed"),
        ended(scrape, "aborted"),
        rejected(scrape),
        scrape.sum("nexusgate_tokens_prompt_total", &[])
            + scrape.sum("nexusgate_tokens_embedding_total", &[]),
        scrape.sum("nexusgate_tokens_completion_total", &[]),
        scrape.sum("nexusgate_cost_total_usd_total", &[]),
    )
}

/// The clients' results, by kind of request.
pub(super) fn clients(tally: &Tally) -> String {
    let mut text = format!("\n{} requests were sent:\n", tally.sent());
    let mut last = None;
    for (kind, ending, count) in tally.endings() {
        let name = if last == Some(kind) { "" } else { kind.name() };
        last = Some(kind);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<34} {count:>8}  {}", ending.name());
    }
    let quantiles = |histogram: &super::traffic::Histogram| {
        let at =
            |share| histogram.quantile(share).map_or_else(|| "-".to_owned(), |time| format!("{time:.1?}"));
        format!("p50 {}, p95 {}, p99 {}", at(0.5), at(0.95), at(0.99))
    };
    let _ = writeln!(text, "  whole answer: {}", quantiles(&tally.latency));
    let _ = writeln!(text, "  first token of a stream: {}", quantiles(&tally.first_content));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_period_and_the_sums() {
        let text = |completed: u32, fast: u32| {
            format!(
                "nexusgate_completions_total{{status=\"completed\"}} {completed}\n\
                 nexusgate_embeddings_total{{status=\"failed\"}} 2\n\
                 nexusgate_requests_rejected_total{{reason=\"rate_limited\"}} 3\n\
                 nexusgate_completion_duration_seconds_bucket{{le=\"1\"}} {fast}\n\
                 nexusgate_completion_duration_seconds_bucket{{le=\"+Inf\"}} {fast}\n\
                 nexusgate_cost_total_usd_total 0.5\n"
            )
        };
        let (earlier, now) = (Scrape::parse(&text(10, 10)), Scrape::parse(&text(60, 60)));
        let line = line(&now, &earlier, Duration::from_secs(15), Duration::from_secs(5));
        for part in [
            "15s",
            "65 requests (60 completed, 2 failed, 0 aborted, 3 rejected)",
            "10.0/s",
            "p95 0.95s",
            "$0.5",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}
