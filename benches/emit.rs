//! The cost of counting one completion (in flight and out again, one attempt, the finished record with all its
//! histograms): through held handles, through raw macros, through `prometheus-client` (its families looked up each
//! time, and its metrics held as the gateway holds its own), and beside one bare atomic. With 1 and with 64 label sets,
//! on 1 and on 2 threads. `look_up` is what the gateway does once for each request to hold those handles. Not in any of
//! them: the sorting of samples into buckets, which the exporter does later (`overhead` has it).
//!
//! `cargo bench --bench emit`, and `taskset -c 0 cargo bench --bench emit -- '1 threads'` for a core of its own

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

#[path = "support/records.rs"]
mod records;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use nexusgate::domain::label::Outcome;
use nexusgate::domain::record::RequestRecord;
use nexusgate::telemetry::events::{AttemptFinished, RequestFinished};
use nexusgate::telemetry::registry::Settings;
use nexusgate::telemetry::series::CallSeries;
use nexusgate::telemetry::{InFlight, Telemetry};
use records::record;

/// The handles that the gateway holds for a request.
struct Held(CallSeries);

impl Held {
    /// The look-up of the gateway.
    fn of(telemetry: &Telemetry, record: &RequestRecord) -> Self {
        let target = record.target.as_ref().expect("a target");
        let (provider, comment) = (&target.provider.name, &record.key.comment);
        Self(telemetry.call_series(record.call, &record.model, provider, comment))
    }
}

/// The same series that the gateway uses, through the same events.
fn emit(telemetry: &Arc<Telemetry>, record: &RequestRecord, Held(series): &Held) {
    let in_flight = InFlight::start(telemetry.clone(), record.call);
    let target = record.target.as_ref().expect("a target");
    let duration = record.duration;
    AttemptFinished { series: series.upstream(), target, outcome: Outcome::Ok, duration }.emit();
    RequestFinished { telemetry, record, series }.emit();
    drop(in_flight);
}

/// The macros of a gateway without held handles.
#[expect(clippy::disallowed_macros, reason = "this is what the handles are measured against")]
fn emit_by_macros(record: &RequestRecord) {
    use metrics::{counter, gauge, histogram};
    let model = || record.model.as_str().to_owned();
    let comment = || record.key.comment.as_str().to_owned();
    let provider =
        || record.target.as_ref().map_or(String::new(), |target| target.provider.name.as_str().to_owned());
    gauge!("nexusgate_requests_in_flight", "api_format" => "openai-chat").increment(1.0);
    counter!("nexusgate_upstream_attempts_total", "model" => model(), "provider" => provider(),
        "outcome" => "ok")
    .increment(1);
    histogram!("nexusgate_upstream_duration_seconds", "provider" => provider())
        .record(record.duration.as_secs_f64());
    histogram!("nexusgate_gateway_overhead_seconds", "api_format" => "openai-chat")
        .record(record.overhead.as_secs_f64());
    counter!("nexusgate_completions_total", "model" => model(), "status" => record.status.as_str(),
        "api_format" => "openai-chat", "api_key_comment" => comment())
    .increment(1);
    counter!("nexusgate_tokens_prompt_total", "model" => model()).increment(record.usage.prompt.unwrap_or(0));
    counter!("nexusgate_tokens_completion_total", "model" => model())
        .increment(record.usage.completion.unwrap_or(0));
    counter!("nexusgate_tokens_cached_total", "model" => model()).increment(record.usage.cached.unwrap_or(0));
    for (name, amount) in [
        ("nexusgate_cost_prompt_usd_total", record.cost.prompt),
        ("nexusgate_cost_completion_usd_total", record.cost.completion),
        ("nexusgate_cost_total_usd_total", record.cost.total()),
    ] {
        gauge!(name, "model" => model(), "provider" => provider(), "api_key_comment" => comment())
            .increment(amount);
    }
    counter!("nexusgate_completion_finish_reasons_total", "model" => model(), "finish_reason" => "stop")
        .increment(1);
    counter!("nexusgate_completions_within_slo_total", "model" => model()).increment(1);
    for (name, value) in [
        ("nexusgate_completion_duration_seconds", record.duration.as_secs_f64()),
        ("nexusgate_completion_ttft_seconds", 0.21),
        ("nexusgate_completion_tpot_seconds", 0.006),
        ("nexusgate_stream_stall_seconds", 0.04),
        ("nexusgate_completion_prompt_tokens", 1200.0),
        ("nexusgate_completion_output_tokens", 350.0),
    ] {
        histogram!(name, "model" => model()).record(value);
    }
    gauge!("nexusgate_requests_in_flight", "api_format" => "openai-chat").decrement(1.0);
}

