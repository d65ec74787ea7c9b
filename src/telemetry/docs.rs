//! The catalogue as documentation: Markdown for people, JSON for the checks of dashboards and rules.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::catalog::{ALL, Kind, Metric};

/// The text of `docs/METRICS.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         Generated from `src/telemetry/catalog.rs` by `cargo run -- metrics-catalog > docs/METRICS.md`; do not edit.\n\n\
         Counters of money and seconds are fractional. `model`, `provider` and `api_key_comment` take configured names, at most\n\
         128 characters, with backslashes and control characters replaced; `route`, `method`, `code`, `metric` and `version`\n\
         the gateway's own words. Past `METRICS_MAX_SERIES` labels without listed values read `_overflow`; gauges of\n\
         further keys are left out, those of providers are always there.\n\n\
         | metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n",
    );
    for metric in ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {} |",
            metric.name,
            metric.kind.type_name(),
            metric.unit.as_str(),
            labels(metric),
            metric.help().replace('|', "\\|"),
        );
    }
    out.push_str("\n## Buckets\n\n| metric | upper bounds |\n|---|---|\n");
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            let bounds: Vec<String> = buckets.bounds().iter().map(f64::to_string).collect();
            let _ = writeln!(out, "| `{}` | {} |", metric.name, bounds.join(" "));
        }
    }
    out.push_str(
        "\n## From libraries\n\n\
         `process_*` (CPU seconds, resident and virtual memory, open and allowed file descriptors, threads, start time)\n\
         come from the `metrics-process` crate, under the names of the Prometheus client libraries.\n",
    );
    out
}

/// The catalogue as a JSON array of `{name, type, unit, help, labels: [{name, values}], buckets}`.
pub fn json() -> Value {
    ALL.iter()
        .map(|metric| {
            let labels: Vec<Value> = (metric.labels.iter())
                .map(|label| json!({ "name": label.name, "values": label.values }))
                .collect();
            let buckets = match metric.kind {
                Kind::Histogram(buckets) => json!(buckets.bounds()),
                _ => Value::Null,
            };
            json!({
                "name": metric.name,
                "type": metric.kind.type_name(),
                "unit": metric.unit.as_str(),
                "help": metric.help(),
                "labels": labels,
                "buckets": buckets,
            })
        })
        .collect()
}

fn labels(metric: &Metric) -> String {
    if metric.labels.is_empty() {
        return "–".to_owned();
    }
    let described: Vec<String> = (metric.labels.iter())
        .map(|label| match label.values {
            Some(values) => format!("`{}` = {}", label.name, values.join(", ")),
            None => format!("`{}`", label.name),
        })
        .collect();
    described.join("; ")
}
