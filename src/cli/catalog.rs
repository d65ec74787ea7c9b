//! `nexusgate metrics-catalog`: the source of docs/METRICS.md.

use std::io::Write as _;
use std::process::ExitCode;

use clap::ArgMatches;

use crate::telemetry::docs;

use super::CliError;

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let text = if matches.get_flag("json") { format!("{:#}\n", docs::json()) } else { docs::markdown() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