/// The same series in the other well-known crate: as in its documentation, a family for each metric, looked up by its
/// labels each time; and with held metrics, which it allows too. Label sets are lists of pairs, as the crate takes
/// them; they own their text.
mod other_crate {
    use nexusgate::domain::record::RequestRecord;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use std::sync::atomic::AtomicU64;

    type Labels = Vec<(&'static str, String)>;
    type Float = Counter<f64, AtomicU64>;
    type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

    pub(crate) struct Families {
        in_flight: Family<Labels, Gauge>,
        attempts: Family<Labels, Counter>,
        upstream: Histograms,
        overhead: Histograms,
        completions: Family<Labels, Counter>,
        tokens: [Family<Labels, Counter>; 3],
        cost: [Family<Labels, Float>; 3],
        finish_reasons: Family<Labels, Counter>,
        within_slo: Family<Labels, Counter>,
        histograms: [Histograms; 6],
    }

    fn histogram() -> Histogram {
        Histogram::new([0.1, 0.5, 1.0, 5.0, 10.0, 60.0])
    }

    impl Families {
        pub(crate) fn new() -> Self {
            Self {
                in_flight: Family::default(),
                attempts: Family::default(),
                upstream: Histograms::new_with_constructor(histogram),
                overhead: Histograms::new_with_constructor(histogram),
                completions: Family::default(),
                tokens: std::array::from_fn(|_| Family::default()),
                cost: std::array::from_fn(|_| Family::default()),
                finish_reasons: Family::default(),
                within_slo: Family::default(),
                histograms: std::array::from_fn(|_| Histograms::new_with_constructor(histogram)),
            }
        }

        /// The handles for one record, looked up.
        pub(crate) fn held(&self, record: &RequestRecord) -> Metrics {
            let model = || ("model", record.model.as_str().to_owned());
            let comment = || ("api_key_comment", record.key.comment.as_str().to_owned());
            let provider = || {
                let target = record.target.as_ref();
                ("provider", target.map_or("", |target| target.provider.name.as_str()).to_owned())
            };
            let format = || ("api_format", "openai-chat".to_owned());
            let status = ("status", record.status.as_str().to_owned());
            let reason = ("finish_reason", "stop".to_owned());
            Metrics {
                in_flight: self.in_flight.get_or_create_owned(&vec![format()]),
                attempts: self.attempts.get_or_create_owned(&vec![
                    model(),
                    provider(),
                    ("outcome", "ok".to_owned()),
                ]),
                upstream: self.upstream.get_or_create_owned(&vec![provider()]),
                overhead: self.overhead.get_or_create_owned(&vec![format()]),
                completions: self.completions.get_or_create_owned(&vec![
                    model(),
                    status,
                    format(),
                    comment(),
                ]),
                tokens: self.tokens.each_ref().map(|family| family.get_or_create_owned(&vec![model()])),
                cost: self
                    .cost
                    .each_ref()
                    .map(|family| family.get_or_create_owned(&vec![model(), provider(), comment()])),
                finish_reasons: self.finish_reasons.get_or_create_owned(&vec![model(), reason]),
                within_slo: self.within_slo.get_or_create_owned(&vec![model()]),
                histograms: self
                    .histograms
                    .each_ref()
                    .map(|family| family.get_or_create_owned(&vec![model()])),
            }
        }
    }

    pub(crate) struct Metrics {
        in_flight: Gauge,
        attempts: Counter,
        upstream: Histogram,
        overhead: Histogram,
        completions: Counter,
        tokens: [Counter; 3],
        cost: [Float; 3],
        finish_reasons: Counter,
        within_slo: Counter,
        histograms: [Histogram; 6],
    }

    impl Metrics {
        pub(crate) fn emit(&self, record: &RequestRecord) {
            self.in_flight.inc();
            self.attempts.inc();
            self.upstream.observe(record.duration.as_secs_f64());
            self.overhead.observe(record.overhead.as_secs_f64());
            self.completions.inc();
            let usage = &record.usage;
            for (counter, tokens) in self.tokens.iter().zip([usage.prompt, usage.completion, usage.cached]) {
                counter.inc_by(tokens.unwrap_or(0));
            }
            let cost = record.cost;
            for (counter, amount) in self.cost.iter().zip([cost.prompt, cost.completion, cost.total()]) {
                counter.inc_by(amount);
            }
            self.finish_reasons.inc();
            self.within_slo.inc();
            let values = [record.duration.as_secs_f64(), 0.21, 0.006, 0.04, 1200.0, 350.0];
            for (histogram, value) in self.histograms.iter().zip(values) {
                histogram.observe(value);
            }
            self.in_flight.dec();
        }
    }
}

/// The number of samples a histogram may hold before they are sorted into buckets, as the upkeep timer does in the app.
const UPKEEP_EVERY: u64 = 4096;

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("completion_finished");
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    for (sets, threads) in [(1_usize, 1_usize), (64, 1), (1, 2), (64, 2)] {
        let records: Vec<RequestRecord> = (0..sets).map(record).collect();
        let name = |what: &str| format!("{what}/{sets} label sets/{threads} threads");

        let telemetry = Telemetry::new(&Settings::default(), "bench");
        let held: Vec<(&RequestRecord, Held)> =
            records.iter().map(|record| (record, Held::of(&telemetry, record))).collect();
        group.bench_function(name("held_handles"), |bencher| {
            bencher.iter_custom(|rounds| {
                let emit = |(record, held): &(&RequestRecord, Held)| emit(&telemetry, record, held);
                timed(rounds, threads, &held, emit, || telemetry.run_upkeep())
            });
        });
        group.bench_function(name("look_up"), |bencher| {
            bencher.iter_custom(|rounds| {
                let look_up = |record: &RequestRecord| drop(black_box(Held::of(&telemetry, record)));
                timed(rounds, threads, &records, look_up, || ())
            });
        });

        let recorder = raw_recorder();
        let handle = recorder.handle();
        group.bench_function(name("raw_macros"), |bencher| {
            bencher.iter_custom(|rounds| {
                let emit = |record: &RequestRecord| {
                    metrics::with_local_recorder(&recorder, || emit_by_macros(record));
                };
                timed(rounds, threads, &records, emit, || handle.run_upkeep())
            });
        });

        let families = other_crate::Families::new();
        group.bench_function(name("prometheus_client"), |bencher| {
            bencher.iter_custom(|rounds| {
                let emit = |record: &RequestRecord| families.held(record).emit(record);
                timed(rounds, threads, &records, emit, || ())
            });
        });
        let held: Vec<_> = records.iter().map(|record| (record, families.held(record))).collect();
        group.bench_function(name("prometheus_client_held"), |bencher| {
            bencher.iter_custom(|rounds| {
                timed(rounds, threads, &held, |(record, metrics)| metrics.emit(record), || ())
            });
        });

        let atomics: Vec<AtomicU64> = (0..sets).map(|_| AtomicU64::new(0)).collect();
        group.bench_function(name("bare_atomic"), |bencher| {
            bencher.iter_custom(|rounds| {
                let add = |atomic: &AtomicU64| {
                    black_box(atomic.fetch_add(1, Ordering::Relaxed));
                };
                timed(rounds, threads, &atomics, add, || ())
            });
        });
    }
    group.finish();
}

