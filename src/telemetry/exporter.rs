//! Renders the exposition from memory.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;

use super::catalog::{self, Kind};
use super::registry::{Registry, SafeHistogram};

/// The content type of `/metrics` (Prometheus text format 0.0.4).
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders scrapes, one at a time.
pub struct Exporter {
    registry: Arc<Registry>,
    duration: SafeHistogram,
    series: metrics::Gauge,
    /// Served when a render fails.
    essentials: String,
    /// The size of the last scrape, to allocate the next buffer. Locked for a whole render: two renders at once would
    /// take twice the memory and no less time.
    last_size: Mutex<usize>,
}

impl Exporter {
    /// `version` is the label of `nexusgate_info`.
    pub fn new(registry: Arc<Registry>, version: &str) -> Self {
        registry.gauge(&catalog::INFO, &[version]).set(1.0);
        registry.gauge(&catalog::METRICS_ERROR, &[]).set(0.0);
        let version = version.replace(['\\', '"', '\n'], "");
        Self {
            duration: registry.histogram(&catalog::METRICS_RENDER_DURATION, &[]),
            series: registry.gauge(&catalog::METRICS_SERIES, &[]),
            essentials: format!(
                "# TYPE {info} gauge\n{info}{{version=\"{version}\"}} 1\n# TYPE {error} gauge\n{error} 1\n",
                info = catalog::INFO.name,
                error = catalog::METRICS_ERROR.name,
            ),
            registry,
            last_size: Mutex::new(64 * 1024),
        }
    }

    /// The whole exposition, gzipped if asked. Takes milliseconds: call it off the async workers. Never fails: when
    /// rendering does, it returns `nexusgate_info` and `nexusgate_metrics_error 1` instead.
    pub fn render(&self, gzip: bool) -> Vec<u8> {
        let started = Instant::now();
        let rendered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.try_render(gzip)));
        self.duration.record(started.elapsed().as_secs_f64());
        match rendered {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => {
                tracing::error!(%error, "the metrics could not be rendered");
                self.fallback(gzip)
            }
            Err(_) => self.fallback(gzip),
        }
    }

    /// The exposition for when a render failed.
    pub fn fallback(&self, gzip: bool) -> Vec<u8> {
        let plain = self.essentials.clone().into_bytes();
        if gzip { compress(&plain).unwrap_or(plain) } else { plain }
    }

    fn try_render(&self, gzip: bool) -> io::Result<Vec<u8>> {
        let mut last_size = self.last_size.lock();
        #[expect(clippy::cast_precision_loss, reason = "a count of series")]
        self.series.set(self.registry.series() as f64);
        let mut lines = LineFilter { out: Vec::with_capacity(*last_size + *last_size / 8), line: Vec::new() };
        self.registry.handle().render_to_write(&mut lines)?;
        lines.flush()?;
        *last_size = lines.out.len();
        if gzip { compress(&lines.out) } else { Ok(lines.out) }
    }
}

fn compress(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish()
}

/// Corrects what the exporter cannot express: fractional counters are kept in gauges and get `TYPE counter` here, and
/// retired gauges (NaN) are left out.
struct LineFilter {
    out: Vec<u8>,
    line: Vec<u8>,
}

impl LineFilter {
    fn end_line(&mut self) {
        if let Some(name) = self.line.strip_prefix(b"# TYPE ").and_then(|rest| rest.strip_suffix(b" gauge"))
            && is_float_counter(name)
        {
            self.out.extend_from_slice(b"# TYPE ");
            self.out.extend_from_slice(name);
            self.out.extend_from_slice(b" counter\n");
            self.line.clear();
            return;
        }
        if !self.line.ends_with(b" NaN") {
            self.out.extend_from_slice(&self.line);
            self.out.push(b'\n');
        }
        self.line.clear();
    }
}

fn is_float_counter(name: &[u8]) -> bool {
    // metrics-process keeps its CPU time in a gauge for the same reason.
    name == b"process_cpu_seconds_total"
        || catalog::ALL
            .iter()
            .any(|metric| metric.kind == Kind::FloatCounter && metric.name.as_bytes() == name)
}

