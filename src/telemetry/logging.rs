//! Log output. (The module is not called `tracing` so that the crate of that name stays in reach.)

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Sends log lines to stderr, for people or as JSON objects for collectors, filtered by `RUST_LOG` (default: ours from
/// `info`, libraries from `warn`). A second call changes nothing.
pub fn init(json: bool) {
    init_with_default(json, "warn,nexusgate=info");
}

/// As [`init`], with another filter for when `RUST_LOG` says nothing.
pub fn init_with_default(json: bool, filter: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // The first subscriber wins; tests may have set one.
    let _ = if json {
        builder.json().flatten_event(true).finish().try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init()
    };
}
