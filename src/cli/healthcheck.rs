//! `nexusgate healthcheck`, for container runtimes. An outage of the database is no reason to replace a container:
//! inference goes on without it.

use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use http_body_util::BodyExt as _;

use super::http::{gateway_url, http_client};
use super::{CliError, failed, runtime, say};

/// Shorter than the usual timeout of a container's health check, so that the reason is still printed.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Exit code 0 when the gateway is ready, 1 when it is not.
pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let port = matches.get_one::<u16>("port").copied().unwrap_or(3000);
    let base =
        matches.get_one::<String>("url").cloned().unwrap_or_else(|| format!("http://127.0.0.1:{port}"));
    let mut url = gateway_url(&base)?;
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().push("readyz");
    }
    url.set_query(Some("exclude=database"));
    let uri = url.as_str().parse().map_err(|error: http::uri::InvalidUri| failed(&error))?;
    runtime()?.block_on(async {
        let client = http_client(&url)?;
        let exchange = async {
            let response = client.get(uri).await.map_err(|error| failed(&error))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).trim().to_owned()))
        };
        let late = || CliError::Other(format!("no answer within {} s", TIMEOUT.as_secs()));
        let (status, text) = tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(late()))?;
        say(format_args!("{status}: {text}"))?;
        Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}
