//! What it costs to count one finished completion: through held handles, through raw macros, and beside a bare atomic.
//!
//! `cargo bench --bench emit`

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::Utc;
use criterion::{Criterion, criterion_group, criterion_main};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use nexusgate::domain::key::{ApiKey, Limits};
use nexusgate::domain::label::{ApiFormat, FinishReason, LabelValue, ModelType, Status};
use nexusgate::domain::model::{Slo, Target};
use nexusgate::domain::provider::{Provider, ProviderKind};
use nexusgate::domain::record::{Call, RequestRecord};
use nexusgate::domain::usage::{Price, Usage};
use nexusgate::telemetry::Telemetry;
use nexusgate::telemetry::events::CompletionFinished;
use nexusgate::telemetry::registry::Settings;
use nexusgate::telemetry::series::CallSeries;
use uuid::Uuid;

fn record(label_set: usize) -> RequestRecord {
    let provider = Arc::new(Provider {
        id: 1,
        name: LabelValue::new(&format!("provider-{}", label_set % 3)),
        kind: ProviderKind::OpenAi,
        base_url: "https://example.invalid/v1".parse().expect("URL"),
        api_key: None,
        api_version: None,
        proxy: None,
        ask_stream_usage: true,
        max_concurrency: None,
    });
    let price = Price { input: Some(2.5), output: Some(10.0) };
    let usage = Usage { prompt: Some(1200), completion: Some(350), cached: Some(1000), ..Usage::default() };
    let model = LabelValue::new(&format!("model-{label_set}"));
    RequestRecord {
        id: Uuid::now_v7(),
        call: Call::Completion(ApiFormat::OpenAiChat),
        key: Arc::new(ApiKey {
            id: 1,
            comment: LabelValue::new(&format!("team-{}", label_set % 8)),
            limits: Limits::default(),
            expires_at: None,
            revoked: false,
            allowed_models: None,
        }),
        model: model.clone(),
        target: Some(Arc::new(Target {
            id: 1,
            system_name: model,
            remote_id: "remote".into(),
            model_type: ModelType::Chat,
            price,
            weight: 1,
            context_length: None,
            slo: Slo { ttft: Some(Duration::from_secs(1)), tpot: None },
            provider,
        })),
        status: Status::Completed,
        stream: true,
        usage,
        cost: price.cost(&usage),
        finish_reason: Some(FinishReason::Stop),
        error: None,
        started_at: Utc::now(),
        duration: Duration::from_millis(2300),
        ttft: Some(Duration::from_millis(210)),
        longest_stall: Some(Duration::from_millis(40)),
        overhead: Duration::from_micros(60),
        request_id: None,
        source: None,
        request_body: None,
        response_body: None,
    }
}

/// The same look-up and the same series that the gateway uses.
fn emit(telemetry: &Telemetry, record: &RequestRecord) {
    let provider = record.target.as_ref().map(|target| &target.provider.name).expect("a target");
    match telemetry.call_series(record.call, &record.model, provider, &record.key.comment) {
        CallSeries::Completion(series) => CompletionFinished { record, series: &series }.emit(),
        CallSeries::Embedding(_) => unreachable!("the record is of a completion"),
    }
}

/// What a gateway without held handles would write.
#[expect(clippy::disallowed_macros, reason = "this is what the handles are measured against")]
fn emit_by_macros(record: &RequestRecord) {
    use metrics::{counter, gauge, histogram};
    let model = || record.model.as_str().to_owned();
    let comment = || record.key.comment.as_str().to_owned();
    let provider =
        || record.target.as_ref().map_or(String::new(), |target| target.provider.name.as_str().to_owned());
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
}

/// How many samples a histogram may hold before they are sorted into buckets, as the upkeep timer does in the app.
const UPKEEP_EVERY: u64 = 4096;

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("completion_finished");
    for sets in [1_usize, 64] {
        let records: Vec<RequestRecord> = (0..sets).map(record).collect();

        let telemetry = Telemetry::new(&Settings::default(), "bench");
        group.bench_function(format!("held_handles/{sets}"), |bencher| {
            bencher.iter_custom(|rounds| {
                timed(rounds, &records, |record| emit(&telemetry, record), || telemetry.run_upkeep())
            });
        });

        let recorder = raw_recorder();
        let handle = recorder.handle();
        group.bench_function(format!("raw_macros/{sets}"), |bencher| {
            bencher.iter_custom(|rounds| {
                metrics::with_local_recorder(&recorder, || {
                    timed(rounds, &records, emit_by_macros, || handle.run_upkeep())
                })
            });
        });
    }
    let atomic = AtomicU64::new(0);
    group.bench_function("bare_atomic", |bencher| {
        bencher.iter(|| atomic.fetch_add(black_box(1), Ordering::Relaxed));
    });
    group.finish();
}

/// The time of `rounds` calls, without that of the upkeep in between.
fn timed(
    rounds: u64,
    records: &[RequestRecord],
    emit: impl Fn(&RequestRecord),
    upkeep: impl Fn(),
) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = rounds;
    while left > 0 {
        let batch = left.min(UPKEEP_EVERY);
        let started = std::time::Instant::now();
        for record in records.iter().cycle().take(usize::try_from(batch).expect("a small number")) {
            emit(black_box(record));
        }
        spent += started.elapsed();
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
