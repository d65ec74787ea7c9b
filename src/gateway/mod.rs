//! The request path: authentication ([`auth`]), limits ([`admit`]), routing ([`route`]), attempts and failover
//! ([`dispatch`], [`exchange`]), the answer ([`body`], [`relay`]), and the final record ([`finish`]).

mod admit;
mod attempt;
mod auth;
pub mod body;
mod count_tokens;
mod dedup;
mod detach;
mod dispatch;
mod exchange;
mod failure;
mod finish;
mod gather;
mod health;
pub mod journal;
mod log_row;
mod prepare;
pub mod probe;
mod reading;
pub mod refusal;
mod relay;
pub mod request_log;
mod route;
pub mod scope;
mod transform;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::label::{LogTable, RejectReason};
use crate::domain::model::Target;
use crate::domain::record::{Call, RequestRecord};
use crate::limit::{Coordination, LimitServices, Limiter};
use crate::provider::{Endpoints, Trust, UpstreamClient};
use crate::store::request_log::LogRow;
use crate::store::{Snapshot, SnapshotStore, connect};
use crate::telemetry::Telemetry;
use crate::wire::head::RequestHead;

pub use admit::Caller;
pub use auth::bearer;
pub use body::GatewayBody;
pub use exchange::is_encoded;
pub use gather::{NotGathered, gather};
pub use refusal::Refusal;
pub use route::OfferedModel;

use dedup::{Found, Ids};
use detach::Attached;
use dispatch::Job;
use finish::FinishGuard;
use health::Health;
use request_log::RequestLog;
use scope::{RequestScope, Slots};

/// How the gateway treats requests.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Until the first bytes of a stream, or the end of any other answer.
    pub upstream_timeout: Duration,
    pub upstream_connect_timeout: Duration,
    pub upstream_trust: Trust,
    /// Silence in the middle of a stream.
    pub stream_idle_timeout: Duration,
    /// How long an answer is still read after its client has left; zero cancels at once.
    pub drain_on_disconnect: Duration,
    /// The most inference requests in flight at one time.
    pub max_in_flight: usize,
    /// Whether requests and answers are kept in the request log.
    pub log_payloads: bool,
}

/// The gateway's dependencies.
pub struct Parts {
    pub settings: Settings,
    pub telemetry: Arc<Telemetry>,
    pub snapshots: Arc<SnapshotStore>,
    pub limits: Arc<LimitServices>,
    /// Where finished requests are looked up by their request id; nothing else on the request path reads it.
    pub database: DatabaseConnection,
    pub log: Arc<RequestLog<LogRow>>,
    pub hooks: Hooks,
}

/// See [`Hooks::before_admission`].
pub type AdmissionHook = Box<dyn Fn() + Send + Sync>;

/// See [`Hooks::before_attempt`].
pub type AttemptHook = Box<dyn Fn(&Target) + Send + Sync>;

/// Hooks by which tests inject faults.
#[derive(Default)]
pub struct Hooks {
    /// Called before each request is admitted.
    pub before_admission: Option<AdmissionHook>,
    /// Called before each upstream call.
    pub before_attempt: Option<AttemptHook>,
}

/// The request path. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    parts: Parts,
    client: UpstreamClient,
    endpoints: Endpoints,
    health: Health,
    slots: Slots,
    ids: Arc<Ids>,
    /// Serialises [`Gateway::announce`].
    announcing: parking_lot::Mutex<()>,
    /// Requests that go on after their client has left.
    tracker: TaskTracker,
    leaving: AtomicBool,
    draining: AtomicBool,
    abandoned: CancellationToken,
}

