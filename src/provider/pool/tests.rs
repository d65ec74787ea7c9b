//! The pool against real servers: plain HTTP/1.1, and HTTP/2 behind TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::domain::provider::ProviderKind;
use crate::provider::headers::tests::provider;

mod multiplexed;

/// Answers every request with its own path, or at `/headers` with its own headers, and counts the connections it was asked over.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    /// Cancelled: the connections that are open are closed, whatever they carry.
    hang_up: Arc<Mutex<CancellationToken>>,
}

impl Server {
    async fn spawn(tls: Option<TlsAcceptor>) -> Self {
        Self::spawn_speaking(tls, &[b"h2", b"http/1.1"]).await
    }

    /// By way of TLS it offers these protocols.
    async fn spawn_speaking(tls: Option<TlsAcceptor>, protocols: &[&[u8]]) -> Self {
        let tls = tls.map(|tls| {
            let mut config = rustls::ServerConfig::clone(tls.config());
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            TlsAcceptor::from(Arc::new(config))
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let hang_up = Arc::new(Mutex::new(CancellationToken::new()));
        let closed = Arc::new(AtomicUsize::new(0));
        let (counted, ends, gone) = (connections.clone(), hang_up.clone(), closed.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let end = ends.lock().clone();
                let (tls, gone) = (tls.clone(), gone.clone());
                tokio::spawn(async move {
                    attend(stream, tls, end).await;
                    gone.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, connections, closed, hang_up }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Closes every connection, and waits until the client can see it.
    async fn hang_up(&self) {
        std::mem::take(&mut *self.hang_up.lock()).cancel();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.closed.load(Ordering::SeqCst) < self.connections() || self.looks_open() {
            assert!(Instant::now() < deadline, "connections stay open");
            tokio::task::yield_now().await;
        }
        // Whoever has yielded goes on after the runtime has asked for events, so it has those of all that were closed.
        tokio::task::yield_now().await;
    }

    /// Whether the kernel holds a client's side of any connection to be open: what was sent last may still be on its way.
    fn looks_open(&self) -> bool {
        const ESTABLISHED: &str = "01";
        let SocketAddr::V4(address) = self.address else { return false };
        let [ip, port] = [u32::from_le_bytes(address.ip().octets()), address.port().into()];
        let server = format!("{ip:08X}:{port:04X}");
        let sockets = std::fs::read_to_string("/proc/self/net/tcp").expect("a list of sockets");
        sockets.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next() == Some(&server) && fields.next() == Some(ESTABLISHED)
        })
    }
}

async fn attend(stream: TcpStream, tls: Option<TlsAcceptor>, end: CancellationToken) {
    let service = service_fn(async |request: Request<Incoming>| {
        let answer = match request.uri().path() {
            "/headers" => format!("{:?} {:?}", request.version(), request.headers()),
            path => path.to_owned(),
        };
        let _ = request.into_body().collect().await;
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let serve = async {
        match tls {
            Some(tls) => {
                let stream = tls.accept(stream).await.expect("a handshake");
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
            None => {
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        }
    };
    tokio::select! {
        () = serve => {}
        () = end.cancelled() => {}
    }
}

/// A server's side of TLS that offers HTTP/2, and the client's side that trusts it.
fn tls() -> (TlsAcceptor, rustls::ClientConfig) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let certificate = made.cert.der().clone();
    let mut server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a configuration");
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (TlsAcceptor::from(Arc::new(server)), client)
}

fn pool(config: rustls::ClientConfig) -> Pool<HttpsConnector<HttpConnector>> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
    Pool::new(https.enable_all_versions().wrap_connector(http), Duration::from_secs(30))
}

fn to(url: &str) -> Destination {
    Destination::new(url.parse().expect("a URL")).expect("a host")
}

fn request() -> UpstreamRequest<'static> {
    request_with(Bytes::from_static(b"{}"))
}

fn request_with(body: Bytes) -> UpstreamRequest<'static> {
    static CLIENT: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
    UpstreamRequest { method: Method::POST, headers: UpstreamHeaders::of_client(&CLIENT), body, fresh: false }
}

async fn text(pool: &Pool<HttpsConnector<HttpConnector>>, url: &str) -> String {
    let response = pool.send(&to(url), request()).await.expect("an answer");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8(body.to_vec()).expect("UTF-8")
}

#[tokio::test]
async fn one_connection_serves_one_request_after_the_other() {
    let server = Server::spawn(None).await;
    let pool = pool(tls().1);
    for turn in 0..10 {
        let path = format!("/turn/{turn}");
        assert_eq!(text(&pool, &format!("http://{}{path}", server.address)).await, path);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_replaced() {
    let server = Server::spawn(None).await;
    let pool = pool(tls().1);
    let url = format!("http://{}/x", server.address);
    for turn in 1..=5 {
        assert_eq!(text(&pool, &url).await, "/x");
        assert_eq!(server.connections(), turn);
        server.hang_up().await;
    }
}

/// A server whose connections are closed with the last of `answered` requests read and not answered.
async fn spawn_impatient(answered: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = requests.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                for turn in 0..=answered {
                    if read_request(&mut stream).await.is_none() {
                        return;
                    }
                    seen.fetch_add(1, Ordering::SeqCst);
                    if turn < answered {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        stream.write_all(answer).await.expect("sent");
                    }
                }
            });
        }
    });
    (address, requests)
}

