//! Clients that send or read slowly.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nexusgate::demo::provider::Reply;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::TestApp;
use crate::support::app::MODEL;

/// A stream that the gateway cannot read on while its client does not read.
fn more_than_sockets_hold() -> Reply {
    let event = format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
        "x".repeat(1 << 20)
    );
    let end = "data: [DONE]\n\n".to_owned();
    Reply::raw_stream(std::iter::repeat_n(event, 40).chain([end]))
}

/// A connection that has sent the head of a request with these headers.
async fn begin(app: &TestApp, path: &str, headers: &str) -> TcpStream {
    begin_as(app, &app.key, path, headers).await
}

async fn begin_as(app: &TestApp, key: &str, path: &str, headers: &str) -> TcpStream {
    let mut connection = TcpStream::connect(app.running().address()).await.expect("connected");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         {headers}\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.expect("written");
    connection
}

fn of_length(body: &str) -> String {
    format!("content-length: {}\r\nconnection: close", body.len())
}

async fn read_all(mut connection: TcpStream) -> String {
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.expect("an answer and its end");
    String::from_utf8(answer).expect("UTF-8")
}

/// A body that never completes does not hold its request open, on any path through the gateway.
#[tokio::test]
async fn half_a_body_is_not_waited_for() {
    for origins in ["", "https://app.example"] {
        let app = TestApp::builder()
            .setting("CLIENT_TIMEOUT", "300ms")
            .setting("ALLOWED_ORIGINS", origins)
            .spawn()
            .await;
        let mut answers = Vec::new();
        for path in ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"] {
            let mut connection = begin(&app, path, "content-length: 1000").await;
            connection.write_all(b"{\"model\":").await.expect("written");
            let answer = read_all(connection).await;
            assert!(answer.starts_with("HTTP/1.1 408 "), "{path}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{path}: {answer}");
            answers.push(answer);
        }
        assert!(answers[0].contains(r#""code":"request_timeout""#), "{}", answers[0]);
        let of_anthropic = r#"{"type":"error","error":{"type":"timeout_error","#;
        assert!(answers[1].contains(of_anthropic), "in its own format: {}", answers[1]);
        let secret = app.running().admin_secret().expose();
        let mut connection = begin_as(&app, secret, "/api/admin/apiKey", "content-length: 1000").await;
        connection.write_all(b"{\"comment\":").await.expect("written");
        let answer = read_all(connection).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
        let scrape = app.settled().await;
        let rejected = scrape.metric("nexusgate_requests_rejected_total");
        assert!(rejected.label("reason", "invalid_request").is(2.0), "{}", scrape.text);
        assert!(scrape.metric("nexusgate_completions_total").is(0.0));
        assert!(app.provider().calls().is_empty());
    }
}

/// A client that leaves while it sends its request made no mistake, and is not counted as if it had.
#[tokio::test]
async fn a_client_that_leaves_during_its_upload() {
    const PATH: &str = "/v1/chat/completions";
    for origins in ["", "https://app.example"] {
        let app = TestApp::builder().setting("ALLOWED_ORIGINS", origins).spawn().await;
        for (headers, begun) in
            [("content-length: 1000", "{\"model\":"), ("transfer-encoding: chunked", "9\r\n{\"mo")]
        {
            for reset in [false, true] {
                let mut connection = begin(&app, PATH, headers).await;
                connection.write_all(begun.as_bytes()).await.expect("written");
                in_flight(&app, 1.0).await;
                if reset {
                    connection.set_zero_linger().expect("an open socket");
                }
                drop(connection);
                in_flight(&app, 0.0).await;
            }
        }
        let mut malformed = begin(&app, PATH, "transfer-encoding: chunked\r\nconnection: close").await;
        malformed.write_all(b"nothing\r\n").await.expect("written");
        let answer = read_all(malformed).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let scrape = app.settled().await;
        let rejected = |reason| scrape.metric("nexusgate_requests_rejected_total").label("reason", reason);
        assert!(rejected("client_closed").is(4.0), "{}", scrape.text);
        assert!(rejected("invalid_request").is(1.0), "{}", scrape.text);
        let answers =
            |code| scrape.metric("nexusgate_http_requests_total").label("route", PATH).label("code", code);
        assert!(answers("499").is(4.0) && answers("400").is(1.0), "{}", scrape.text);
    }
}

#[tokio::test]
async fn over_http_2_a_client_that_leaves_during_its_upload() {
    let app = TestApp::spawn().await;
    let address = app.running().address();
    for whole_connection in [false, true] {
        let stream = TokioIo::new(TcpStream::connect(address).await.expect("connected"));
        let (mut sender, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let begun =
            stream::once(async { Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"{\"model\":"))) });
        let request = http::Request::post(format!("http://{address}/v1/chat/completions"))
            .header("authorization", format!("Bearer {}", app.key))
            .body(StreamBody::new(begun.chain(stream::pending()).boxed()));
        let answer = tokio::spawn(sender.send_request(request.expect("a request")));
        in_flight(&app, 1.0).await;
        if whole_connection {
            connection.abort();
        }
        answer.abort();
        in_flight(&app, 0.0).await;
    }
    let scrape = app.settled().await;
    let rejected = || scrape.metric("nexusgate_requests_rejected_total");
    assert!(rejected().label("reason", "client_closed").is(2.0), "{}", scrape.text);
    assert!(rejected().is(2.0), "and nothing else: {}", scrape.text);
    assert!(scrape.metric("nexusgate_http_requests_total").label("code", "499").is(2.0), "{}", scrape.text);
}

