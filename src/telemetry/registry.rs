//! Turns catalogue entries into live handles, within the series cap.
//!
//! Handles are registered here once and then held (see [`series`](super::series)); the look-up by name and labels is
//! too slow for a request. One registry is one exposition: a test may run many side by side in one process.

use std::collections::{HashMap, HashSet};

use metrics::{Counter, Gauge, Histogram, Key, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;

use crate::domain::label::LabelValue;

use super::catalog::{self, Buckets, Kind, Metric};

/// The label value under which series past the cap are counted together.
pub const OVERFLOW: &str = "_overflow";

static METADATA: Metadata<'static> = Metadata::new("nexusgate", Level::INFO, None);

/// An amount that only grows, in fractions: USD, seconds.
#[derive(Clone)]
pub struct FloatCounter(Gauge);

impl FloatCounter {
    /// Adds `amount`; anything that is not finite and positive adds nothing.
    pub fn add(&self, amount: f64) {
        if amount.is_finite() && amount > 0.0 {
            self.0.increment(amount);
        }
    }
}

/// A gauge whose series can disappear from the exposition.
///
/// The exporter cannot forget a series, so a retired one is set to NaN, and the renderer leaves NaN gauges out.
#[derive(Clone)]
pub struct RetirableGauge(Gauge);

impl RetirableGauge {
    /// Shows `value`; anything that is not finite is not shown.
    pub fn set(&self, value: f64) {
        self.0.set(if value.is_finite() { value } else { f64::NAN });
    }

    /// Leaves the exposition until the next [`set`](Self::set).
    pub fn retire(&self) {
        self.0.set(f64::NAN);
    }
}

/// A histogram that ignores values that would spoil its sum for ever.
#[derive(Clone)]
pub struct SafeHistogram(Histogram);

impl SafeHistogram {
    /// Records `value`; one that is not finite is ignored (a single NaN makes `_sum` NaN until the process ends).
    pub fn record(&self, value: f64) {
        if value.is_finite() {
            self.0.record(value);
        }
    }
}

/// Settings of the metrics.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Series past this number are counted under `_overflow`.
    pub max_series: usize,
    /// Replaces the bounds of [`Buckets::Latency`], in seconds.
    pub latency_buckets: Option<Vec<f64>>,
    /// Whether anything is recorded. Only benches turn it off, to measure its cost.
    pub recording: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_series: 50_000, latency_buckets: None, recording: true }
    }
}

/// All series of one gateway.
pub struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    max_series: usize,
    recording: bool,
    known: Mutex<HashSet<Key>>,
    overflow: Mutex<HashMap<&'static str, Counter>>,
}

