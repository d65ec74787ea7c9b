//! `nexusgate serve` and `nexusgate check-config`.

use std::process::ExitCode;

use clap::ArgMatches;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, RunningApp};
use crate::config::{LogFormat, Settings};
use crate::telemetry::logging;

use super::{CliError, runtime, say};

/// Serves until SIGTERM or SIGINT, then drains. A second signal ends it at once.
pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let settings = Settings::from_matches(matches)?;
    logging::init(settings.log_format == LogFormat::Json);
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let app = RunningApp::start(&settings, Default::default()).await?;
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
    })
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