/// Waits until so many requests are in flight.
async fn in_flight(app: &TestApp, count: f64) {
    app.eventually("requests in flight", |scrape| scrape.metric("nexusgate_requests_in_flight").is(count))
        .await;
}

/// A client that keeps sending is waited for, however long it takes.
#[tokio::test]
async fn a_body_that_comes_slowly_is_read() {
    let app = TestApp::builder().setting("CLIENT_TIMEOUT", "2s").spawn().await;
    let body = app.chat(MODEL).body.to_string();
    let mut connection = begin(&app, "/v1/chat/completions", &of_length(&body)).await;
    for piece in body.as_bytes().chunks(body.len().div_ceil(6)) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        connection.write_all(piece).await.expect("written");
    }
    let answer = read_all(connection).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(1.0));
    let overhead = scrape.metric("nexusgate_gateway_overhead_seconds_sum").value();
    assert!(overhead < 1.0, "{overhead} s, though the client took more than two");
}

/// A client that reads nothing of its answer counts as disconnected.
#[tokio::test]
async fn an_answer_that_nobody_takes_is_given_up() {
    let app = TestApp::builder().setting("CLIENT_TIMEOUT", "500ms").spawn().await;
    app.provider().always(more_than_sockets_hold());
    let body = app.chat(MODEL).streamed().body.to_string();
    let mut connection = begin(&app, "/v1/chat/completions", &of_length(&body)).await;
    connection.write_all(body.as_bytes()).await.expect("written");
    app.eventually("it is given up", |scrape| {
        scrape.metric("nexusgate_completions_total").label("status", "aborted").is(1.0)
    })
    .await;
    app.settled().await;
    assert_eq!(app.log_rows().await[0].status, "aborted");
    let mut read = Vec::new();
    let _ = connection.read_to_end(&mut read).await;
    assert!(read.len() < 40 << 20, "the rest was not kept for it");
}

