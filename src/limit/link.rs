//! The one link to Redis that limits, rejection counts and coordination share, and the breaker in it.
//!
//! While the link is up, commands go out on one multiplexed connection. The first one that fails, or takes longer than
//! it may, takes the link down for all callers at once: commands in flight are released, later ones are refused without
//! waiting, and so an outage costs the callers one timeout altogether, not one each. A task then tries to connect and
//! to write until that works in time, and only then brings the link up again.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::target::{Connection, Target};
use super::{InvalidRedisUrl, Observer};
use crate::domain::key::Secret;
use crate::domain::label::RedisOp;

/// How often an idle link is probed, so that `nexusgate_redis_up` is right without traffic, and read-only or full
/// servers are found before a request finds them.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Pauses between reconnection attempts: none before the first, then growing to the longest. A link that flaps thus
/// costs the callers no more than one timeout a second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A link that lasted this long was healthy, and its end is a new outage.
const HEALTHY: Duration = Duration::from_secs(5);

/// How long start-up waits for Redis before it goes on without. Seeding works later too, so this only has to cover a
/// Redis that starts beside us.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// How long a whole reconnection attempt may take: resolving, asking sentinels, connecting, probing.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// A handle to the link. Clones share it; the task that keeps it alive ends with the last one.
#[derive(Clone)]
pub struct RedisLink {
    inner: Arc<Inner>,
    _monitor: Arc<AbortOnDropHandle<()>>,
}

struct Inner {
    target: Target,
    timeout: Duration,
    observer: Observer,
    live: ArcSwapOption<Live>,
    status: watch::Sender<Status>,
    /// Held while the link goes up or down, so that `status` and the observer see the changes in order.
    turning: Mutex<()>,
    /// Why the last attempt to connect failed.
    why_down: Mutex<Option<String>>,
}

/// Whether the link is up, and how many times it has come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Status {
    pub(super) up: bool,
    pub(super) generation: u64,
}

/// A connection that has been seen to work.
struct Live {
    connection: Connection,
    since: Instant,
    /// Cancelled when the link goes down.
    gone: CancellationToken,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The link is down: nothing was sent.
    #[error("Redis is away")]
    Down,
    /// The link went down meanwhile: Redis may or may not have carried it out.
    #[error("Redis went away")]
    Lost,
    /// Redis is well and refused this one command.
    #[error(transparent)]
    Refused(RedisError),
}

impl RedisLink {
    /// Connects, waiting for up to two seconds; then goes on and keeps trying in the background.
    pub async fn start(url: &Secret, timeout: Duration, observer: Observer) -> Result<Self, InvalidRedisUrl> {
        let inner = Arc::new(Inner {
            target: Target::parse(url.expose())?,
            timeout,
            observer,
            live: ArcSwapOption::empty(),
            status: watch::Sender::new(Status::default()),
            turning: Mutex::new(()),
            why_down: Mutex::default(),
        });
        (inner.observer.redis_up)(false);
        let monitor = tokio::spawn(monitor(Arc::clone(&inner)));
        let link = Self { inner, _monitor: Arc::new(AbortOnDropHandle::new(monitor)) };
        let mut status = link.status();
        if tokio::time::timeout(START_PATIENCE, status.wait_for(|status| status.up)).await.is_err() {
            let why = link.inner.why_down.lock().take();
            let why = why.unwrap_or_else(|| "no answer".to_owned());
            warn!(why, "Redis cannot be used; starting without it and trying on");
        }
        Ok(link)
    }

    /// Whether commands are being sent.
    pub fn is_up(&self) -> bool {
        self.inner.live.load().is_some()
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    pub(super) fn target(&self) -> &Target {
        &self.inner.target
    }

    /// The time a request may wait for Redis.
    pub(super) fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    pub(super) fn report(&self, op: RedisOp, error: &dyn fmt::Display) {
        self.inner.report(op, error);
    }

    /// Runs `work`, for at most `patience`. An answer that says Redis is unwell, or none in time, takes the link down.
    pub(super) async fn run<T, F>(
        &self,
        op: RedisOp,
        patience: Duration,
        work: impl FnOnce(Connection) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        self.inner.run(op, patience, work).await
    }
}

impl Inner {
    async fn run<T, F>(
        &self,
        op: RedisOp,
        patience: Duration,
        work: impl FnOnce(Connection) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let Some(live) = self.live.load_full() else { return Err(Failure::Down) };
        let mut work = pin!(work(live.connection.clone()));
        let answer = tokio::select! {
            biased;
            answer = &mut work => Some(answer),
            () = live.gone.cancelled() => return Err(Failure::Lost),
            () = sleep(patience) => {
                // If this process was too busy, the answer may still be in the socket. Let it be read.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                futures_util::FutureExt::now_or_never(work)
            }
        };
        match answer {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) if !is_outage(&error) => {
                self.report(op, &error);
                Err(Failure::Refused(error))
            }
            Some(Err(error)) => {
                self.take_down(&live, op, &error);
                Err(Failure::Lost)
            }
            None => {
                self.take_down(&live, op, &format_args!("no answer within {patience:?}"));
                Err(Failure::Lost)
            }
        }
    }

