//! Providers behind TLS with a private certificate authority.

use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::TestApp;
use crate::support::app::MODEL;
use crate::support::raw::read_request;

/// A provider that speaks TLS with a certificate of its own; its base URL, and the certificate.
async fn private_provider() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            // A client that does not trust the certificate aborts the handshake.
            let Ok(mut connection) = acceptor.accept(connection).await else { continue };
            let _ = read_request(&mut connection).await;
            let body = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}"#;
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = connection.write_all((head + body).as_bytes()).await;
            let _ = connection.shutdown().await;
        }
    });
    (format!("https://localhost:{port}/v1"), made.cert.pem())
}

#[tokio::test]
async fn a_private_authority_is_believed_when_it_is_named() {
    let (url, certificate) = private_provider().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("authorities.pem");
    std::fs::write(&file, certificate).expect("written");

    let app = TestApp::builder().upstream(url.clone()).spawn().await;
    assert_eq!(app.chat(MODEL).send().await.status(), 502, "nobody vouches for it");
    let attempts = app.settled().await;
    assert!(attempts.metric("nexusgate_upstream_attempts_total").label("outcome", "connect").value() > 0.0);

    let app = TestApp::builder().upstream(url).setting("UPSTREAM_CA_FILE", file.display()).spawn().await;
    let answer = app.chat(MODEL).send().await;
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.expect("a body").contains("hello"));
}

/// `nexusgate healthcheck` of a gateway behind TLS, with a certificate that the system knows or does not.
#[tokio::test]
async fn a_health_check_goes_through_tls() {
    let (url, certificate) = private_provider().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("system.pem");
    std::fs::write(&file, certificate).expect("written");
    for (known, code) in [(true, 0), (false, 1)] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nexusgate"));
        command.args(["healthcheck", "--url", &url]).env_clear();
        if known {
            command.env("SSL_CERT_FILE", &file);
        }
        // Off this thread: the server runs on it.
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ends");
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