/// Over HTTP/2 a client without window for one answer may still read all of another.
#[tokio::test]
async fn over_http_2_an_answer_that_nobody_takes_is_given_up_and_no_other() {
    let app = TestApp::builder().setting("CLIENT_TIMEOUT", "500ms").spawn().await;
    let address = app.running().address();
    let stream = TokioIo::new(TcpStream::connect(address).await.expect("connected"));
    let mut handshake = http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) =
        handshake.initial_stream_window_size(65_535).handshake(stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut ask = |body: String| {
        let request = http::Request::post(format!("http://{address}/v1/chat/completions"))
            .header("authorization", format!("Bearer {}", app.key))
            .body(Full::<Bytes>::from(body));
        sender.send_request(request.expect("a request"))
    };

    app.provider().always(more_than_sockets_hold());
    let unread = ask(app.chat(MODEL).streamed().body.to_string()).await.expect("headers").into_body();
    app.provider().always(Reply::text("read"));
    let mut read = async || {
        let answer = ask(app.chat(MODEL).body.to_string()).await.expect("headers").into_body();
        String::from_utf8(answer.collect().await.expect("an answer").to_bytes().into()).expect("UTF-8")
    };
    assert!(read().await.contains("read"));
    app.eventually("it is given up", |scrape| {
        scrape.metric("nexusgate_completions_total").label("status", "aborted").is(1.0)
    })
    .await;
    assert!(read().await.contains("read"), "the connection goes on");
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(2.0));
    assert!(unread.collect().await.is_err(), "nobody takes it for whole");
    drop(sender);
    connection.await.expect("joined").expect("a good end");
}

/// A client's time is not the provider's: slow reading is no stall.
#[tokio::test]
async fn a_slow_client_is_no_stall() {
    let app = TestApp::spawn().await;
    app.provider().always(more_than_sockets_hold());
    let mut body = app.chat(MODEL).streamed().build().send().await.expect("headers").bytes_stream();
    body.next().await.expect("a chunk").expect("bytes");
    let pause = Duration::from_secs(2);
    tokio::time::sleep(pause).await;
    while let Some(chunk) = body.next().await {
        chunk.expect("bytes");
    }
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_stream_stall_seconds_count").is(1.0));
    let stall = scrape.metric("nexusgate_stream_stall_seconds_sum").value();
    assert!(stall < pause.as_secs_f64() / 2.0, "{stall} s");
}

/// An answer that the gateway has handed over has not arrived yet: a slow reader is not cut off.
#[tokio::test]
async fn shutdown_lets_slow_clients_read() {
    let app =
        TestApp::builder().setting("SHUTDOWN_GRACE", "60s").setting("CLIENT_TIMEOUT", "4s").spawn().await;
    let text = "x".repeat(30 << 20);
    let answer = format!(
        r#"{{"choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}]}}"#
    );
    let length = answer.len();
    app.provider().always(Reply::raw_json(answer));
    let mut body = app.chat(MODEL).build().send().await.expect("headers").bytes_stream();
    let mut read = body.next().await.expect("a chunk").expect("bytes").len();
    let reading = tokio::spawn(async move {
        let mut pause = read + (3 << 20);
        while let Some(chunk) = body.next().await {
            read += chunk.expect("it is not cut off").len();
            // Ten pauses of a second: in total longer than the gateway waits for a client that reads nothing, at any
            // time (CLIENT_TIMEOUT) and at the end of the answer.
            if read >= pause {
                pause += 3 << 20;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        read
    });
    assert!(app.shutdown().await, "everything was finished and written");
    assert_eq!(reading.await.expect("joined"), length);
}

/// A refusal may come long before the rest of the body. It must not be lost to a reset, and the connection stays
/// usable.
#[tokio::test]
async fn a_refusal_does_not_break_the_connection() {
    let app = TestApp::builder().setting("MAX_BODY_SIZE", "1MiB").spawn().await;
    let body = vec![b' '; 4 << 20];
    for (key, length, status) in [("sk-nobody", 1 << 20, "401"), (app.key.as_str(), 4 << 20, "413")] {
        let mut connection = TcpStream::connect(app.running().address()).await.expect("connected");
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.expect("written");
        connection.write_all(&body[..1000]).await.expect("written");
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, *format!("HTTP/1.1 {status}").as_bytes());
        connection.write_all(&body[1000..length]).await.expect("read by the gateway");
        connection
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .expect("written");
        assert!(read_all(connection).await.contains("HTTP/1.1 200 OK\r\n"), "{status}");
    }
}
