//! A connection against a peer that the test plays.

use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::provider::headers::UpstreamHeaders;

type Line = Http1<TokioIo<DuplexStream>>;

/// A connection, and the peer's end of it. So many bytes fit in between.
fn connected(room: usize) -> (Line, DuplexStream) {
    let (near, far) = tokio::io::duplex(room);
    (Http1::new(TokioIo::new(near)), far)
}

async fn ask(line: &mut Line, body: &'static [u8]) -> Result<Response<()>, ExchangeError> {
    let (client, host) = (HeaderMap::new(), HeaderValue::from_static("h"));
    let head = OutgoingHead {
        method: &Method::POST,
        target: &Uri::from_static("/x"),
        host: &host,
        headers: &UpstreamHeaders::of_client(&client),
    };
    line.send(&head, Bytes::from_static(body)).await
}

/// What is left of the answer's body.
async fn body(line: &mut Line) -> Result<String, ExchangeError> {
    let mut body = Vec::new();
    while let Some(data) = poll_fn(|cx| line.poll_data(cx)).await {
        body.extend_from_slice(&data?);
    }
    Ok(String::from_utf8(body).unwrap())
}

/// Reads a request with this body, and answers.
async fn answer(far: &mut DuplexStream, body: &[u8], answer: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(body) || !seen.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        assert!(far.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    far.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn requests_follow_each_other_whichever_way_bodies_end() {
    let (mut line, mut far) = connected(64);
    let peer = tokio::spawn(async move {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        ] {
            answer(&mut far, b"{}", text).await;
        }
    });
    for (status, text, free) in
        [(200, "first", true), (200, "second", true), (204, "", true), (200, "until the end", false)]
    {
        assert!(!line.is_stale());
        let response = ask(&mut line, b"{}").await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(body(&mut line).await.unwrap(), text);
        assert_eq!((line.is_done(), line.is_free()), (true, free), "{text}");
    }
    peer.await.unwrap();
}

#[tokio::test]
async fn an_answer_that_comes_early_is_passed_on_and_the_rest_is_still_written() {
    static LARGE: [u8; 1 << 20] = [b'x'; 1 << 20];
    let (mut line, mut far) = connected(1 << 10);
    let peer = tokio::spawn(async move {
        far.write_all(b"HTTP/1.1 413 Too Large\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        // The rest comes only when the request has been read.
        let mut seen = 0;
        while seen < LARGE.len() {
            seen += far.read(&mut [0; 4096]).await.unwrap();
        }
        far.write_all(b"2\r\nno\r\n0\r\n\r\n").await.unwrap();
        far
    });
    let response = ask(&mut line, &LARGE).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(body(&mut line).await.unwrap(), "no");
    drop(peer.await.unwrap());
}

#[tokio::test]
async fn a_peer_that_refuses_and_hangs_up_is_heard() {
    static LARGE: [u8; 1 << 20] = [b'x'; 1 << 20];
    let (mut line, mut far) = connected(1 << 10);
    let peer = tokio::spawn(async move {
        far.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        far.read_exact(&mut [0; 100]).await.unwrap();
        far.write_all(b"no").await.unwrap();
    });
    let response = ask(&mut line, &LARGE).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(body(&mut line).await.unwrap(), "no");
    assert!(!line.is_free(), "half a request was sent on it");
    peer.await.unwrap();
}

#[tokio::test]
async fn what_breaks_off_is_no_answer() {
    for (text, heads) in [
        ("", 0),
        ("HTTP/1.1 200 OK\r\ncontent-le", 0),
        ("HTTP/1.1 100 Continue\r\n\r\n", 0),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour", 1),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n", 1),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n", 1),
    ] {
        let (mut line, mut far) = connected(1 << 10);
        let peer = tokio::spawn(async move { answer(&mut far, b"{}", text).await });
        let error = match ask(&mut line, b"{}").await {
            Ok(_) if heads == 1 => body(&mut line).await.unwrap_err(),
            Err(error) if heads == 0 => error,
            other => panic!("{text:?}: {other:?}"),
        };
        match error {
            ExchangeError::Unanswered(_) => assert_eq!(text, ""),
            error => assert!(matches!(error, ExchangeError::Closed) && !text.is_empty(), "{text:?}: {error}"),
        }
        assert!(!line.is_free());
        assert!(poll_fn(|cx| line.poll_data(cx)).await.is_none(), "an error is told once");
        peer.await.unwrap();
    }
}

#[tokio::test]
async fn what_is_not_http_is_no_answer() {
    for text in [
        "220 mail.example.com ESMTP\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
    ] {
        let (mut line, mut far) = connected(1 << 10);
        far.write_all(text.as_bytes()).await.unwrap();
        let error = match ask(&mut line, b"{}").await {
            Ok(_) => body(&mut line).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, ExchangeError::Garbled(_)), "{text:?}: {error}");
    }
}

#[tokio::test]
async fn a_connection_with_more_than_its_answer_is_not_used_again() {
    let (mut line, mut far) = connected(1 << 10);
    far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n").await.unwrap();
    ask(&mut line, b"{}").await.unwrap();
    assert_eq!(body(&mut line).await.unwrap(), "ok");
    assert!(line.is_done() && !line.is_free() && line.is_stale());

    let (mut line, mut far) = connected(1 << 10);
    assert!(!line.is_stale());
    far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    assert!(line.is_stale(), "it speaks unasked");
    let (mut line, far) = connected(1 << 10);
    drop(far);
    assert!(line.is_stale(), "it is closed");
}

#[tokio::test]
async fn a_large_answer_is_read_in_large_pieces_and_the_memory_is_given_back() {
    let (mut line, mut far) = connected(1 << 20);
    let large = "x".repeat(3 << 20);
    let sent = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{large}", large.len());
    let peer = tokio::spawn(async move {
        answer(&mut far, b"{}", &sent).await;
        far
    });
    ask(&mut line, b"{}").await.unwrap();
    assert_eq!(line.size_hint().exact(), Some(3 << 20));
    assert_eq!(body(&mut line).await.unwrap().len(), large.len());
    line.rest();
    assert!(line.is_free() && line.read.capacity() <= READ_MIN);
    drop(peer.await.unwrap());
}

#[tokio::test]
async fn what_could_not_be_sent_at_all_is_told_apart() {
    let (mut line, far) = connected(1 << 10);
    drop(far);
    assert!(matches!(ask(&mut line, b"{}").await, Err(ExchangeError::Unsent(_))));
}

#[tokio::test]
async fn the_pieces_of_a_stream_share_their_memory() {
    let (mut line, mut far) = connected(1 << 10);
    let peer = tokio::spawn(async move {
        answer(&mut far, b"{}", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for _ in 0..1000 {
            far.write_all(b"6\r\n012345\r\n").await.unwrap();
            tokio::task::yield_now().await;
        }
        far.write_all(b"0\r\n\r\n").await.unwrap();
    });
    ask(&mut line, b"{}").await.unwrap();
    let mut pieces: Vec<Bytes> = Vec::new();
    while let Some(data) = poll_fn(|cx| line.poll_data(cx)).await {
        pieces.push(data.unwrap());
    }
    peer.await.unwrap();
    assert_eq!(pieces.concat().len(), 6000);
    // Kept as the request log keeps them: a buffer begins only where the one before was nearly full.
    let ends = pieces.iter().map(|piece| piece.as_ptr().addr());
    let starts = ends.clone().zip(ends.skip(1)).filter(|(one, next)| next.abs_diff(*one) > 64).count();
    assert!(starts <= 4, "{starts} buffers for 11 kB");
}