    fn report(&self, op: RedisOp, error: &dyn fmt::Display) {
        (self.observer.redis_error)(op);
        debug!(op = op.as_str(), %error, "Redis failed");
    }

    /// The first command that fails takes the link down; those that fail along with it report nothing.
    fn take_down(&self, live: &Arc<Live>, op: RedisOp, error: &dyn fmt::Display) {
        let turning = self.turning.lock();
        let previous = self.live.compare_and_swap(live, None);
        if !previous.as_ref().is_some_and(|previous| Arc::ptr_eq(previous, live)) {
            return;
        }
        (self.observer.redis_error)(op);
        (self.observer.redis_up)(false);
        self.status.send_modify(|status| status.up = false);
        drop(turning);
        live.gone.cancel();
        warn!(op = op.as_str(), %error, "Redis is away; limits are kept in memory until it is back");
    }

    /// Connects and proves that Redis answers in time and takes writes.
    async fn bring_up(&self) -> Result<(), String> {
        let attempt = async {
            let connection = self.target.connect().await.map_err(|error| error.to_string())?;
            match timeout(self.timeout, probe(connection.clone())).await {
                Ok(Ok(())) => Ok(connection),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", self.timeout)),
            }
        };
        let connection = timeout(ATTEMPT_TIMEOUT, attempt)
            .await
            .unwrap_or_else(|_| Err(format!("no connection within {ATTEMPT_TIMEOUT:?}")))?;
        let live = Live { connection, since: Instant::now(), gone: CancellationToken::new() };
        let _turning = self.turning.lock();
        self.live.store(Some(Arc::new(live)));
        (self.observer.redis_up)(true);
        self.status.send_modify(|status| *status = Status { up: true, generation: status.generation + 1 });
        Ok(())
    }
}

/// Keeps the link: probes it while it is up, and reconnects when it is down.
async fn monitor(inner: Arc<Inner>) {
    let mut pause = Duration::ZERO;
    let mut down_since = Instant::now();
    loop {
        if let Some(live) = inner.live.load_full() {
            probe_until_gone(&inner, &live).await;
            down_since = Instant::now();
            pause = if live.since.elapsed() > HEALTHY { Duration::ZERO } else { next(pause) };
        }
        sleep(pause.mul_f64(rand::random_range(0.75..=1.0))).await;
        match inner.bring_up().await {
            Ok(()) => info!(after = ?down_since.elapsed(), "Redis is there"),
            Err(error) => {
                inner.report(RedisOp::Connect, &error);
                *inner.why_down.lock() = Some(error.to_string());
                pause = next(pause);
            }
        }
    }
}

async fn probe_until_gone(inner: &Inner, live: &Live) {
    while !live.gone.is_cancelled() {
        tokio::select! {
            () = live.gone.cancelled() => {}
            () = sleep(PROBE_INTERVAL) => {
                // A failure takes the link down.
                let _ = inner.run(RedisOp::Probe, inner.timeout, probe).await;
            }
        }
    }
}

fn next(pause: Duration) -> Duration {
    (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Writes, because a read-only replica or a full server still answers a PING.
async fn probe(mut connection: Connection) -> Result<(), RedisError> {
    redis::cmd("SET").arg("nexusgate:probe").arg(1).arg("EX").arg(60).exec_async(&mut connection).await
}

/// Whether an error means that Redis is unwell: every error does, except those that the command itself is to blame for.
fn is_outage(error: &RedisError) -> bool {
    /// Codes that stand inside a script's error instead of in front of it, depending on the server's version.
    const INSIDE: [&str; 4] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS"];
    match error.kind() {
        ErrorKind::UnexpectedReturnType | ErrorKind::Client => false,
        ErrorKind::Server(ServerErrorKind::CrossSlot | ServerErrorKind::NoScript) => false,
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            let text = error.to_string();
            INSIDE.iter().any(|code| text.contains(code))
        }
        ErrorKind::Extension => error.code() != Some("WRONGTYPE"),
        _ => true,
    }
}

impl fmt::Debug for RedisLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLink").field("up", &self.is_up()).field("timeout", &self.timeout()).finish()
    }
}
