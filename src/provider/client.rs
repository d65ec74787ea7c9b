//! The HTTP client that all upstream calls share.
//!
//! It keeps connections in a [pool](super::pool) of our own, without reqwest or hyper-util's client: the gateway needs
//! pooling and TLS, and pays for nothing else on each request.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::{Response, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::Mutex;
use rustls::ClientConfig;
use url::Url;

use crate::domain::provider::{Provider, ProxyUrl};

use super::destination::Destination;
use super::pool::{Pool, PoolError, UpstreamBody, UpstreamRequest};
use super::proxy::ProxyConnector;
use super::trust::Trust;

type DirectPool = Pool<HttpsConnector<HttpConnector>>;
type ProxiedPool = Pool<HttpsConnector<ProxyConnector>>;

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was sent: no connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke before the answer's head.
    #[error("{0}")]
    Broken(String),
    /// A connection that had carried other requests broke before the first byte of an answer: this says nothing about the
    /// provider, though the request may have arrived.
    #[error("{0}")]
    Stale(String),
    /// The received bytes are not HTTP.
    #[error("{0}")]
    Garbled(String),
}

/// Sends upstream calls, directly or through a provider's proxy.
pub struct UpstreamClient {
    connector: HttpConnector,
    tls: ClientConfig,
    connect_timeout: Duration,
    direct: DirectPool,
    proxied: Mutex<HashMap<Url, Arc<(ProxiedPool, ProxyConnector)>>>,
}

impl UpstreamClient {
    /// A client that gives up when a connection takes longer than `connect_timeout`, TLS and a proxy's tunnel included.
    pub fn new(connect_timeout: Duration, trust: &Trust) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        // If a name has several addresses, each gets its share of the time, so that a dead one does not use it up.
        connector.set_connect_timeout(Some(connect_timeout));
        connector.set_keepalive(Some(Duration::from_secs(60)));
        let tls = trust.client_config();
        let direct = Pool::new(https(connector.clone(), &tls), connect_timeout);
        Self { connector, tls, connect_timeout, direct, proxied: Mutex::default() }
    }

    /// Sends one request, whose URI and `Host` are those of `to`, and waits for the head of the answer.
    ///
    /// # Errors
    /// [`SendError`] when there was none.
    pub async fn send(
        &self,
        provider: &Provider,
        to: &Destination,
        mut request: UpstreamRequest<'_>,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let result = match &provider.proxy {
            None => self.direct.send(to, request).await,
            Some(ProxyUrl(url)) => {
                let proxied = self.proxied(url)?;
                let (pool, connector) = &*proxied;
                // In absolute form the proxy reads the request; in a tunnel it never sees it.
                if let Some(auth) = connector.auth().filter(|_| to.uri().scheme_str() == Some("http")) {
                    request.headers.add(header::PROXY_AUTHORIZATION, auth.clone());
                }
                // Boxed, so that calls without a proxy do not reserve space for it.
                Box::pin(pool.send(to, request)).await
            }
        };
        result.map_err(|error| match error {
            PoolError::Connect(error) => SendError::Connect(chain(&*error)),
            PoolError::Garbled(error) => SendError::Garbled(chain(&*error)),
            PoolError::Broken(error) => SendError::Broken(chain(&*error)),
            PoolError::Stale(error) => SendError::Stale(chain(&*error)),
        })
    }

    /// Forgets the proxies of all other providers, and closes the idle connections to them. Calls that are under way
    /// are not affected.
    pub fn configured<'a>(&self, providers: impl Iterator<Item = &'a Provider>) {
        let urls: HashSet<&Url> =
            providers.filter_map(|p| p.proxy.as_ref()).map(|ProxyUrl(url)| url).collect();
        let mut proxied = self.proxied.lock();
        let left: Vec<_> = proxied.extract_if(|url, _| !urls.contains(url)).collect();
        // Sockets should not be closed under the lock.
        drop(proxied);
        drop(left);
    }

    fn proxied(&self, url: &Url) -> Result<Arc<(ProxiedPool, ProxyConnector)>, SendError> {
        let mut proxied = self.proxied.lock();
        if let Some(pool) = proxied.get(url) {
            return Ok(pool.clone());
        }
        let connector = ProxyConnector::new(self.connector.clone(), url)
            .map_err(|error| SendError::Connect(error.to_string()))?;
        let pool =
            Arc::new((Pool::new(https(connector.clone(), &self.tls), self.connect_timeout), connector));
        proxied.insert(url.clone(), pool.clone());
        Ok(pool)
    }
}

fn https<C>(connector: C, tls: &ClientConfig) -> HttpsConnector<C> {
    HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(connector)
}

/// An error and its causes in one line; hyper's own texts hide the cause.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
