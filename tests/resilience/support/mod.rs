//! The environment of the gateway under test: processes, databases, Redis, haproxy, Prometheus, and clients.

pub mod database;
pub mod gateway;
pub mod haproxy;
pub mod load;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod redis;
#[path = "../../it/support/scrape.rs"]
#[expect(dead_code, reason = "shared with tests/it, which asks more of a scrape")]
pub mod scrape;

use std::time::{Duration, Instant};

pub use gateway::{Replica, Site};
pub use load::Load;
pub use redis::RedisServer;

/// How long a condition may take to come true. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The time between two checks of a condition.
pub const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// The machine, for one test at a time: each of these tests needs it to itself, whatever `--test-threads` says.
pub async fn machine() -> tokio::sync::MutexGuard<'static, ()> {
    static MACHINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    // reqwest needs a crypto provider even for plain HTTP. A second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    MACHINE.lock().await
}
