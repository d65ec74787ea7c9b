//! Log output. (The module is not called `tracing`, because that would shadow the crate.)

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Sends log lines to stderr, for people or as JSON objects for collectors, filtered by `RUST_LOG` (default: ours from
/// `info`, libraries from `warn`). A second call changes nothing.
pub fn init(json: bool) {
    init_with_default(json, "warn,nexusgate=info");
}

/// As [`init`], with another default filter for when `RUST_LOG` is not set.
pub fn init_with_default(json: bool, filter: &str) {
    let given = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|given| !given.trim().is_empty());
    let (filter, wrong) = match given.as_deref().map(EnvFilter::try_new) {
        Some(Ok(given)) => (given, None),
        Some(Err(wrong)) => (EnvFilter::new(filter), Some(wrong)),
        None => (EnvFilter::new(filter), None),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written (stderr is a file, its disk is full) would be reported there too, with a panic.
        .log_internal_errors(false);
    // The first subscriber wins; tests may have set one.
    let _ = if json {
        builder.json().flatten_event(true).finish().try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init()
    };
    if let Some(error) = wrong {
        tracing::warn!(%error, "RUST_LOG is no filter and is ignored");
    }
}
