//! `nexusgate demo`.

use std::process::ExitCode;

use clap::{ArgMatches, FromArgMatches as _};

use crate::demo::{self, DemoArgs};
use crate::telemetry::logging;

use super::{CliError, runtime};

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let args = DemoArgs::from_arg_matches(matches).map_err(|error| CliError::Other(error.to_string()))?;
    // The scripted providers fail on purpose: the gateway's warnings about them would bury the summary.
    logging::init_with_default(false, "error");
    runtime()?.block_on(demo::run(args)).map_err(|error| CliError::Other(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
