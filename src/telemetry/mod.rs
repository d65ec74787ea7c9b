//! Counting, in memory, as it happens.
//!
//! * [`catalog`] declares every metric, and nothing else does.
//! * [`registry`] turns declarations into live handles, within the series cap.
//! * [`series`] holds the handles that requests need.
//! * [`events`] are the facts that the rest of the gateway reports.
//! * [`exporter`] renders `/metrics`.
//! * [`gauges`] are set on a timer, from the database and the limiter; those of the request log before each rendering.

pub mod catalog;
pub mod docs;
pub mod events;
pub mod exporter;
pub mod gauges;
pub mod logging;
pub mod registry;
mod runtime;
pub mod series;
mod surface;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use http::{Method, StatusCode};
use metrics::{Counter, Gauge};
use parking_lot::Mutex;

use crate::domain::label::{LabelValue, LimitType, LogTable, ModelType, RejectReason};
use crate::domain::model::Target;
use crate::domain::record::Call;

use catalog as m;
use exporter::Exporter;
use gauges::{KeyGauges, OperationGauges};
use registry::{Registry, RetirableGauge, SafeHistogram};
use runtime::RuntimeCollector;
use series::{CallSeries, SeriesCache, UpstreamSeries, each};
use surface::Surface;

/// How often histogram samples are moved into their buckets, and process figures are read. Unscraped histograms grow by
/// 16.5 bytes a sample until then.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The metrics of one gateway.
pub struct Telemetry {
    registry: Arc<Registry>,
    exporter: Exporter,
    series: SeriesCache,
    rejected: [Counter; RejectReason::ALL.len()],
    http_requests: HttpSeries,
    surfaces: SurfaceSeries,
    /// Finished requests counted since start, by table.
    pub audit: AuditCounts,
    /// Gauges of keys, providers and models.
    pub keys: KeyGauges,
    /// Gauges and counters of the request log, the database and Redis.
    pub operations: OperationGauges,
    providers_up: Mutex<HashMap<LabelValue, RetirableGauge>>,
    rate_limit_rejections: series::Map<LabelValue, Arc<RejectionCounters>>,
    /// Whether a key's rejections may start at 0; before that, a stored count may still come.
    rejections_seeded: AtomicBool,
    runtime: RuntimeCollector,
}

type RejectionCounters = [Counter; LimitType::ALL.len()];

impl Telemetry {
    /// `version` is the label of `nexusgate_info`.
    pub fn new(settings: &registry::Settings, version: &str) -> Arc<Self> {
        let registry = Arc::new(Registry::new(settings));
        Arc::new(Self {
            exporter: Exporter::new(registry.clone(), version),
            series: SeriesCache::new(registry.clone()),
            rejected: each(RejectReason::VALUES, |reason| registry.counter(&m::REQUESTS_REJECTED, &[reason])),
            http_requests: HttpSeries::new(registry.clone()),
            surfaces: SurfaceSeries::new(&registry),
            audit: AuditCounts::default(),
            keys: KeyGauges::new(registry.clone()),
            operations: OperationGauges::new(&registry),
            providers_up: Mutex::default(),
            rate_limit_rejections: series::Map::default(),
            rejections_seeded: AtomicBool::new(false),
            runtime: RuntimeCollector::new(&registry),
            registry,
        })
    }

    /// Renders `/metrics`. Takes milliseconds: call it off the async workers.
    pub fn render(&self, gzip: bool) -> Vec<u8> {
        self.exporter.render(gzip)
    }

    /// The essential metrics, for when rendering failed.
    pub fn render_essentials(&self, gzip: bool) -> Vec<u8> {
        self.exporter.fallback(gzip)
    }

    /// Keeps memory flat and process figures fresh; call it every [`UPKEEP_INTERVAL`].
    pub fn run_upkeep(&self) {
        self.registry.as_recorder(|| self.runtime.collect());
        self.registry.run_upkeep();
    }

    /// The series of a call, to be kept until it finishes. From now on they exist, with every status at 0.
    pub fn call_series(
        &self,
        call: Call,
        model: &LabelValue,
        provider: &LabelValue,
        comment: &LabelValue,
    ) -> CallSeries {
        self.series.call(call, model, provider, comment)
    }

    /// The series of calls to a target, to be kept until the call ends.
    pub fn upstream_series(&self, target: &Target) -> Arc<UpstreamSeries> {
        self.series.upstream(&target.system_name, &target.provider.name)
    }

    /// Creates the series of a configured target, at 0, so that its first request is visible to `increase()`.
    pub fn target_configured(&self, target: &Target) {
        match target.model_type {
            ModelType::Chat => drop(self.series.model(&target.system_name)),
            ModelType::Embedding => {
                drop(self.series.embedding_model(&target.system_name));
            }
        }
        self.upstream_series(target);
    }

    /// Creates the series of a limited key's rejections, at 0, so that the first one is visible to `increase()`. Does
    /// nothing until the stored counts are read: a seed that came later would look like a spike.
    pub fn limited_key_seen(&self, comment: &LabelValue) {
        if self.rejections_seeded.load(Ordering::Acquire) {
            self.rate_limit_rejections(comment);
        }
    }

