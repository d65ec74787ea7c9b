//! `nexusgate openapi`: the source of docs/openapi.json.

use std::process::ExitCode;

use super::{CliError, say};

pub(super) fn run() -> Result<ExitCode, CliError> {
    say(format_args!("{:#}", crate::app::openapi()))?;
    Ok(ExitCode::SUCCESS)
}
