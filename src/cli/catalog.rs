//! Commands that print reference pages: `metrics-catalog` for docs/METRICS.md, `settings-reference` for docs/SETTINGS.md.

use std::io::Write as _;
use std::process::ExitCode;

use clap::ArgMatches;

use crate::config;
use crate::telemetry::docs;

use super::CliError;

pub(super) fn metrics(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let text = if matches.get_flag("json") { format!("{:#}\n", docs::json()) } else { docs::markdown() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn settings() -> Result<ExitCode, CliError> {
    std::io::stdout().write_all(config::docs::markdown().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
