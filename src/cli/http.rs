//! HTTP to a running gateway.

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::CliError;

pub(super) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The base URL of a gateway, from `NEXUSGATE_URL` or its flag.
pub(super) fn gateway_url(text: &str) -> Result<Url, CliError> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| CliError::Other("NEXUSGATE_URL: expected http://… or https://…".to_owned()))
}

/// A client for the gateway at `base`.
pub(super) fn http_client(base: &Url) -> Result<HttpClient, CliError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The system's certificates, because the gateway may have a certificate of a company's own authority.
    let tls = HttpsConnectorBuilder::new();
    let tls = match base.scheme() {
        "https" => tls.with_native_roots()?,
        // Without TLS no certificates are needed, and a small image may have none.
        _ => tls.with_tls_config(no_roots()),
    };
    let tls = tls.https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(tls))
}

fn no_roots() -> ClientConfig {
    ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}
