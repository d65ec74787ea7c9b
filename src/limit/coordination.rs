//! Coordination of replicas through Redis: announcements of changes, locks on request ids, leases for housekeeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::{AsyncCommands, ExistenceCheck, RedisError, Script, SetExpiry, SetOptions};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::{interval, sleep, timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::Uuid;

use super::link::{Failure, RedisLink};
use super::millis;
use super::target::Connection;
use crate::domain::label::{LogTable, RedisOp};

/// The channel on which replicas announce changes of keys, providers or models.
const CHANNEL: &str = "nexusgate:snapshot";

/// How long a request stays locked when the replica that works on it dies, and how often a living one renews the lock.
const LOCK_TIME_TO_LIVE: Duration = Duration::from_secs(15);
const LOCK_RENEWAL: Duration = Duration::from_secs(5);

/// The pause between two attempts to release a lock that may have been taken late.
const RELEASE_AGAIN: Duration = Duration::from_secs(1);

/// The timeout of background operations, which no request waits for.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The interval of pings on a silent subscription: a connection that was cut without notice would otherwise stay silent
/// for ever.
const SUBSCRIPTION_PING: Duration = Duration::from_secs(5);

/// The pause after a subscription failed.
const SUBSCRIPTION_PAUSE: Duration = Duration::from_millis(250);

/// The pause between two attempts to announce a change.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(250);

/// How long an announcement is attempted.
const ANNOUNCE_FOR: Duration = Duration::from_secs(300);

/// Announcements, locks and leases, all under one identity.
#[derive(Debug, Clone)]
pub struct Coordination {
    link: RedisLink,
    /// Identifies this process, and no other.
    me: Arc<str>,
    scripts: Arc<Scripts>,
    /// The tasks that hold locks.
    holders: TaskTracker,
    /// Whether an announcement waits for Redis.
    owes_announcement: Arc<AtomicBool>,
}

/// Both act only if the key is still ours.
#[derive(Debug)]
struct Scripts {
    renew: Script,
    release: Script,
}

/// Listens for as long as it is held.
#[derive(Debug)]
#[must_use = "dropping it ends the subscription"]
pub struct Subscription(#[expect(dead_code, reason = "held for its Drop")] AbortOnDropHandle<()>);

/// The answer to [`Coordination::lock`].
#[derive(Debug)]
pub enum Lock {
    /// The request is ours until the guard is dropped.
    Held(LockGuard),
    /// Another replica, or another call here, works on it.
    Busy,
    /// Redis is away, so the holder is unknown. The caller decides; locks within this process still hold.
    Unavailable,
}

/// Holds a lock: renewed in the background, released when dropped.
#[derive(Debug)]
pub struct LockGuard {
    /// Dropping it signals the holder.
    _drop: oneshot::Sender<()>,
}

/// A task that one replica at a time may do.
#[derive(Debug, Clone)]
pub struct Lease {
    link: RedisLink,
    scripts: Arc<Scripts>,
    key: String,
    me: Arc<str>,
    time_to_live: Duration,
}

impl Coordination {
    /// Coordinates over `link`.
    pub fn new(link: RedisLink) -> Self {
        Self {
            link,
            me: Uuid::now_v7().to_string().into(),
            scripts: Arc::new(Scripts {
                renew: Script::new(include_str!("lua/renew.lua")),
                release: Script::new(include_str!("lua/release.lua")),
            }),
            holders: TaskTracker::new(),
            owes_announcement: Arc::default(),
        }
    }

    /// Announces to every other replica that the snapshot has changed. Returns whether Redis took it; if not, the
    /// others notice by their own timers.
    pub async fn announce(&self) -> bool {
        let work = |mut connection: Connection| async move {
            connection.publish::<_, _, ()>(CHANNEL, &*self.me).await
        };
        self.link.run(RedisOp::Announce, PATIENCE, work).await.is_ok()
    }

    /// Calls `changed` whenever another replica has announced a change, and after every (re)connection, since
    /// announcements may have been missed. It must not block: it should only wake a task.
    pub fn on_announcement(&self, changed: impl Fn() + Send + Sync + 'static) -> Subscription {
        let (link, me) = (self.link.clone(), Arc::clone(&self.me));
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = listen(&link, &me, &changed).await {
                    // While the link itself is down, it reports that.
                    if link.is_up() {
                        link.report(RedisOp::Subscribe, &error);
                    }
                }
                sleep(SUBSCRIPTION_PAUSE).await;
            }
        });
        Subscription(AbortOnDropHandle::new(task))
    }

    /// Announces to every other replica, now or as soon as Redis takes it: a revoked key must not stay valid for a
    /// whole interval of their timers because Redis was slow for a moment. After [`ANNOUNCE_FOR`] their timers have
    /// done it.
    pub async fn announce_surely(&self) {
        let since = Instant::now();
        // A call that is already retrying covers this change too.
        while !self.announce().await
            && since.elapsed() < ANNOUNCE_FOR
            && !self.owes_announcement.swap(true, Ordering::SeqCst)
        {
            sleep(ANNOUNCE_AGAIN).await;
            // Before the announcement, so that a change that comes now is either covered by it or owed again.
            self.owes_announcement.store(false, Ordering::SeqCst);
        }
    }

    /// Locks one caller's request id (`X-NexusGate-ReqId`) over all replicas, among the requests that go into `table`. Waits for
    /// the Redis timeout at most.
    pub async fn lock(&self, table: LogTable, key_id: i64, request_id: &str) -> Lock {
        // A client chooses the id, so it is hashed to something short and harmless.
        let digest = Sha256::digest(request_id.as_bytes());
        let holder = Lease {
            key: format!("nexusgate:inflight:{table}:{key_id}:{}", hex(&digest[..16])),
            me: Uuid::now_v7().to_string().into(),
            ..self.lease("", LOCK_TIME_TO_LIVE)
        };
        // In a task of its own: if the caller leaves meanwhile, the lock is released.
        let (tell, told) = oneshot::channel();
        let patience = self.link.timeout();
        self.holders.spawn(async move {
            match holder.take(RedisOp::Lock, patience).await {
                Ok(true) => {
                    let (guard, dropped) = oneshot::channel();
                    drop(tell.send(Lock::Held(LockGuard { _drop: guard })));
                    holder.keep_until(dropped).await;
                }
                Ok(false) => drop(tell.send(Lock::Busy)),
                Err(_) => {
                    drop(tell.send(Lock::Unavailable));
                    holder.release_surely().await;
                }
            }
        });
        told.await.unwrap_or(Lock::Unavailable)
    }

    /// A lease called `name`, good for `time_to_live` after each [`Lease::hold`].
    pub fn lease(&self, name: &str, time_to_live: Duration) -> Lease {
        Lease {
            link: self.link.clone(),
            scripts: Arc::clone(&self.scripts),
            key: format!("nexusgate:lease:{name}"),
            me: Arc::clone(&self.me),
            time_to_live,
        }
    }

    /// Waits until the locks whose guards were dropped have been released; two seconds at most, since the others
    /// expire.
    pub async fn flush(&self) {
        self.holders.close();
        if timeout(PATIENCE * 2, self.holders.wait()).await.is_err() {
            tracing::debug!(left = self.holders.len(), "locks are left to expire");
        }
        self.holders.reopen();
    }
}

