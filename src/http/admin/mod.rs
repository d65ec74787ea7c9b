//! The admin API: keys, providers, models, the request log and its sums, under `/api/admin`.
//!
//! Paths and names follow the reference system, so that its clients work unchanged. From the outside in, a request
//! meets [`auth`] (the secret, the whole body, no caching), then its handler: [`extract`] and [`fields`] read it, the store
//! checks it and carries it out, [`Admin::changed`] makes it take effect, [`error`] answers failures.

mod auth;
mod completions;
mod embeddings;
mod error;
mod extract;
mod fields;
mod guesses;
mod keys;
mod logs;
mod meta;
mod models;
mod operator_keys;
mod provider_test;
mod providers;
mod stats;
mod usage;

use std::sync::Arc;

use axum::{Router, middleware};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::key::Secret;
use crate::gateway::Gateway;
use crate::limit::LimitServices;
use crate::store::{Cipher, SnapshotStore};

pub(super) use error::AdminError;

use guesses::Guesses;

/// The admin API's dependencies.
pub struct AdminParts {
    pub gateway: Gateway,
    pub database: DatabaseConnection,
    pub cipher: Arc<Cipher>,
    pub snapshots: Arc<SnapshotStore>,
    pub limits: Arc<LimitServices>,
    /// `ADMIN_SUPER_SECRET`.
    pub secret: Secret,
    pub max_body_size: usize,
    pub version: String,
    pub commit: Option<String>,
    /// Owns work that goes on after an answer.
    pub tasks: TaskTracker,
    /// Ends such work.
    pub stop: CancellationToken,
}

/// The admin API's state. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    gateway: Gateway,
    database: DatabaseConnection,
    cipher: Arc<Cipher>,
    snapshots: Arc<SnapshotStore>,
    limits: Arc<LimitServices>,
    secret: Secret,
    guesses: Guesses,
    max_body_size: usize,
    version: String,
    commit: Option<String>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Admin {
    pub fn new(parts: AdminParts) -> Self {
        let AdminParts {
            gateway,
            database,
            cipher,
            snapshots,
            limits,
            secret,
            max_body_size,
            version,
            commit,
            tasks,
            stop,
        } = parts;
        Self(Arc::new(Inner {
            gateway,
            database,
            cipher,
            snapshots,
            limits,
            secret,
            guesses: Guesses::new(),
            max_body_size,
            version,
            commit,
            tasks,
            stop,
        }))
    }

    fn db(&self) -> &DatabaseConnection {
        &self.0.database
    }

    fn cipher(&self) -> &Cipher {
        &self.0.cipher
    }

    /// Something was written: makes the next request of this process see it, and announces it to the other replicas.
    async fn changed(&self) {
        // First, because it must not depend on whether this process can read the database now.
        if let Some(coordination) = self.0.limits.coordination.clone() {
            let stop = self.0.stop.clone();
            self.0.tasks.spawn(async move {
                tokio::select! {
                    () = coordination.announce_surely() => {}
                    // Redis is away, and the other replicas' timers must do.
                    () = stop.cancelled() => {}
                }
            });
        }
        match self.0.snapshots.refresh(self.db()).await {
            Ok(_) => self.0.gateway.announce(),
            // The change is stored. The timer reads it when the database is back.
            Err(error) => tracing::warn!(%error, "a change is made, but not yet in use"),
        }
    }
}

/// The routes under `/api/admin`, each with its documentation.
fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default()
        .routes(routes!(meta::check))
        .routes(routes!(meta::revision))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::show, keys::change, keys::revoke))
        .routes(routes!(keys::change_limits))
        .routes(routes!(keys::usage))
        .routes(routes!(operator_keys::show, operator_keys::ensure))
        .routes(routes!(operator_keys::list))
        .routes(routes!(providers::list, providers::create))
        .routes(routes!(providers::show, providers::change, providers::delete))
        .routes(routes!(providers::models))
        .routes(routes!(provider_test::test))
        .routes(routes!(provider_test::remote_models))
        .routes(routes!(models::list, models::create))
        .routes(routes!(models::show, models::change, models::delete))
        .routes(routes!(models::system_names))
        .routes(routes!(models::by_system_name))
        .routes(routes!(models::change_weights))
        .routes(routes!(completions::list))
        .routes(routes!(completions::show, completions::delete))
        .routes(routes!(embeddings::list))
        .routes(routes!(embeddings::show, embeddings::delete))
        .routes(routes!(stats::overview))
        .routes(routes!(usage::usage))
}

/// The routes, behind the secret.
pub(super) fn router<S>(admin: &Admin) -> Router<S> {
    let (router, _) = routes().split_for_parts();
    router
        // Scripts write the root with and without a slash.
        .route("/api/admin/", axum::routing::get(meta::check))
        .route_layer(middleware::from_fn_with_state(admin.clone(), auth::guard))
        .with_state(admin.clone())
}

/// The routes' own documentation.
pub(super) fn documentation() -> OpenApi {
    routes().into_openapi()
}