impl Gateway {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            client: UpstreamClient::new(
                parts.settings.upstream_connect_timeout,
                &parts.settings.upstream_trust,
            ),
            endpoints: Endpoints::default(),
            health: Health::new(parts.telemetry.clone()),
            slots: Slots::new(parts.settings.max_in_flight),
            ids: Arc::default(),
            announcing: parking_lot::Mutex::default(),
            tracker: TaskTracker::new(),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            abandoned: CancellationToken::new(),
            parts,
        }))
    }

    /// A request has arrived.
    pub fn open(&self, call: Call) -> Arc<RequestScope> {
        RequestScope::open(self.0.parts.telemetry.clone(), call, self.slots().take())
    }

    /// Answers one inference request, from its body to the head of its answer.
    pub async fn complete(
        &self,
        scope: Arc<RequestScope>,
        caller: &Caller,
        headers: HeaderMap,
        body: Bytes,
    ) -> Response<GatewayBody> {
        let call = scope.call;
        self.try_complete(scope, caller, headers, body)
            .await
            .unwrap_or_else(|refusal| refusal.into_response(call))
    }

    async fn try_complete(
        &self,
        scope: Arc<RequestScope>,
        caller: &Caller,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<GatewayBody>, Refusal> {
        let request_id = dedup::request_id(&headers)?;
        let job = self.read(&scope, caller, headers, body)?;
        let found = match request_id {
            Some(request_id) => Some(Box::pin(self.claim(job.call, &caller.key, request_id)).await?),
            None => None,
        };
        let mut guard = FinishGuard::accept(self, scope.clone(), caller.key.clone(), &job);
        match found {
            Some(Found::Answered(stored)) => return Ok(self.answer_again(&job, guard, stored)),
            Some(Found::Free(claim)) => guard.holds(claim),
            None => {}
        }
        Ok(Attached::new(|| self.clone().dispatch(job, guard), scope, self.clone()).await)
    }

    /// Reads the fields that routing needs, and routes.
    fn read(
        &self,
        scope: &RequestScope,
        caller: &Caller,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Job, Refusal> {
        let call = scope.call;
        let head = RequestHead::parse(call, &body).map_err(|error| {
            Refusal::new(RejectReason::InvalidRequest, error.to_string()).with_param(error.param())
        })?;
        let targets = self.route(call, &caller.key, &head.model, &headers)?;
        let stream = call != Call::Embedding && head.stream.unwrap_or_else(|| accepts_events(&headers));
        Ok(Job { call, head, headers, body, stream, targets })
    }

    /// From now on `/readyz` reports the shutdown; requests are still accepted.
    pub fn announce_shutdown(&self) {
        self.0.leaving.store(true, Ordering::Release);
    }

    /// From now on new requests are refused.
    pub fn drain(&self) {
        self.announce_shutdown();
        self.0.draining.store(true, Ordering::Release);
    }

    /// Whether the gateway wants no more traffic.
    pub fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Acquire)
    }

    /// Ends every accepted request that is still running, as failed: with the usage that its provider has reported so
    /// far, and without waiting for more.
    pub fn abandon(&self) {
        self.drain();
        self.0.abandoned.cancel();
    }

    /// Cancelled when running requests must end.
    pub fn abandoned(&self) -> &CancellationToken {
        &self.0.abandoned
    }

    /// Waits until no request is in flight.
    pub async fn idle(&self) {
        while self.slots().taken() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Waits until requests whose clients have left are drained.
    pub async fn drained(&self) {
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }

    /// Creates the series of all that is configured, and drops the health of providers that were removed or renamed,
    /// and what was kept for targets and proxies that are no more.
    pub fn announce(&self) {
        // One at a time, each reading the newest snapshot: otherwise a slow caller could announce an older one last.
        let _turn = self.0.announcing.lock();
        let snapshot = self.snapshot();
        let targets = || snapshot.models().flat_map(|(_, targets)| targets);
        let providers = || targets().map(|target| &*target.provider);
        self.0.health.configured(providers());
        self.client().configured(providers());
        self.endpoints().configured(targets().map(|target| &**target));
        targets().for_each(|target| self.telemetry().target_configured(target));
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.parts.snapshots.load_full()
    }

    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.0.parts.telemetry
    }

    pub fn limiter(&self) -> &Limiter {
        &self.0.parts.limits.limiter
    }

    fn settings(&self) -> &Settings {
        &self.0.parts.settings
    }

    fn client(&self) -> &UpstreamClient {
        &self.0.client
    }

    fn slots(&self) -> &Slots {
        &self.0.slots
    }

    fn endpoints(&self) -> &Endpoints {
        &self.0.endpoints
    }

    fn health(&self) -> &Health {
        &self.0.health
    }

    fn tracker(&self) -> &TaskTracker {
        &self.0.tracker
    }

    /// Whether work for a client that has left goes on at all.
    fn is_patient(&self) -> bool {
        !self.settings().drain_on_disconnect.is_zero() && !self.0.abandoned.is_cancelled()
    }

    /// Returns when such work must stop that nobody has waited for since `since`.
    async fn patience(&self, since: Instant) {
        let end = since + self.settings().drain_on_disconnect;
        tokio::select! {
            () = self.0.abandoned.cancelled() => {}
            () = tokio::time::sleep_until(end.into()) => {}
        }
    }

    fn logs_payloads(&self) -> bool {
        self.settings().log_payloads
    }

    fn log(&self, record: &RequestRecord) {
        self.0.parts.log.append(LogRow::from(record));
    }

    fn ids(&self) -> &Arc<Ids> {
        &self.0.ids
    }

    /// Whether the database answers a ping; waits for as long as its driver does.
    pub async fn database_answers(&self) -> bool {
        connect::ping(self.database()).await.is_ok()
    }

    fn database(&self) -> &DatabaseConnection {
        &self.0.parts.database
    }

    fn coordination(&self) -> Option<&Coordination> {
        self.0.parts.limits.coordination.as_ref()
    }

    /// Waits, for at most [`REPLAY_PATIENCE`], until the rows that an earlier process left in the journal are in the
    /// database.
    async fn replayed(&self) {
        self.0.parts.log.replayed(REPLAY_PATIENCE).await;
    }

    /// Sets the gauges of the request log. Call it before each scrape is rendered, so that it shows the rows of every
    /// request answered before; it costs a few locks and no I/O.
    pub fn show_log(&self) {
        let (log, telemetry) = (&self.0.parts.log, self.telemetry());
        let status = log.status();
        for table in LogTable::ALL.iter().copied() {
            let mismatch = log.mismatch(table, || telemetry.audit.get(table));
            telemetry.operations.show_log(table, status.pending(table), mismatch);
        }
        telemetry.operations.show_oldest_row(status.oldest);
        telemetry.operations.show_journal(status.disk_bytes);
    }

    /// Forgets request ids that can be looked up in the database; call it every second or so.
    pub fn sweep_ids(&self) {
        self.ids().sweep(self.unwritten());
    }

    fn before_admission(&self) {
        if let Some(hook) = &self.0.parts.hooks.before_admission {
            hook();
        }
    }

    fn before_attempt(&self, target: &Target) {
        if let Some(hook) = &self.0.parts.hooks.before_attempt {
            hook(target);
        }
    }
}

/// How long a request with a request id waits for the journal's replay after a crash.
const REPLAY_PATIENCE: Duration = Duration::from_secs(5);

/// Whether the client wants an event stream by its `Accept` header.
fn accepts_events(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains("text/event-stream"))
}
