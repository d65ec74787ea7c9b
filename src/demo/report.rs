//! The final account: the figures of clients and providers beside those of `/metrics`.

use std::fmt::Write;

use crate::domain::label::RejectReason;

use super::scrape::Scrape;
use super::traffic::{Ending, Kind, Tally};
use super::upstreams::Reported;

/// One line of the account.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    what: String,
    /// The figure of the clients or the providers, who know it best.
    expected: f64,
    witness: Witness,
    counted: f64,
    /// A visitor has used the gateway meanwhile, so more may have been counted.
    at_least: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Witness {
    Clients,
    Providers,
    /// An invariant that must hold for any traffic.
    Reason,
}

impl Row {
    pub(super) fn agrees(&self) -> bool {
        // Counts are exact; money is a sum of floats, added in another order.
        let slack = 1e-6 * self.expected.abs();
        let difference = self.counted - self.expected;
        difference.abs() <= slack || (self.at_least && difference > 0.0)
    }
}

/// All lines.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

/// Comment of the visitor's key, for the person who watches the demo; its requests are not the generator's.
pub(super) const VISITOR: &str = "you";

const INFERENCE_ROUTES: [&str; 4] =
    ["/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"];

impl Report {
    pub(super) fn of(tally: &Tally, reported: &Reported, scrape: &Scrape) -> Self {
        let mut report = Self::default();
        report.endings(tally, scrape);
        report.rejections(tally, scrape);
        report.tokens(reported, scrape);
        report.books(scrape);
        report
    }

    pub(super) fn disagreements(&self) -> usize {
        self.rows.iter().filter(|row| !row.agrees()).count()
    }

    fn endings(&mut self, tally: &Tally, scrape: &Scrape) {
        for (family, metric, is_embedding) in [
            ("completions", "nexusgate_completions_total", false),
            ("embeddings", "nexusgate_embeddings_total", true),
        ] {
            for (status, ending) in
                [("completed", Ending::Completed), ("failed", Ending::Failed), ("aborted", Ending::Left)]
            {
                let seen = tally.ended(ending, |kind| (kind == Kind::Embedding) == is_embedding);
                let counted = scrape.sum_where(metric, |label| {
                    label("status") == Some(status) && label("api_key_comment") != Some(VISITOR)
                });
                self.push(Witness::Clients, format!("{family} {status}"), number(seen), counted);
            }
        }
        self.push(
            Witness::Reason,
            "requests without any answer",
            0.0,
            number(tally.ended(Ending::NoAnswer, |_| true)),
        );
    }

    fn rejections(&mut self, tally: &Tally, scrape: &Scrape) {
        let answered = answered(scrape);
        let others = answered > number(tally.sent());
        for reason in RejectReason::ALL {
            let seen = number(tally.ended(Ending::Rejected(*reason), |_| true));
            let counted = scrape.sum("nexusgate_requests_rejected_total", &[("reason", reason.as_str())]);
            if seen > 0.0 || counted > 0.0 {
                self.push(Witness::Clients, format!("rejected: {reason}"), seen, counted);
                self.last_at_least(others);
            }
        }
        let limited = Ending::Rejected(RejectReason::RateLimited);
        for (limit, kind) in [("rpm", Kind::SmallRequestLimit), ("tpm", Kind::SmallTokenLimit)] {
            let seen = number(tally.ended(limited, |seen| seen == kind));
            let counted = scrape.sum("nexusgate_rate_limit_rejections_total", &[("limit_type", limit)]);
            self.push(Witness::Clients, format!("over the {limit} limit"), seen, counted);
            self.last_at_least(others);
        }
        self.push(Witness::Clients, "HTTP requests", number(tally.sent()), answered);
        self.last_at_least(others);
    }

