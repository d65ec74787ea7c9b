//! The cost of a scrape: `cargo bench --bench scrape`.
//!
//! * `series/*`: the time to render a number of samples (at least 100, 1 000, 10 000 and 50 000: a label set has more
//!   than a hundred), and, printed beside it, the size in bytes and the peak memory.
//! * `finished/*`: the same series after 10, 10⁴ and 10⁷ finished requests: it must not grow.
//! * printed at the end: the latency of recording (p50, p99.9) when idle, and while scrapes run.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

#[path = "support/counting.rs"]
mod counting;
#[path = "support/records.rs"]
mod records;
#[path = "support/say.rs"]
mod say;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use nexusgate::domain::label::{ApiFormat, LabelValue};
use nexusgate::domain::record::Call;
use nexusgate::telemetry::Telemetry;
use nexusgate::telemetry::events::CompletionFinished;
use nexusgate::telemetry::registry::Settings;
use nexusgate::telemetry::series::CallSeries;
use records::record;
use say::say;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// A telemetry with at least `series` samples in its exposition, every histogram of them used.
fn with_series(series: usize) -> Arc<Telemetry> {
    let telemetry = Telemetry::new(&Settings { max_series: 1_000_000, ..Settings::default() }, "bench");
    for set in 0.. {
        // Counting takes as long as a scrape, so with many series it is not done after each set.
        if (series <= 1_000 || set % 16 == 0) && samples(&telemetry) >= series {
            return telemetry;
        }
        finish(&telemetry, set);
    }
    telemetry
}

fn finish(telemetry: &Telemetry, set: usize) {
    let record = record(set);
    let provider = record.target.as_ref().map(|target| &target.provider.name).expect("a target");
    if let CallSeries::Completion(series) =
        telemetry.call_series(record.call, &record.model, provider, &record.key.comment)
    {
        CompletionFinished { record: &record, series: &series }.emit();
    }
}

/// The number of samples.
fn samples(telemetry: &Telemetry) -> usize {
    let text = telemetry.render(false);
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#').count()
}

fn by_series(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("series");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for series in [100, 1_000, 10_000, 50_000] {
        let telemetry = with_series(series);
        let (text, taken) = counting::measure(|| telemetry.render(false));
        let found = samples(&telemetry);
        say(format_args!(
            "{found} samples: {} bytes, {} allocations, {} KiB held at most while rendering",
            text.len(),
            taken.allocations,
            taken.peak / 1024
        ));
        group.bench_function(found.to_string(), |b| b.iter(|| black_box(telemetry.render(false))));
    }
    group.finish();
}

fn by_requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("finished");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    let telemetry = with_series(1_000);
    let mut done = 0_u64;
    for requests in [10, 10_000, 10_000_000_u64] {
        let one = record(0);
        let provider = one.target.as_ref().map(|target| &target.provider.name).expect("a target");
        let CallSeries::Completion(series) =
            telemetry.call_series(one.call, &one.model, provider, &one.key.comment)
        else {
            return;
        };
        while done < requests {
            CompletionFinished { record: &one, series: &series }.emit();
            done += 1;
            if done.is_multiple_of(4096) {
                telemetry.run_upkeep();
            }
        }
        telemetry.run_upkeep();
        group.bench_function(requests.to_string(), |b| b.iter(|| black_box(telemetry.render(false))));
    }
    group.finish();
    recording_beside_scrapes();
}

/// The latency of one event while another thread renders 10 k series without a pause.
fn recording_beside_scrapes() {
    let telemetry = with_series(10_000);
    let one = record(0);
    let model = LabelValue::new("model-0");
    let provider = one.target.as_ref().map(|target| target.provider.name.clone()).expect("a target");
    let call = Call::Completion(ApiFormat::OpenAiChat);
    let measure = || {
        let mut taken: Vec<u64> = Vec::with_capacity(200_000);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let started = Instant::now();
            if let CallSeries::Completion(series) =
                telemetry.call_series(call, &model, &provider, &one.key.comment)
            {
                CompletionFinished { record: &one, series: &series }.emit();
            }
            taken.push(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
            if taken.len().is_multiple_of(4096) {
                telemetry.run_upkeep();
            }
        }
        taken.sort_unstable();
        let at = |thousandths: usize| taken[(taken.len() - 1) * thousandths / 1000];
        (at(500), at(999))
    };
    let alone = measure();
    let stop = AtomicBool::new(false);
    let (beside, scrapes) = std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let mut scrapes = 0;
            while !stop.load(Ordering::Relaxed) {
                black_box(telemetry.render(false));
                scrapes += 1;
            }
            scrapes
        });
        let beside = measure();
        stop.store(true, Ordering::Relaxed);
        (beside, scraper.join().unwrap_or(0))
    });
    say(format_args!("recording alone: p50 {} ns, p99.9 {} ns", alone.0, alone.1));
    say(format_args!("recording while {scrapes} scrapes ran: p50 {} ns, p99.9 {} ns", beside.0, beside.1));
}

criterion_group!(group, by_series, by_requests);
criterion_main!(group);
