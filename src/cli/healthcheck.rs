//! `nexusgate healthcheck`, for container runtimes. An outage of the database is no reason to replace a container:
//! inference goes on without it.

use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;

use super::{CliError, failed, runtime, say};

/// Shorter than the usual timeout of a container's health check, so that the reason is still printed.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Exit code 0 when the gateway is ready, 1 when it is not.
pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let port = matches.get_one::<String>("port").map_or("3000", String::as_str);
    let base =
        matches.get_one::<String>("url").cloned().unwrap_or_else(|| format!("http://127.0.0.1:{port}"));
    let url = format!("{}/readyz?exclude=database", base.trim_end_matches('/'));
    runtime()?.block_on(async {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| failed(&error.without_url()))?;
        let response = client.get(&url).send().await.map_err(|error| failed(&error.without_url()))?;
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        say(format_args!("{status}: {}", text.trim()))?;
        Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}
