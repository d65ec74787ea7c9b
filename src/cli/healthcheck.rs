//! `nexusgate healthcheck`, for container runtimes. An outage of the database is no reason to replace a container:
//! inference goes on without it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use http_body_util::BodyExt as _;

use crate::config::Settings;

use super::http::{gateway_url, http_client};
use super::{CliError, failed, runtime, say};

/// Shorter than the usual timeout of a container's health check, so that the reason is still printed.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Exit code 0 when the gateway is ready, 1 when it is not.
pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let base = match matches.get_one::<String>("url") {
        Some(url) => url.clone(),
        // The file may name variables that only the gateway has.
        None => {
            address_of(&Settings::from_matches(matches).or_else(|_| Settings::from_matches_alone(matches))?)
        }
    };
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

/// Where a gateway with these settings can be reached from its own host.
fn address_of(settings: &Settings) -> String {
    let address = match settings.listen_addr {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    format!("http://{}", SocketAddr::new(address, settings.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_asked_where_it_listens() {
        for (settings, expected) in [
            (&[][..], "http://127.0.0.1:3000"),
            (&[("PORT", "8080")], "http://127.0.0.1:8080"),
            (&[("LISTEN_ADDR", "::")], "http://[::1]:3000"),
            (&[("LISTEN_ADDR", "::1")], "http://[::1]:3000"),
            (&[("LISTEN_ADDR", "10.1.2.3")], "http://10.1.2.3:3000"),
        ] {
            assert_eq!(address_of(&Settings::with(settings).expect("settings")), expected);
        }
    }
}
