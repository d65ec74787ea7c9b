//! Providers behind an HTTP proxy.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nexusgate::demo::provider::{Gate, Reply};
use nexusgate::domain::key::Secret;
use serde_json::json;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::admin::Administrator;
use crate::support::TestApp;
use crate::support::app::MODEL;
use crate::support::raw::read_request;

/// A forward proxy that records the heads of its requests. It forwards plain requests, and refuses tunnels.
async fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let heads = Arc::new(Mutex::new(Vec::new()));
    let noted = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let noted = noted.clone();
            tokio::spawn(async move {
                let (head, body) = read_request(&mut client).await?;
                noted.lock().expect("not poisoned").push(head.clone());
                let target = head.split(' ').nth(1)?;
                let Some(rest) = target.strip_prefix("http://") else {
                    client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await.ok()?;
                    return Some(());
                };
                let (host, path) = rest.split_at(rest.find('/')?);
                let mut upstream = TcpStream::connect(host).await.ok()?;
                upstream.write_all(head.replacen(target, path, 1).as_bytes()).await.ok()?;
                upstream.write_all(&body).await.ok()?;
                copy_bidirectional(&mut client, &mut upstream).await.ok()?;
                Some(())
            });
        }
    });
    (format!("http://user:p%40s&s@{address}"), heads)
}

/// `user:p@s&s`
const CREDENTIALS: &str = "proxy-authorization: Basic dXNlcjpwQHMmcw==";

#[tokio::test]
async fn plain_requests_go_through_it_in_absolute_form() {
    let (url, heads) = proxy().await;
    let app = TestApp::builder()
        .adjust(move |settings| settings.declared.providers[0].proxy_url = Some(Secret::new(url)))
        .spawn()
        .await;
    for stream in [false, true] {
        let call = app.chat(MODEL);
        let response = if stream { call.streamed() } else { call }.send().await;
        assert_eq!(response.status(), 200);
        assert!(response.text().await.expect("text").contains("scripted"));
    }
    let heads = heads.lock().expect("not poisoned").clone();
    let absolute = format!("POST {}/chat/completions HTTP/1.1", app.provider().base_url());
    assert!(heads[0].starts_with(&absolute), "{}", heads[0]);
    assert!(heads[0].contains(CREDENTIALS));
    let call = app.provider().last_call().expect("a call");
    assert_eq!(call.header("authorization"), Some("Bearer upstream-secret"));
}

#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    let (url, heads) = proxy().await;
    let app = TestApp::builder()
        .upstream("https://provider.invalid/v1".into())
        .adjust(move |settings| settings.declared.providers[0].proxy_url = Some(Secret::new(url)))
        .spawn()
        .await;
    assert_eq!(app.chat(MODEL).send().await.status(), 502, "the proxy lets nobody through");
    let heads = heads.lock().expect("not poisoned").clone();
    assert!(heads[0].starts_with("CONNECT provider.invalid:443 HTTP/1.1"), "{}", heads[0]);
    assert!(heads[0].to_ascii_lowercase().contains(&CREDENTIALS.to_ascii_lowercase()));
    assert!(!heads[0].contains("upstream-secret"), "the proxy never sees the provider's key");
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_upstream_attempts_total").label("outcome", "connect").value() >= 1.0);
}

#[tokio::test]
async fn a_proxy_that_is_switched_off_is_not_used() {
    let (url, heads) = proxy().await;
    let app = TestApp::builder()
        .adjust(move |settings| {
            settings.declared.providers[0].proxy_url = Some(Secret::new(url));
            settings.declared.providers[0].proxy_enabled = false;
        })
        .spawn()
        .await;
    assert_eq!(app.chat(MODEL).send().await.status(), 200);
    assert!(heads.lock().expect("not poisoned").is_empty());
}

/// An address that changes from day to day must not leave connections behind; an answer on its way still arrives.
#[tokio::test]
async fn a_proxy_that_is_configured_no_more_is_left() {
    let (url, heads) = proxy().await;
    let app = TestApp::builder()
        .setting("SNAPSHOT_REFRESH_INTERVAL", "1h")
        .adjust(move |settings| settings.declared.providers[0].proxy_url = Some(Secret::new(url)))
        .spawn()
        .await;
    let gate = Gate::new();
    app.provider().next(Reply::text("one two three").stalled_after(1, &gate));
    let stream = app.chat(MODEL).streamed().send().await;
    assert_eq!(app.chat(MODEL).send().await.status(), 200);
    // Each connection holds a copy, as do the test and the listener.
    let connections = || Arc::strong_count(&heads) - 2;
    assert_eq!(connections(), 2, "one carries the stream, one is idle");

    let admin = Administrator(&app);
    let provider = &admin.get("/providers").await.ok()[0];
    let direct = json!({ "proxyUrl": null, "proxyEnabled": false });
    admin.put(&format!("/providers/{}", provider["id"]), direct).await.ok();
    let only = async |left: usize| {
        while connections() > left {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Idle connections are closed after a minute anyway.
    timeout(Duration::from_secs(20), only(1)).await.expect("the idle one is closed");
    gate.open();
    let answer = stream.text().await.expect("the rest of the answer");
    assert!(answer.contains("three") && answer.contains("[DONE]"), "{answer}");
    timeout(Duration::from_secs(20), only(0)).await.expect("the other one is closed");
    assert_eq!(app.chat(MODEL).send().await.status(), 200);
    assert_eq!(heads.lock().expect("not poisoned").len(), 2, "the proxy is not asked again");
}
