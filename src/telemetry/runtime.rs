//! Figures of the process and of the tokio runtime, read on the upkeep timer so that a scrape reads no file.

use metrics::Gauge;
use metrics_process::Collector;
use parking_lot::Mutex;
use tokio_metrics::{RuntimeIntervals, RuntimeMonitor};

use super::catalog as m;
use super::registry::{FloatCounter, Registry};

pub(super) struct RuntimeCollector {
    process: Collector,
    workers: Gauge,
    live_tasks: Gauge,
    queue_depth: Gauge,
    busy: FloatCounter,
    /// `None` outside a runtime (benches).
    intervals: Option<Mutex<RuntimeIntervals>>,
}

impl RuntimeCollector {
    pub(super) fn new(registry: &Registry) -> Self {
        let process = Collector::default();
        registry.as_recorder(|| {
            process.describe();
            process.collect();
        });
        let intervals = tokio::runtime::Handle::try_current()
            .ok()
            .map(|handle| Mutex::new(RuntimeMonitor::new(&handle).intervals()));
        Self {
            process,
            workers: registry.gauge(&m::TOKIO_WORKERS, &[]),
            live_tasks: registry.gauge(&m::TOKIO_LIVE_TASKS, &[]),
            queue_depth: registry.gauge(&m::TOKIO_GLOBAL_QUEUE_DEPTH, &[]),
            busy: registry.float_counter(&m::TOKIO_BUSY, &[]),
            intervals,
        }
    }

    /// Must run with the registry as the local recorder: the process figures come through the `metrics` macros.
    pub(super) fn collect(&self) {
        self.process.collect();
        let interval = self.intervals.as_ref().and_then(|intervals| intervals.lock().next());
        if let Some(interval) = interval {
            self.workers.set(as_f64(interval.workers_count));
            self.live_tasks.set(as_f64(interval.live_tasks_count));
            self.queue_depth.set(as_f64(interval.global_queue_depth));
            self.busy.add(interval.total_busy_duration.as_secs_f64());
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of tasks and threads")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