impl Registry {
    pub fn new(settings: &Settings) -> Self {
        let mut builder = PrometheusBuilder::new();
        for metric in catalog::ALL {
            if let Kind::Histogram(buckets) = metric.kind {
                let bounds = match (buckets, &settings.latency_buckets) {
                    (Buckets::Latency, Some(bounds)) => bounds,
                    _ => buckets.bounds(),
                };
                #[expect(clippy::expect_used, reason = "fails only for empty bounds, which settings refuse")]
                let next = builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)
                    .expect("bounds are not empty");
                builder = next;
            }
        }
        let recorder = builder.build_recorder();
        for metric in catalog::ALL {
            match metric.kind {
                Kind::Counter => recorder.describe_counter(metric.name.into(), None, metric.help().into()),
                Kind::Gauge | Kind::FloatCounter => {
                    recorder.describe_gauge(metric.name.into(), None, metric.help().into());
                }
                Kind::Histogram(_) => {
                    recorder.describe_histogram(metric.name.into(), None, metric.help().into());
                }
            }
        }
        Self {
            handle: recorder.handle(),
            recorder,
            max_series: settings.max_series,
            recording: settings.recording,
            known: Mutex::default(),
            overflow: Mutex::default(),
        }
    }

    /// The series of `metric` with these label values, in the order of its declaration.
    pub fn counter(&self, metric: &'static Metric, labels: &[&str]) -> Counter {
        if !self.recording {
            return Counter::noop();
        }
        self.recorder.register_counter(&self.key(metric, labels), &METADATA)
    }

    /// The series of `metric` with these label values; it reads 0 from now on.
    pub fn float_counter(&self, metric: &'static Metric, labels: &[&str]) -> FloatCounter {
        FloatCounter(self.gauge(metric, labels))
    }

    pub fn gauge(&self, metric: &'static Metric, labels: &[&str]) -> Gauge {
        if !self.recording {
            return Gauge::noop();
        }
        self.recorder.register_gauge(&self.key(metric, labels), &METADATA)
    }

    /// A gauge that exists also past the cap: for metrics of which there are a few, with alerts on each.
    pub fn uncapped_gauge(&self, metric: &'static Metric, labels: &[&str]) -> RetirableGauge {
        if !self.recording {
            return RetirableGauge(Gauge::noop());
        }
        let key = build_key(metric, labels);
        self.known.lock().insert(key.clone());
        RetirableGauge(self.recorder.register_gauge(&key, &METADATA))
    }

    /// Past the cap it is not shown.
    pub fn retirable_gauge(&self, metric: &'static Metric, labels: &[&str]) -> RetirableGauge {
        if !self.recording {
            return RetirableGauge(Gauge::noop());
        }
        // What several callers set and retire by turns would say nothing of any of them.
        let key = self.own_key(metric, labels);
        RetirableGauge(key.map_or_else(Gauge::noop, |key| self.recorder.register_gauge(&key, &METADATA)))
    }

    pub fn histogram(&self, metric: &'static Metric, labels: &[&str]) -> SafeHistogram {
        if !self.recording {
            return SafeHistogram(Histogram::noop());
        }
        SafeHistogram(self.recorder.register_histogram(&self.key(metric, labels), &METADATA))
    }

    /// How many series exist.
    pub fn series(&self) -> usize {
        self.known.lock().len()
    }

    /// Moves histogram samples into their buckets; without it they pile up until the next render.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Runs `f` with the `metrics` macros of other crates recording into this registry.
    pub fn as_recorder<T>(&self, f: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.recorder, f)
    }

    pub(super) fn handle(&self) -> &PrometheusHandle {
        &self.handle
    }

    /// The key of a series, or of the metric's overflow series when the cap is reached.
    fn key(&self, metric: &'static Metric, values: &[&str]) -> Key {
        self.own_key(metric, values).unwrap_or_else(|| {
            let folded: Vec<&str> = (metric.labels.iter().zip(values))
                .map(|(label, value)| if label.values.is_none() { OVERFLOW } else { value })
                .collect();
            let key = build_key(metric, &folded);
            self.known.lock().insert(key.clone());
            key
        })
    }

    /// The key of a series; `None`, and counted, when the cap is reached.
    fn own_key(&self, metric: &'static Metric, values: &[&str]) -> Option<Key> {
        debug_assert_eq!(metric.labels.len(), values.len(), "{}: labels as declared", metric.name);
        let key = build_key(metric, values);
        let mut known = self.known.lock();
        if !known.contains(&key) {
            let open = metric.labels.iter().any(|label| label.values.is_none());
            if open && known.len() >= self.max_series {
                drop(known);
                self.count_overflow(metric);
                return None;
            }
            known.insert(key.clone());
        }
        Some(key)
    }

    fn count_overflow(&self, metric: &'static Metric) {
        let mut overflow = self.overflow.lock();
        overflow
            .entry(metric.name)
            .or_insert_with(|| {
                let key = build_key(&catalog::METRICS_OVERFLOW, &[metric.name]);
                self.recorder.register_counter(&key, &METADATA)
            })
            .increment(1);
    }
}

fn build_key(metric: &'static Metric, values: &[&str]) -> Key {
    let labels: Vec<metrics::Label> = (metric.labels.iter().zip(values))
        .map(|(label, value)| match label.values.and_then(|all| all.iter().find(|known| *known == value)) {
            Some(known) => metrics::Label::from_static_parts(label.name, known),
            None => metrics::Label::new(label.name, LabelValue::new(value).as_str().to_owned()),
        })
        .collect();
    Key::from_parts(metric.name, labels)
}