    fn tokens(&mut self, reported: &Reported, scrape: &Scrape) {
        for (what, metric, tokens) in [
            ("prompt tokens", "nexusgate_tokens_prompt_total", reported.prompt_tokens),
            ("completion tokens", "nexusgate_tokens_completion_total", reported.completion_tokens),
            ("embedding tokens", "nexusgate_tokens_embedding_total", reported.embedding_tokens),
            ("calls to providers", "nexusgate_upstream_attempts_total", reported.calls),
        ] {
            self.push(Witness::Providers, what, number(tokens), scrape.sum(metric, &[]));
        }
        self.push(
            Witness::Providers,
            "cost in USD",
            reported.usd,
            scrape.sum("nexusgate_cost_total_usd_total", &[]),
        );
    }

    /// Adds the figures that must add up within the gateway itself.
    fn books(&mut self, scrape: &Scrape) {
        self.push(
            Witness::Reason,
            "requests in flight",
            0.0,
            scrape.sum("nexusgate_requests_in_flight", &[]),
        );
        // Also when a visitor, whose requests nobody else counts, was there.
        let ended = [
            "nexusgate_completions_total",
            "nexusgate_embeddings_total",
            "nexusgate_requests_rejected_total",
        ];
        let ended = ended.iter().map(|metric| scrape.sum(metric, &[])).sum();
        self.push(Witness::Reason, "HTTP requests that ended", ended, answered(scrape));
        for (table, metric) in
            [("completions", "nexusgate_completions_total"), ("embeddings", "nexusgate_embeddings_total")]
        {
            let rows = scrape.sum("nexusgate_request_log_rows_total", &[("table", table)]);
            self.push(Witness::Reason, format!("{table} in the request log"), scrape.sum(metric, &[]), rows);
        }
    }

    fn push(&mut self, witness: Witness, what: impl Into<String>, expected: f64, counted: f64) {
        self.rows.push(Row { what: what.into(), expected, witness, counted, at_least: false });
    }

    fn last_at_least(&mut self, at_least: bool) {
        if let Some(row) = self.rows.last_mut() {
            row.at_least = at_least;
        }
    }

    /// The account as a table, with differences marked.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{:<34} {:>14} {:>14} {:>14}\n", "", "clients", "providers", "/metrics");
        for row in &self.rows {
            let (clients, providers) = match row.witness {
                Witness::Clients => (figure(row.expected), String::new()),
                Witness::Providers => (String::new(), figure(row.expected)),
                Witness::Reason => (String::new(), String::new()),
            };
            let verdict = match (row.agrees(), row.witness) {
                (true, _) => String::new(),
                (false, Witness::Reason) => format!("  <- must be {}", figure(row.expected)),
                (false, _) => "  <- differs".to_owned(),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:<34} {clients:>14} {providers:>14} {:>14}{verdict}",
                row.what,
                figure(row.counted)
            );
        }
        match self.disagreements() {
            0 => text.push_str("\nEverything adds up."),
            rows => {
                let _ = write!(text, "\n{rows} of {} lines do not add up.", self.rows.len());
            }
        }
        text
    }
}

