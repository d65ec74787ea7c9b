//! Memory stays flat when nobody scrapes.

use std::process::Command;
use std::time::Duration;

use nexusgate::telemetry::catalog::ALL;
use nexusgate::telemetry::registry::{Registry, Settings};

/// Set in the measured child process: the figure must not include the other tests' memory.
const CHILD: &str = "NEXUSGATE_SOAK_CHILD";
const SAMPLES: u32 = 5_000_000;
/// Unsorted samples take 16.5 bytes: five million of them, 79 MiB.
const ALLOWED: u64 = 40 << 20;

#[test]
fn five_million_samples_without_a_scrape() {
    let child = Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", "soak::the_measured_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{text}{}", String::from_utf8_lossy(&child.stderr));
    assert!(text.contains("grew by"), "it measured something: {text}");
}

#[test]
fn the_measured_process() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let registry = Registry::new(&Settings::default());
    let metric =
        ALL.iter().find(|metric| metric.name == "nexusgate_completion_duration_seconds").expect("declared");
    let histogram = registry.histogram(metric, &["soak"]);
    let before = resident();
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let registry = &registry;
        // The app's upkeep timer, sped up by the same factor as these samples.
        scope.spawn(move || {
            while stopped
                .recv_timeout(Duration::from_millis(20))
                .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                registry.run_upkeep();
            }
        });
        for sample in 0..SAMPLES {
            histogram.record(f64::from(sample % 1000) / 100.0);
            if sample % 50_000 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        drop(stop);
    });
    registry.run_upkeep();
    let grown = resident().saturating_sub(before);
    println!("{SAMPLES} samples: resident memory grew by {} KiB", grown >> 10);
    assert!(grown < ALLOWED, "it grew by {} MiB", grown >> 20);
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split_whitespace().nth(1).expect("a second field").parse().expect("a number");
    pages * 4096
}