impl Write for LineFilter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.line.extend_from_slice(&rest[..end]);
            self.end_line();
            rest = &rest[end + 1..];
        }
        self.line.extend_from_slice(rest);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            self.end_line();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::Settings;
    use super::*;

    fn text(exporter: &Exporter) -> String {
        String::from_utf8(exporter.render(false)).expect("UTF-8")
    }

    fn exporter(max_series: usize) -> (Arc<Registry>, Exporter) {
        let registry = Arc::new(Registry::new(&Settings { max_series, ..Settings::default() }));
        (registry.clone(), Exporter::new(registry, "1.0"))
    }

    #[test]
    fn fractions_are_announced_as_counters_and_ignore_nonsense() {
        let (registry, exporter) = exporter(100);
        let cost = registry.float_counter(&catalog::COST_TOTAL, &["m", "p", "k"]);
        cost.add(0.25);
        cost.add(f64::NAN);
        cost.add(-1.0);
        let text = text(&exporter);
        assert!(text.contains("# TYPE nexusgate_cost_total_usd_total counter\n"), "{text}");
        assert!(
            text.contains(
                r#"nexusgate_cost_total_usd_total{model="m",provider="p",api_key_comment="k"} 0.25"#
            )
        );
    }

    #[test]
    fn retired_gauges_leave_and_come_back() {
        let (registry, exporter) = exporter(100);
        let gauge = registry.retirable_gauge(&catalog::API_KEY_RPM_LIMIT, &["k"]);
        gauge.set(5.0);
        assert!(text(&exporter).contains("nexusgate_api_key_rpm_limit{api_key_comment=\"k\"} 5\n"));
        gauge.retire();
        assert!(!text(&exporter).contains("nexusgate_api_key_rpm_limit{"));
        gauge.set(6.0);
        assert!(text(&exporter).contains("nexusgate_api_key_rpm_limit{api_key_comment=\"k\"} 6\n"));
    }

    #[test]
    fn past_the_cap_series_are_folded_and_counted() {
        let (registry, exporter) = exporter(registry_size() + 2);
        for index in 0..10 {
            registry.counter(&catalog::TOKENS_PROMPT, &[&format!("model-{index}")]).increment(1);
        }
        let text = text(&exporter);
        assert!(text.contains("nexusgate_tokens_prompt_total{model=\"_overflow\"} 8\n"), "{text}");
        assert!(
            text.contains("nexusgate_metrics_overflow_total{metric=\"nexusgate_tokens_prompt_total\"} 8\n")
        );
        assert_eq!(text.matches("nexusgate_tokens_prompt_total{").count(), 3);
    }

    /// Series that exist before any request.
    fn registry_size() -> usize {
        exporter(100).0.series()
    }

    #[test]
    fn histograms_have_buckets_and_stand_at_zero_before_the_first_sample() {
        let (registry, exporter) = exporter(100);
        let histogram = registry.histogram(&catalog::COMPLETION_TTFT, &["m"]);
        assert!(text(&exporter).contains("nexusgate_completion_ttft_seconds_count{model=\"m\"} 0\n"));
        histogram.record(f64::NAN);
        histogram.record(0.2);
        let text = text(&exporter);
        assert!(
            text.contains("nexusgate_completion_ttft_seconds_bucket{model=\"m\",le=\"0.25\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("nexusgate_completion_ttft_seconds_sum{model=\"m\"} 0.2\n"));
        assert_eq!(text.matches("{model=\"m\",le=\"+Inf\"} 1").count(), 1);
    }

    #[test]
    fn gzip_holds_the_same_text() {
        let (_registry, exporter) = exporter(100);
        let mut plain = String::new();
        io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&exporter.render(true)[..]), &mut plain)
            .expect("gzip");
        assert!(plain.contains("nexusgate_info{version=\"1.0\"} 1\n"));
    }
}
