//! The composition root: builds everything, serves, drains.

mod background;
mod check;
mod discard;
mod log_sink;
mod quiet;
mod retention;
mod serve;
mod unread;
mod wiring;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::DatabaseConnection;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ConfigError, LogPayloads, Settings};
use crate::domain::key::Secret;
use crate::gateway::request_log::RequestLog;
use crate::gateway::{self, Gateway, Hooks, Parts};
use crate::http::{self, Admin, AdminParts, HttpState, Surface};
use crate::limit::{InvalidRedisUrl, LimitServices, Subscription};
use crate::provider::{InvalidCaFile, Trust};
use crate::store::request_log::{LogRow, LogWriter};
use crate::store::{self, Cipher, Snapshot, SnapshotStore, StoreError};
use crate::telemetry::{Telemetry, registry};

pub use check::check;

use retention::Retention;

/// The longest wait, at shutdown, for connections to a database that does not answer; the server notices by itself.
const DATABASE_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long abandoned requests may take to end.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);

/// How long shutdown waits for background tasks.
const TASKS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the gateway did not start. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Journal(#[from] gateway::journal::OpenError),
    #[error("cannot start the request log: {0}")]
    RequestLog(std::io::Error),
    #[error("{0}")]
    Redis(#[from] InvalidRedisUrl),
    #[error("{0}")]
    CaFile(#[from] InvalidCaFile),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// A gateway that is serving.
pub struct RunningApp {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    admin_secret: Secret,
    /// The secret was made for this run, because none was set.
    admin_secret_made: bool,
    gateway: Gateway,
    database: DatabaseConnection,
    log_writer: Arc<LogWriter>,
    log: Arc<RequestLog<LogRow>>,
    limits: Arc<LimitServices>,
    shutdown_grace: Duration,
    shutdown_delay: Duration,
    /// Ends the listeners.
    stop: CancellationToken,
    /// Ends the background tasks.
    stop_tasks: CancellationToken,
    /// Receives the other replicas' admin changes while it lives.
    _subscription: Option<Subscription>,
    servers: TaskTracker,
    tasks: TaskTracker,
}

impl RunningApp {
    /// Builds everything and opens the listeners last: a failure leaves nothing half-started, and the first request
    /// finds everything ready.
    ///
    /// # Errors
    /// [`StartError`]: a setting, the database, the journal or a listener.
    pub async fn start(settings: &Settings, hooks: Hooks) -> Result<Self, StartError> {
        // One TLS implementation for upstreams, database and Redis. A second call (tests) finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let telemetry = Telemetry::new(&telemetry_settings(settings), &settings.version());
        let (database, cipher) = open_store(settings).await?;
        let log_writer = Arc::new(store::log_writer(&store_settings(settings), &database)?);
        let snapshots = Arc::new(SnapshotStore::new(cipher.clone()));
        snapshots.replace(Snapshot::load(&database, &cipher).await?);
        let log = Arc::new(wiring::request_log(settings, &telemetry, log_writer.clone())?);
        let limits = Arc::new(wiring::limits(settings, &telemetry).await?);
        let gateway = Gateway::new(Parts {
            settings: gateway_settings(settings, trust(settings)?),
            telemetry: telemetry.clone(),
            snapshots: snapshots.clone(),
            limits: limits.clone(),
            database: database.clone(),
            log: log.clone(),
            hooks,
        });
        gateway.announce();

        let (stop, stop_tasks) = (CancellationToken::new(), CancellationToken::new());
        let (servers, tasks) = (TaskTracker::new(), TaskTracker::new());
        let background = background::Background {
            gateway: gateway.clone(),
            telemetry,
            database: database.clone(),
            snapshots: snapshots.clone(),
            stop: stop_tasks.clone(),
        };
        background.refresh_gauges().await;

        let (admin_secret, admin_secret_made) = match &settings.admin_super_secret {
            Some(secret) => (secret.clone(), false),
            None => (store::keys::generate(), true),
        };
        let admin = Admin::new(AdminParts {
            gateway: gateway.clone(),
            database: database.clone(),
            cipher,
            snapshots,
            limits: limits.clone(),
            secret: admin_secret.clone(),
            max_body_size: settings.max_body_size.bytes(),
            version: settings.version(),
            commit: settings.commit_sha.clone(),
            tasks: tasks.clone(),
            stop: stop_tasks.clone(),
        });
        let state = HttpState {
            gateway: gateway.clone(),
            max_body_size: settings.max_body_size.bytes(),
            metrics_token: settings.metrics_bearer_token.clone(),
            rendering: Arc::default(),
            admin,
        };
        let (main, address) = listen(SocketAddr::new(settings.listen_addr, settings.port)).await?;
        let metrics = match settings.metrics_addr {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let metrics_address = metrics.as_ref().map(|(_, address)| *address);
        let patience = settings.client_timeout.0;
        let surface = Surface::new(&state, &settings.allowed_origins, metrics.is_none());
        servers.spawn(serve::serve(main, surface, patience, stop.clone(), gateway.abandoned().clone()));
        if let Some((metrics, _)) = metrics {
            // Until the very end: the last scrape is the one that sees the last requests.
            let never = CancellationToken::new();
            tasks.spawn(serve::serve(metrics, Surface::metrics(&state), patience, stop_tasks.clone(), never));
        }
        let subscription =
            limits.coordination.as_ref().map(|coordination| background.follow(coordination, &tasks));
        let coordination = limits.coordination.as_ref();
        if let Some(retention) =
            Retention::new(database.clone(), settings.request_log_retention, coordination)
        {
            tasks.spawn(retention.run(log.clone(), stop_tasks.clone()));
        }
        background.spawn(&tasks, settings);

        Ok(Self {
            address,
            metrics_address,
            admin_secret,
            admin_secret_made,
            gateway,
            database,
            log_writer,
            log,
            limits,
            shutdown_grace: settings.shutdown_grace,
            shutdown_delay: settings.shutdown_delay,
            stop,
            stop_tasks,
            _subscription: subscription,
            servers,
            tasks,
        })
    }

    /// The main listener's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the listener for `/metrics`, if it has its own.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// The bearer secret of the admin API.
    pub fn admin_secret(&self) -> &Secret {
        &self.admin_secret
    }

    /// The admin secret, if it was made for this run and has to be shown once.
    pub fn made_admin_secret(&self) -> Option<&Secret> {
        self.admin_secret_made.then_some(&self.admin_secret)
    }

    /// The metrics, for callers that read them without HTTP.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        self.gateway.telemetry()
    }

    /// The database, for callers that check what was written.
    pub fn database(&self) -> &DatabaseConnection {
        &self.database
    }

    /// Stops accepting, lets running requests finish within the grace period, writes pending log rows. Returns whether
    /// everything was finished and nothing was lost; rows that a database did not take in time are in the journal.
    pub async fn shutdown(self) -> bool {
        tracing::info!("shutting down");
        let deadline = tokio::time::Instant::now() + self.shutdown_delay + self.shutdown_grace;
        // `/readyz` reports the shutdown first, and load balancers get time to notice before anything is refused.
        self.gateway.announce_shutdown();
        tokio::time::sleep(self.shutdown_delay).await;
        self.gateway.drain();
        self.stop.cancel();
        self.servers.close();
        let finished = tokio::time::timeout_at(deadline, async {
            self.servers.wait().await;
            self.gateway.drained().await;
        })
        .await
        .is_ok();
        if !finished {
            tracing::warn!("requests were still running at the end of the grace");
            // They end now, while they can still be counted, charged and logged.
            self.gateway.abandon();
            if tokio::time::timeout(ABANDON_TIMEOUT, self.gateway.idle()).await.is_err() {
                tracing::error!("requests do not end");
            }
        }
        // The log gets at least five seconds; rows that are left are in the journal, and the next start replays them.
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let closed = self.log.close(left.max(Duration::from_secs(5))).await;
        // With their locks, so that the flush releases these instead of waiting for them.
        self.gateway.release_ids();
        self.limits.flush().await;
        self.stop_tasks.cancel();
        self.tasks.close();
        // An administrator's change may hang in a database that does.
        if tokio::time::timeout(TASKS_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!("background work did not end in time");
        }
        self.log_writer.close();
        // A connection on which the database hangs is never returned to the pool.
        if tokio::time::timeout(DATABASE_CLOSE_TIMEOUT, self.database.close()).await.is_err() {
            tracing::warn!("the database did not let go of its connections in time");
        }
        finished && closed.lost == 0
    }
}

/// The OpenAPI document of the gateway.
pub fn openapi() -> serde_json::Value {
    http::openapi::document()
}

async fn open_store(settings: &Settings) -> Result<(DatabaseConnection, Arc<Cipher>), StartError> {
    let database_url = settings.database_url.expose();
    let database = store::connect(&store_settings(settings)).await?;
    store::migrate::up(&database).await?;
    let key = settings.encryption_key.as_ref().map(Secret::expose);
    let cipher = store::crypt::open(&database, database_url, key).await?;
    let applied = store::declared::apply(&database, &cipher, &wiring::declared(settings)).await?;
    for prefix in &applied.revoked_keys {
        tracing::warn!("the declared key {prefix}… was revoked by an administrator and stays so");
    }
    Ok((database, Arc::new(cipher)))
}

fn store_settings(settings: &Settings) -> store::Settings {
    let mut store_settings = store::Settings::new(settings.database_url.expose());
    store_settings.max_connections = Some(settings.database_max_connections.0);
    store_settings
}

fn telemetry_settings(settings: &Settings) -> registry::Settings {
    registry::Settings {
        max_series: settings.metrics_max_series,
        latency_buckets: settings.metrics_latency_buckets.as_ref().map(|buckets| buckets.0.clone()),
        recording: true,
    }
}

fn trust(settings: &Settings) -> Result<Trust, InvalidCaFile> {
    settings.upstream_ca_file.as_deref().map_or_else(|| Ok(Trust::default()), Trust::with_file)
}

fn gateway_settings(settings: &Settings, upstream_trust: Trust) -> gateway::Settings {
    gateway::Settings {
        upstream_timeout: settings.upstream_timeout.0,
        upstream_connect_timeout: settings.upstream_connect_timeout.0,
        upstream_trust,
        stream_idle_timeout: settings.stream_idle_timeout.0,
        drain_on_disconnect: settings.drain_on_disconnect,
        max_in_flight: settings.max_in_flight,
        log_payloads: settings.log_payloads == LogPayloads::Full,
    }
}

/// A listener on `address`, and the address that it got: its port differs when 0 was asked for.
async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