/// The time of `rounds` calls on each of `threads` threads at the same time, without the upkeep in between.
fn timed<T: Sync>(
    rounds: u64,
    threads: usize,
    records: &[T],
    emit: impl Fn(&T) + Sync,
    upkeep: impl Fn(),
) -> Duration {
    let (mut spent, mut left) = (Duration::ZERO, rounds);
    while left > 0 {
        let batch = left.min(UPKEEP_EVERY);
        let calls = usize::try_from(batch).expect("a small number");
        let run = || {
            let started = Instant::now();
            for record in records.iter().cycle().take(calls) {
                emit(black_box(record));
            }
            started.elapsed()
        };
        spent += if threads == 1 {
            run()
        } else {
            let together = Barrier::new(threads);
            std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads)
                    .map(|_| {
                        scope.spawn(|| {
                            together.wait();
                            run()
                        })
                    })
                    .collect();
                running.into_iter().map(|thread| thread.join().expect("no panic")).max().unwrap_or_default()
            })
        };
        upkeep();
        left -= batch;
    }
    spent
}

fn raw_recorder() -> PrometheusRecorder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Prefix("nexusgate".into()), &[0.1, 0.5, 1.0, 5.0, 10.0, 60.0])
        .expect("buckets")
        .build_recorder()
}

criterion_group!(group, benches);
criterion_main!(group);
