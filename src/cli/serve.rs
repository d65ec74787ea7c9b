//! `nexusgate serve` and `nexusgate check-config`.

use std::process::ExitCode;

use clap::ArgMatches;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, RunningApp};
use crate::config::{LogFormat, Settings};
use crate::telemetry::logging;

use super::{CliError, runtime, say};

/// Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.
pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let settings = Settings::from_matches(matches)?;
    logging::init(settings.log_format == LogFormat::Json);
    raise_descriptor_limit();
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // It may take minutes: another replica may be migrating the database.
        let app = tokio::select! {
            app = RunningApp::start(&settings, Default::default()) => app?,
            _ = terminate.recv() => return Ok(stopped_early()),
            _ = interrupt.recv() => return Ok(stopped_early()),
        };
        warn_of_short_secret(&settings);
        tracing::info!(address = %app.address(), version = settings.version(), "listening");
        if let Some(address) = app.metrics_address() {
            tracing::info!(%address, "metrics are served apart");
        }
        if let Some(secret) = app.made_admin_secret() {
            // Printed once, not logged: logs are collected and kept.
            say(format_args!("ADMIN_SUPER_SECRET is not set; for this run it is {}", secret.expose()))?;
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::select! {
            clean = app.shutdown() => Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(3) }),
            _ = terminate.recv() => Ok(ExitCode::from(3)),
            _ = interrupt.recv() => Ok(ExitCode::from(3)),
        }
    });
    // Otherwise the exit would wait for threads that hang in a system call.
    runtime.shutdown_background();
    ended
}

/// The exit code of a gateway that was stopped before it took requests: nothing can have been lost.
fn stopped_early() -> ExitCode {
    tracing::info!("stopped before the start was complete");
    ExitCode::SUCCESS
}

/// Wrong secrets are slowed down, and the right one is never refused: only its length keeps it from being guessed.
fn warn_of_short_secret(settings: &Settings) {
    const SHORT: usize = 16;
    if settings.admin_super_secret.as_ref().is_some_and(|secret| secret.expose().chars().count() < SHORT) {
        tracing::warn!("ADMIN_SUPER_SECRET can be guessed: it has fewer than {SHORT} characters");
    }
}

/// Raises the soft limit of file descriptors to the hard one: it is often 1,024, for the sake of programs that use
/// `select`, and a request in flight takes two.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, "the limit of file descriptors stays what it was");
    }
}

/// Reads every setting and declaration as a start does, and starts nothing.
pub(super) fn check(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let settings = Settings::from_matches(matches)?;
    runtime()?.block_on(app::check(&settings))?;
    let declared = &settings.declared;
    say(format_args!(
        "the settings are valid: {} providers, {} models and {} API keys are declared",
        declared.providers.len(),
        declared.models.len(),
        declared.api_keys.len(),
    ))?;
    Ok(ExitCode::SUCCESS)
}