/// Reads the head of a `GET`.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(head)
}

/// It gave up waiting while the request was on its way.
#[tokio::test]
async fn a_request_that_meets_the_end_of_an_idle_connection_says_so() {
    let (address, requests) = spawn_impatient(1).await;
    let pool = pool(tls().1);
    let url = format!("http://{address}/");
    // Two connections; both end with the next request.
    let both = [pool.send(&to(&url), request()).await, pool.send(&to(&url), request()).await];
    for response in both {
        response.expect("an answer").into_body().collect().await.expect("a body");
    }
    let error = pool.send(&to(&url), request()).await.err().expect("no answer");
    assert!(matches!(error, PoolError::Stale(_)), "{error:?}");
    // The other one is not asked.
    let fresh = UpstreamRequest { fresh: true, ..request() };
    let response = pool.send(&to(&url), fresh).await.expect("an answer over a new connection");
    response.into_body().collect().await.expect("a body");
    assert_eq!(requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_request_that_a_new_connection_does_not_answer_is_sent_once() {
    let (address, requests) = spawn_impatient(0).await;
    let pool = pool(tls().1);
    let error = pool.send(&to(&format!("http://{address}/")), request()).await.err().expect("no answer");
    assert!(matches!(error, PoolError::Broken(_)), "{error:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn however_many_connections_were_closed_meanwhile_the_next_request_is_served() {
    let server = Server::spawn(None).await;
    let pool = Arc::new(pool(tls().1));
    let url = format!("http://{}/x", server.address);
    // Answers that nobody has read yet each hold a connection.
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(pool.send(&to(&url), request()).await.expect("an answer"));
    }
    for response in held {
        response.into_body().collect().await.expect("a body");
    }
    assert_eq!(server.connections(), 300);
    assert!(server.looks_open());
    server.hang_up().await;
    assert_eq!(text(&pool, &url).await, "/x");
    assert_eq!(server.connections(), 301);
}

#[tokio::test]
async fn http_1_over_tls_carries_large_bodies_and_is_used_again() {
    let (acceptor, config) = tls();
    let server = Server::spawn_speaking(Some(acceptor), &[b"http/1.1"]).await;
    let pool = pool(config);
    let url = format!("https://localhost:{}/x", server.address.port());
    for _ in 0..3 {
        let large = request_with(Bytes::from(vec![b'x'; 3 << 20]));
        let response = pool.send(&to(&url), large).await.expect("an answer");
        assert_eq!(response.version(), http::Version::HTTP_11);
        assert_eq!(response.into_body().collect().await.expect("a body").to_bytes(), "/x");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_body_that_is_not_read_to_its_end_closes_its_connection() {
    let server = Server::spawn(None).await;
    let pool = pool(tls().1);
    let url = format!("http://{}/x", server.address);
    drop(pool.send(&to(&url), request()).await.expect("an answer"));
    assert_eq!(text(&pool, &url).await, "/x");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn both_versions_carry_the_same_headers() {
    let (acceptor, config) = tls();
    let pool = pool(config);
    let (plain, secured) = (Server::spawn(None).await, Server::spawn(Some(acceptor)).await);
    let urls = [
        ("HTTP/1.1", format!("http://{}/headers", plain.address)),
        ("HTTP/2.0", format!("https://localhost:{}/headers", secured.address.port())),
    ];
    let mut client = HeaderMap::new();
    for (name, value) in [("x-a", "1"), ("x-a", "2"), ("authorization", "Bearer caller")] {
        client.append(name, value.parse().expect("a value"));
    }
    for (version, url) in urls {
        let headers = UpstreamHeaders::new(&client, &provider(ProviderKind::OpenAi));
        let request =
            UpstreamRequest { method: Method::POST, headers, body: Bytes::from_static(b"{}"), fresh: false };
        let body = pool.send(&to(&url), request).await.expect("an answer").into_body();
        let seen =
            String::from_utf8(body.collect().await.expect("a body").to_bytes().to_vec()).expect("UTF-8");
        assert!(seen.starts_with(version), "{seen}");
        for part in [
            r#""x-a": "1""#,
            r#""x-a": "2""#,
            r#""authorization": "Bearer upstream-key""#,
            r#""accept-encoding": "identity""#,
        ] {
            assert_eq!(seen.matches(part).count(), 1, "{part} in {seen}");
        }
        assert!(!seen.contains("caller"), "{seen}");
    }
}

#[tokio::test]
async fn a_connection_that_is_not_opened_in_time_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let mut pool = pool(tls().1);
    pool.connect_timeout = Duration::from_millis(50);
    // TCP connects at once; the handshake of TLS is what nobody answers.
    let result = pool.send(&to(&format!("https://localhost:{port}/x")), request()).await;
    match result.map(|_| ()) {
        Err(PoolError::Connect(error)) => assert_eq!(error.to_string(), "no connection within 50ms"),
        other => panic!("{other:?}"),
    }
}