/// The inference requests that were answered, by whomever they were sent.
fn answered(scrape: &Scrape) -> f64 {
    scrape.sum_where("nexusgate_http_requests_total", |label| {
        label("method") == Some("POST")
            && label("route").is_some_and(|route| INFERENCE_ROUTES.contains(&route))
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of a demo stay far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

/// Whole numbers as they are, money with six places.
fn figure(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.6}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::traffic::Seen;
    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally::default();
        let limited = Ending::Rejected(RejectReason::RateLimited);
        for (kind, ending) in [
            (Kind::Chat, Ending::Completed),
            (Kind::Stream, Ending::Failed),
            (Kind::LeavesWaiting, Ending::Left),
            (Kind::Embedding, Ending::Completed),
            (Kind::SmallTokenLimit, limited),
        ] {
            let latency = Duration::from_millis(1);
            tally.add(&Seen { kind, ending, status: None, latency, first_content: None, tokens: None });
        }
        tally
    }

    fn reported() -> Reported {
        Reported { calls: 5, prompt_tokens: 30, completion_tokens: 12, embedding_tokens: 8, usd: 0.25 }
    }

    /// A scrape that agrees with the tally, as lines of name and value.
    const SCRAPE: &[(&str, f64)] = &[
        ("nexusgate_completions_total{status=\"completed\",api_key_comment=\"search\"}", 1.0),
        ("nexusgate_completions_total{status=\"failed\",api_key_comment=\"search\"}", 1.0),
        ("nexusgate_completions_total{status=\"aborted\",api_key_comment=\"search\"}", 1.0),
        ("nexusgate_embeddings_total{status=\"completed\",api_key_comment=\"search\"}", 1.0),
        ("nexusgate_requests_rejected_total{reason=\"rate_limited\"}", 1.0),
        ("nexusgate_rate_limit_rejections_total{limit_type=\"tpm\"}", 1.0),
        ("nexusgate_http_requests_total{route=\"/v1/chat/completions\",method=\"POST\"}", 4.0),
        ("nexusgate_http_requests_total{route=\"/v1/embeddings\",method=\"POST\"}", 1.0),
        ("nexusgate_http_requests_total{route=\"/metrics\"}", 70.0),
        ("nexusgate_tokens_prompt_total", 30.0),
        ("nexusgate_tokens_completion_total", 12.0),
        ("nexusgate_tokens_embedding_total", 8.0),
        ("nexusgate_upstream_attempts_total{outcome=\"ok\"}", 5.0),
        ("nexusgate_cost_total_usd_total{model=\"a\"}", 0.1),
        ("nexusgate_cost_total_usd_total{model=\"b\"}", 0.150_000_000_1),
        ("nexusgate_request_log_rows_total{table=\"completions\"}", 3.0),
        ("nexusgate_request_log_rows_total{table=\"embeddings\"}", 1.0),
    ];

    fn report(lines: &[(&str, f64)]) -> Report {
        let text: String = lines.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        Report::of(&tally(), &reported(), &Scrape::parse(&text))
    }

    #[test]
    fn what_agrees_adds_up() {
        let report = report(SCRAPE);
        assert_eq!(report.disagreements(), 0, "{}", report.table());
        assert!(report.table().ends_with("Everything adds up."));
    }

    #[test]
    fn every_line_that_is_off_is_found() {
        for index in 0..SCRAPE.len() {
            let lines = SCRAPE.to_vec();
            if lines[index].0.contains("/metrics") {
                continue;
            }
            for off in [-0.001, 1.0] {
                let mut lines = lines.clone();
                lines[index].1 += off;
                let report = report(&lines);
                assert!(report.disagreements() > 0, "{} is off by {off}", lines[index].0);
                assert!(report.table().contains("<-"), "{}", report.table());
            }
        }
        let in_flight = [SCRAPE, &[("nexusgate_requests_in_flight", 1.0)]].concat();
        assert_eq!(report(&in_flight).disagreements(), 1);
    }

    #[test]
    fn a_visitor_does_not_disturb_the_account() {
        let visit = [
            ("nexusgate_completions_total{status=\"completed\",api_key_comment=\"you\"}", 2.0),
            ("nexusgate_requests_rejected_total{reason=\"model_not_found\"}", 1.0),
            (
                "nexusgate_http_requests_total{route=\"/v1/chat/completions\",method=\"POST\",code=\"200\"}",
                3.0,
            ),
            ("nexusgate_request_log_rows_total{table=\"completions\"}", 2.0),
        ];
        let report = report(&[SCRAPE, &visit].concat());
        assert_eq!(report.disagreements(), 0, "{}", report.table());
    }

    #[test]
    fn an_unanswered_request_is_a_disagreement() {
        let mut tally = tally();
        let seen = Seen {
            kind: Kind::Chat,
            ending: Ending::NoAnswer,
            status: None,
            latency: Duration::ZERO,
            first_content: None,
            tokens: None,
        };
        tally.add(&seen);
        let report = Report::of(&tally, &Reported::default(), &Scrape::default());
        assert!(report.table().contains("requests without any answer"));
        assert!(report.disagreements() > 0);
    }
}