    /// No stored rejection count will be exposed any more.
    pub fn rejections_seeded(&self) {
        self.rejections_seeded.store(true, Ordering::Release);
    }

    /// Shows exactly these providers: adds new ones as up, before their circuit breakers have reported, and retires
    /// those that were removed.
    pub fn providers_configured<'a>(&self, providers: impl Iterator<Item = &'a LabelValue>) {
        let configured: HashSet<&LabelValue> = providers.collect();
        let mut shown = self.providers_up.lock();
        shown.retain(|provider, gauge| {
            let stays = configured.contains(provider);
            if !stays {
                gauge.retire();
            }
            stays
        });
        for provider in configured {
            shown.entry(provider.clone()).or_insert_with(|| {
                let gauge = self.registry.uncapped_gauge(&m::PROVIDER_UP, &[provider.as_str()]);
                gauge.set(1.0);
                gauge
            });
        }
    }

    /// Shows the state of a circuit breaker; ignored for a provider that is no longer configured.
    fn provider_is_up(&self, provider: &LabelValue, up: bool) {
        if let Some(gauge) = self.providers_up.lock().get(provider) {
            gauge.set(if up { 1.0 } else { 0.0 });
        }
    }

    fn rate_limit_rejections(&self, comment: &LabelValue) -> Arc<RejectionCounters> {
        let guard = self.rate_limit_rejections.guard();
        if let Some(counters) = self.rate_limit_rejections.get(comment, &guard) {
            return counters.clone();
        }
        let counters = Arc::new(each(LimitType::VALUES, |limit_type| {
            self.registry.counter(&m::RATE_LIMIT_REJECTIONS, &[comment.as_str(), limit_type])
        }));
        self.rate_limit_rejections.get_or_insert(comment.clone(), counters, &guard).clone()
    }
}

/// A request that has arrived and not yet ended: it counts as in flight while this lives.
#[must_use]
pub struct InFlight {
    telemetry: Arc<Telemetry>,
    surface: Surface,
}

impl InFlight {
    /// A request arrived.
    pub fn start(telemetry: Arc<Telemetry>, call: Call) -> Self {
        let surface = Surface::from(call);
        telemetry.surfaces.in_flight(surface).increment(1.0);
        Self { telemetry, surface }
    }

    /// The metrics that the request is counted in.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.telemetry.surfaces.in_flight(self.surface).decrement(1.0);
    }
}

/// Series by inference endpoint.
struct SurfaceSeries {
    in_flight: [Gauge; Surface::VALUES.len()],
    overhead: [SafeHistogram; Surface::VALUES.len()],
}

impl SurfaceSeries {
    fn new(registry: &Registry) -> Self {
        Self {
            in_flight: each(Surface::VALUES, |surface| {
                let gauge = registry.gauge(&m::REQUESTS_IN_FLIGHT, &[surface]);
                gauge.set(0.0);
                gauge
            }),
            overhead: each(Surface::VALUES, |surface| registry.histogram(&m::GATEWAY_OVERHEAD, &[surface])),
        }
    }

    fn in_flight(&self, surface: Surface) -> &Gauge {
        &self.in_flight[surface.index()]
    }

    fn overhead(&self, call: Call) -> &SafeHistogram {
        &self.overhead[Surface::from(call).index()]
    }
}

/// Series of `nexusgate_http_requests_total`, by route, method and code.
struct HttpSeries {
    registry: Arc<Registry>,
    held: papaya::HashMap<(Box<str>, &'static str, StatusCode), Counter, RandomState>,
}

/// A borrowed key of [`HttpSeries`].
#[derive(Hash)]
struct HttpKey<'a>(&'a str, &'static str, StatusCode);

impl papaya::Equivalent<(Box<str>, &'static str, StatusCode)> for HttpKey<'_> {
    fn equivalent(&self, key: &(Box<str>, &'static str, StatusCode)) -> bool {
        *self.0 == *key.0 && self.1 == key.1 && self.2 == key.2
    }
}

impl HttpSeries {
    fn new(registry: Arc<Registry>) -> Self {
        Self { registry, held: papaya::HashMap::default() }
    }

    fn get(&self, route: &str, method: &Method, code: StatusCode) -> Counter {
        let method = method_label(method);
        let guard = self.held.guard();
        if let Some(counter) = self.held.get(&HttpKey(route, method, code), &guard) {
            return counter.clone();
        }
        let counter = self.registry.counter(&m::HTTP_REQUESTS, &[route, method, code.as_str()]);
        self.held.get_or_insert((route.into(), method, code), counter, &guard).clone()
    }
}

/// A client may send any token as a method, so only the registered ones are labels.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// Finished requests counted since start, by table of the request log: the audit compares the log with them.
#[derive(Default)]
pub struct AuditCounts([AtomicU64; LogTable::ALL.len()]);

impl AuditCounts {
    fn counted(&self, table: LogTable) {
        self.0[table as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self, table: LogTable) -> u64 {
        self.0[table as usize].load(Ordering::Relaxed)
    }
}