impl Lease {
    /// Takes the lease, or prolongs it when it is already ours. `Some(true)`: it is ours for the time to live;
    /// `Some(false)`: it is another replica's; `None`: Redis is away.
    pub async fn hold(&self) -> Option<bool> {
        match self.renew(RedisOp::Lease).await {
            Ok(true) => Some(true),
            Ok(false) => self.take(RedisOp::Lease, PATIENCE).await.ok(),
            Err(_) => None,
        }
    }

    /// Gives the lease back, if it is ours.
    pub async fn release(&self) {
        // If that fails, it expires.
        let _ = self.call(RedisOp::Lease, &self.scripts.release).await;
    }

    /// Releases what Redis may have given us late, after we had stopped waiting: others would find it taken until it
    /// expired.
    async fn release_surely(&self) {
        let since = Instant::now();
        // The late command may have come over another connection, and be carried out after the first answer.
        let mut answers = 0;
        while answers < 2 && since.elapsed() < self.time_to_live {
            match self.call(RedisOp::Lock, &self.scripts.release).await {
                Ok(true) => break,
                Ok(false) => answers += 1,
                Err(_) => {}
            }
            sleep(RELEASE_AGAIN).await;
        }
    }

    /// Whether the key was still ours, and is again for the whole time to live.
    async fn renew(&self, op: RedisOp) -> Result<bool, Failure> {
        self.call(op, &self.scripts.renew).await
    }

    async fn call(&self, op: RedisOp, script: &Script) -> Result<bool, Failure> {
        let work = |mut connection| async move {
            let mut call = script.key(&self.key);
            call.arg(&*self.me).arg(millis(self.time_to_live));
            call.invoke_async::<bool>(&mut connection).await
        };
        self.link.run(op, PATIENCE, work).await
    }

    /// Renews until the guard is dropped, then releases. A lock that Redis has lost is taken again, unless another
    /// holder was faster.
    async fn keep_until(self, mut dropped: oneshot::Receiver<()>) {
        let mut renewal = interval(LOCK_RENEWAL);
        renewal.tick().await;
        loop {
            tokio::select! {
                _ = &mut dropped => break,
                _ = renewal.tick() => {
                    if let Ok(false) = self.renew(RedisOp::Lock).await
                        && let Ok(false) = self.take(RedisOp::Lock, PATIENCE).await
                    {
                        return;
                    }
                }
            }
        }
        let _ = self.call(RedisOp::Lock, &self.scripts.release).await;
    }

    /// `SET NX PX`: whether the key was free and is now ours.
    async fn take(&self, op: RedisOp, patience: Duration) -> Result<bool, Failure> {
        let options = SetOptions::default()
            .conditional_set(ExistenceCheck::NX)
            .with_expiration(SetExpiry::PX(millis(self.time_to_live)));
        let work = |mut connection: Connection| async move {
            connection.set_options::<_, _, bool>(&self.key, &*self.me, options).await
        };
        self.link.run(op, patience, work).await
    }
}

/// One subscription, until it ends.
async fn listen(link: &RedisLink, me: &str, changed: &impl Fn()) -> Result<(), RedisError> {
    let late = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    let subscribe = async {
        let mut subscriber = link.target().subscriber().await?;
        subscriber.subscribe(CHANNEL).await?;
        Ok::<_, RedisError>(subscriber)
    };
    let subscriber = timeout(PATIENCE * 3, subscribe).await.unwrap_or_else(|_| Err(late()))?;
    changed();
    let (mut sink, mut messages) = subscriber.split();
    let mut ping = interval(SUBSCRIPTION_PING);
    ping.tick().await;
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) if message.get_payload_bytes() != me.as_bytes() => changed(),
                Some(_) => {}
                None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            },
            _ = ping.tick() => {
                timeout(PATIENCE, sink.ping::<redis::Value>()).await.unwrap_or_else(|_| Err(late()))?;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
