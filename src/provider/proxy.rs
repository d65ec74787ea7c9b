//! Connections through an HTTP proxy.
//!
//! `https` goes through a `CONNECT` tunnel. Plain `http` is sent to the proxy in absolute form (RFC 9112 § 3.2.2), because
//! proxies commonly refuse to tunnel to ports other than 443.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::{Service, ServiceExt as _};
use url::Url;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Opens connections through one proxy.
#[derive(Clone)]
pub(super) struct ProxyConnector {
    http: HttpConnector,
    proxy: Uri,
    auth: Option<HeaderValue>,
}

impl ProxyConnector {
    /// `proxy` is an `http://` URL, perhaps with user and password.
    pub(super) fn new(http: HttpConnector, proxy: &Url) -> Result<Self, BoxError> {
        let host = proxy.host_str().ok_or("the proxy URL has no host")?;
        let address = format!("http://{host}:{}", proxy.port_or_known_default().unwrap_or(80)).parse()?;
        Ok(Self { http, proxy: address, auth: basic_auth(proxy) })
    }

    /// The `Proxy-Authorization` of a request in absolute form.
    pub(super) fn auth(&self) -> Option<&HeaderValue> {
        self.auth.as_ref()
    }
}

fn basic_auth(proxy: &Url) -> Option<HeaderValue> {
    if proxy.username().is_empty() {
        return None;
    }
    // Decodes with the form parser, so its other special characters are encoded first.
    let decode = |text: &str| {
        let text = text.replace('+', "%2B").replace('&', "%26");
        let mut pairs = url::form_urlencoded::parse(text.as_bytes());
        pairs.next().map(|(text, _)| text.into_owned()).unwrap_or_default()
    };
    let pair = format!("{}:{}", decode(proxy.username()), decode(proxy.password().unwrap_or_default()));
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Service<Uri> for ProxyConnector {
    type Response = ProxiedStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<ProxiedStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let Self { http, proxy, auth } = self.clone();
        Box::pin(async move {
            let tunnelled = target.scheme_str() == Some("https");
            let stream = if tunnelled {
                let tunnel = Tunnel::new(proxy, http);
                let mut tunnel = match auth {
                    Some(auth) => tunnel.with_auth(auth),
                    None => tunnel,
                };
                tunnel.ready().await?.call(target).await?
            } else {
                http.oneshot(proxy).await?
            };
            Ok(ProxiedStream { stream, tunnelled })
        })
    }
}

/// A connection to, or through, the proxy.
pub(super) struct ProxiedStream {
    stream: TokioIo<TcpStream>,
    tunnelled: bool,
}

impl Connection for ProxiedStream {
    fn connected(&self) -> Connected {
        // `proxy(true)` makes the client send its requests in absolute form.
        self.stream.connected().proxy(!self.tunnelled)
    }
}

impl Read for ProxiedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for ProxiedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
