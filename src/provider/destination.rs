//! Destinations of requests, precomputed once per URL.

use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};

/// An absolute URL, and the parts of it that a request needs.
#[derive(Debug)]
pub struct Destination {
    /// The absolute URL.
    uri: Uri,
    /// Its path and query, the form in which a server takes it (RFC 9112 § 3.2).
    path: Uri,
    /// The value of `Host`.
    host: HeaderValue,
    origin: Arc<Origin>,
}

/// The URL cannot be requested.
#[derive(Debug, thiserror::Error)]
#[error("the URL names no host")]
pub struct NoHost;

impl Destination {
    /// Derives the parts from `uri`.
    ///
    /// # Errors
    /// [`NoHost`].
    pub fn new(uri: Uri) -> Result<Self, NoHost> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else { return Err(NoHost) };
        let (scheme, authority) = (scheme.clone(), without_user(authority)?);
        let mut parts = uri.into_parts();
        parts.authority = Some(authority.clone());
        let uri = Uri::from_parts(parts).map_err(|_| NoHost)?;
        let default_port = if scheme == Scheme::HTTPS { 443 } else { 80 };
        let host = match authority.port_u16() {
            Some(port) if port == default_port => authority.host(),
            _ => authority.as_str(),
        };
        let host = HeaderValue::from_str(host).map_err(|_| NoHost)?;
        let path = uri.path_and_query().map_or(Uri::from_static("/"), |path| Uri::from(path.clone()));
        let origin = Arc::new(Origin::new(scheme, authority.clone()));
        Ok(Self { path, host, origin, uri })
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(super) fn path(&self) -> &Uri {
        &self.path
    }

    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    pub(super) fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }
}

/// Name and password belong in headers; a proxy, which gets the whole URL, must not see them.
fn without_user(authority: &Authority) -> Result<Authority, NoHost> {
    match authority.as_str().rsplit_once('@') {
        Some((_, rest)) => rest.parse().map_err(|_| NoHost),
        None => Ok(authority.clone()),
    }
}

/// Scheme and authority that a connection leads to, hashed once instead of with every request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: Scheme,
    authority: Authority,
    hash: u64,
}

impl Origin {
    fn new(scheme: Scheme, authority: Authority) -> Self {
        static STATE: LazyLock<std::hash::RandomState> = LazyLock::new(Default::default);
        let hash = STATE.hash_one((&scheme, &authority));
        Self { scheme, authority, hash }
    }
}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A hasher that returns [`Origin`]'s precomputed hash unchanged.
#[derive(Debug, Default)]
pub(super) struct Hashed(u64);

pub(super) type ByHash = BuildHasherDefault<Hashed>;

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used for origins; any other key must still get a hash.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(url: &'static str) -> Destination {
        Destination::new(Uri::from_static(url)).expect("a host")
    }

    #[test]
    fn a_url_is_taken_apart_as_servers_want_it() {
        for (url, path, host) in [
            ("http://h/v1/x?y=1", "/v1/x?y=1", "h"),
            ("http://h:80", "/", "h"),
            ("https://h:443/a", "/a", "h"),
            ("https://h:80/a", "/a", "h:80"),
            ("http://[::1]:9/a", "/a", "[::1]:9"),
        ] {
            let destination = destination(url);
            assert_eq!(destination.path(), path, "{url}");
            assert_eq!(destination.host(), host, "{url}");
            assert_eq!(destination.uri(), url);
        }
        let secret = destination("http://user:secret@h:8080/a");
        assert_eq!(
            (secret.host(), secret.uri()),
            (&"h:8080".parse().unwrap(), &Uri::from_static("http://h:8080/a"))
        );
        assert!(Destination::new(Uri::from_static("/only/a/path")).is_err());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |url| destination(url).origin().clone();
        assert_eq!(origin("http://h:1/a"), origin("http://H:1/b?c"));
        assert_ne!(origin("http://h:1/a"), origin("https://h:1/a"));
        assert_ne!(origin("http://h:1/a"), origin("http://h:2/a"));
    }
}
