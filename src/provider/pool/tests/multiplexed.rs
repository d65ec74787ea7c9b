//! HTTP/2: many requests on one connection.

use super::*;

#[tokio::test]
async fn http_2_carries_requests_side_by_side() {
    let (acceptor, config) = tls();
    let server = Server::spawn(Some(acceptor)).await;
    let pool = Arc::new(pool(config));
    let url = format!("https://localhost:{}", server.address.port());
    let first = pool.send(&to(&format!("{url}/first")), request()).await.expect("an answer");
    assert_eq!(first.version(), http::Version::HTTP_2);
    assert_eq!(first.into_body().collect().await.expect("a body").to_bytes(), "/first");
    let calls = (0..50).map(|call| {
        let (pool, url) = (pool.clone(), format!("{url}/call/{call}"));
        tokio::spawn(async move { (text(&pool, &url).await, format!("/call/{call}")) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (answered, asked) = call.await.expect("no panic");
        assert_eq!(answered, asked);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn http_2_connections_are_replaced_too() {
    let (acceptor, config) = tls();
    let server = Server::spawn(Some(acceptor)).await;
    let pool = pool(config);
    let url = format!("https://localhost:{}/x", server.address.port());
    assert_eq!(text(&pool, &url).await, "/x");
    // One that is still being answered goes on, dropped or not, without harm to the others.
    drop(pool.send(&to(&url), request()).await.expect("an answer"));
    assert_eq!(text(&pool, &url).await, "/x");
    assert_eq!(server.connections(), 1);
    server.hang_up().await;
    // The client hears of it in its own time; what it had sent before that fails, and is not sent twice.
    let deadline = Instant::now() + Duration::from_secs(10);
    while pool.send(&to(&url), request()).await.is_err() {
        assert!(Instant::now() < deadline, "it never connects again");
    }
    assert_eq!(text(&pool, &url).await, "/x");
    assert_eq!(server.connections(), 2);
}

/// A server that allows `most` requests at one time on each HTTP/2 connection. Answers are headers, and a body that comes when
/// `go_on` is cancelled. While `frozen` is cancelled it reads and writes nothing, and closes nothing.
async fn spawn_http_2(
    tls: TlsAcceptor,
    most: u32,
    go_on: CancellationToken,
    frozen: CancellationToken,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let (tls, go_on, frozen) = (tls.clone(), go_on.clone(), frozen.clone());
            tokio::spawn(async move {
                let service = service_fn(move |_: Request<Incoming>| {
                    let go_on = go_on.clone();
                    let body = futures_util::stream::once(async move {
                        go_on.cancelled().await;
                        Ok::<_, Infallible>(Frame::data(Bytes::from(peer.port().to_string())))
                    });
                    let body = http_body_util::StreamBody::new(Box::pin(body));
                    std::future::ready(Ok::<_, Infallible>(Response::new(body)))
                });
                let stream = tls.accept(stream).await.expect("a handshake");
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(most);
                let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
                tokio::select! {
                    _ = &mut serving => {}
                    () = frozen.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn what_an_http_2_connection_has_no_room_for_goes_on_another_one() {
    let (acceptor, config) = tls();
    for (most, expected) in [(1, vec![1; 5]), (2, vec![1, 2, 2]), (100, vec![5])] {
        let go_on = CancellationToken::new();
        let address = spawn_http_2(acceptor.clone(), most, go_on.clone(), CancellationToken::new()).await;
        let (pool, to) = (pool(config.clone()), to(&format!("https://localhost:{}/x", address.port())));
        let mut held = Vec::new();
        for _ in 0..5 {
            // Each is answered at once: none waits in a queue for another one's end.
            held.push(pool.send(&to, request()).await.expect("an answer").into_body());
        }
        go_on.cancel();
        let mut carried = HashMap::<Bytes, usize>::new();
        for body in held {
            *carried.entry(body.collect().await.expect("a body").to_bytes()).or_default() += 1;
        }
        let mut carried: Vec<_> = carried.into_values().collect();
        carried.sort_unstable();
        assert_eq!(carried, expected, "{most} at one time");
        // There is room again, so no further connection is needed.
        for _ in 0..5 {
            let body = pool.send(&to, request()).await.expect("an answer").into_body();
            body.collect().await.expect("a body");
        }
        let kept: Vec<_> =
            pool.shared.origins.lock().by_origin.values().map(|kept| kept.shared.len()).collect();
        assert_eq!(kept, [expected.len()]);
    }
}

#[tokio::test]
async fn a_request_on_an_http_2_connection_whose_peer_vanished_fails_and_the_next_one_gets_another() {
    let (acceptor, config) = tls();
    let (go_on, frozen) = (CancellationToken::new(), CancellationToken::new());
    let address = spawn_http_2(acceptor, 100, go_on.clone(), frozen.clone()).await;
    let (mut pool, to) = (pool(config), to(&format!("https://localhost:{}/x", address.port())));
    pool.ping = Ping { interval: Duration::from_millis(500), timeout: Duration::from_millis(500) };
    let body = pool.send(&to, request()).await.expect("an answer").into_body();
    frozen.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(30), body.collect()).await.expect("it is given up");
    ended.expect_err("the peer does not say that it is there");
    assert!(pool.shared.take(to.origin(), false).is_none(), "it is not used again");
}

/// A server whose HTTP/2 connections are attended by `attend`.
async fn spawn_raw_http_2<F, A>(tls: TlsAcceptor, attend: F) -> SocketAddr
where
    F: Fn(h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes>) -> A
        + Send
        + Sync
        + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = tls.accept(stream).await.expect("TLS");
            let connection = h2::server::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(attend(connection));
        }
    });
    address
}

#[tokio::test]
async fn what_an_http_2_peer_refused_to_work_on_is_sent_again() {
    let (acceptor, config) = tls();
    for (refused, answered) in [(1, true), (MAX_REFUSED, true), (MAX_REFUSED + 1, false)] {
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = seen.clone();
        let address = spawn_raw_http_2(acceptor.clone(), move |mut connection| {
            let seen = counted.clone();
            async move {
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if seen.fetch_add(1, Ordering::SeqCst) < refused as usize {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        respond.send_response(Response::new(()), true).expect("sent");
                    }
                }
            }
        })
        .await;
        let url = format!("https://localhost:{}/x", address.port());
        let result = pool(config.clone()).send(&to(&url), request()).await.map(|_| ());
        assert!(
            if answered { result.is_ok() } else { matches!(result, Err(PoolError::Broken(_))) },
            "{result:?}"
        );
        assert_eq!(seen.load(Ordering::SeqCst), 1 + refused.min(MAX_REFUSED) as usize);
    }
}

/// Eight requests that meet the end of their connection are no eight failures of the provider.
#[tokio::test]
async fn an_http_2_connection_that_breaks_is_told_once() {
    let (acceptor, config) = tls();
    let address = spawn_raw_http_2(acceptor, |mut connection| async move {
        let mut held = Vec::new();
        while held.len() < 9 {
            let Some(Ok((request, mut respond))) = connection.accept().await else { break };
            if request.uri().path() == "/first" {
                respond.send_response(Response::new(()), true).expect("sent");
            }
            held.push(respond);
        }
        // Dropped with all that is in flight.
    })
    .await;
    let mut pool = pool(config);
    // None of them is excused for having met a connection that was being closed.
    pool.stale_within = Duration::ZERO;
    let pool = Arc::new(pool);
    let url = format!("https://localhost:{}", address.port());
    pool.send(&to(&format!("{url}/first")), request()).await.expect("an answer");
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (pool, to) = (pool.clone(), to(&format!("{url}/held")));
            tokio::spawn(async move { pool.send(&to, request()).await.map(|_| ()) })
        })
        .collect();
    let mut told = 0;
    for call in calls {
        match call.await.expect("no panic") {
            Err(PoolError::Stale(_)) => {}
            Err(PoolError::Broken(_)) => told += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, 1);
}

/// Nor are eight answers that break off with their connection.
#[tokio::test]
async fn an_http_2_connection_that_breaks_under_its_answers_is_told_once() {
    let (acceptor, config) = tls();
    let address = spawn_raw_http_2(acceptor, |mut connection| async move {
        let mut held = Vec::new();
        while held.len() < 9 {
            let Some(Ok((request, mut respond))) = connection.accept().await else { break };
            match request.uri().path() {
                // The answers before it have been received when this one comes.
                "/last" => break,
                _ => held.push(respond.send_response(Response::new(()), false).expect("sent")),
            }
        }
    })
    .await;
    let mut pool = pool(config);
    // The last request is not excused for having met a connection that was being closed: it is the one that tells.
    pool.stale_within = Duration::ZERO;
    let url = format!("https://localhost:{}", address.port());
    let mut begun = Vec::new();
    for _ in 0..8 {
        begun.push(pool.send(&to(&format!("{url}/x")), request()).await.expect("an answer").into_body());
    }
    let last = pool.send(&to(&format!("{url}/last")), request()).await.map(|_| ());
    assert!(matches!(last, Err(PoolError::Broken(_))), "{last:?}");
    for body in begun {
        let error = body.collect().await.expect_err("it breaks off");
        assert!(error.tell_again(), "{error}");
    }
}

/// Clients that do not read their answers do not hold up others on the same connection, and fill a small part of memory.
#[tokio::test]
async fn answers_that_nobody_reads_hold_up_no_other() {
    const UNREAD: usize = 10;
    let (acceptor, config) = tls();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let address = spawn_raw_http_2(acceptor, move |mut connection| {
        let sent = counted.clone();
        async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).expect("sent");
                if request.uri().path() == "/short" {
                    body.send_data(Bytes::from_static(b"short"), true).expect("sent");
                    continue;
                }
                let sent = sent.clone();
                // As much as the client's windows let through.
                tokio::spawn(async move {
                    body.reserve_capacity(1 << 30);
                    while let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await {
                        let data = Bytes::from(vec![0; room]);
                        if body.send_data(data, false).is_err() {
                            break;
                        }
                        sent.fetch_add(room, Ordering::SeqCst);
                    }
                });
            }
        }
    })
    .await;
    let (pool, url) = (pool(config), format!("https://localhost:{}", address.port()));
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        unread.push(pool.send(&to(&format!("{url}/long")), request()).await.expect("an answer"));
    }
    let most = UNREAD * http2::STREAM_WINDOW as usize;
    let deadline = Instant::now() + Duration::from_secs(30);
    while sent.load(Ordering::SeqCst) < most {
        assert!(Instant::now() < deadline, "only {} of {most} bytes came", sent.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let short = tokio::time::timeout(Duration::from_secs(30), text(&pool, &format!("{url}/short"))).await;
    assert_eq!(short.expect("it is not held up"), "short");
    assert_eq!(sent.load(Ordering::SeqCst), most, "and no more is held here");
    drop(unread);
}

/// A server that ends its first HTTP/2 connection in order, as nginx does after some number of requests: the second request
/// is already on its way then, and is said to have come too late.
async fn spawn_parting(tls: TlsAcceptor, connections: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let parts = connections.fetch_add(1, Ordering::SeqCst) == 0;
            let stream = tls.accept(stream).await.expect("TLS");
            tokio::spawn(speak_frames(stream, parts));
        }
    });
    address
}

/// Speaks HTTP/2 by hand until the client leaves. With `parts`, the second request is answered by GOAWAY.
async fn speak_frames(mut stream: tokio_rustls::server::TlsStream<TcpStream>, parts: bool) {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const ACK: u8 = 1;
    const END_STREAM_AND_HEADERS: u8 = 5;
    /// `:status: 200`, from HPACK's static table.
    const OK: u8 = 0x88;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u8::try_from(payload.len()).expect("a short frame");
        [&[0, 0, length, kind, flags][..], &stream.to_be_bytes(), payload].concat()
    };
    stream.read_exact(&mut [0; 24]).await.expect("the preface");
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("sent");
    let mut answered = 0_u32;
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let [a, b, c, kind, flags, id @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("a length");
        stream.read_exact(&mut vec![0; length]).await.expect("a payload");
        let id = u32::from_be_bytes(id);
        let said = match kind {
            SETTINGS if flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[]),
            HEADERS if parts && answered > 0 => {
                let (last, no_error) = (answered.to_be_bytes(), 0_u32.to_be_bytes());
                frame(GOAWAY, 0, 0, &[last, no_error].concat())
            }
            HEADERS => {
                answered = id;
                frame(HEADERS, END_STREAM_AND_HEADERS, id, &[OK])
            }
            _ => continue,
        };
        stream.write_all(&said).await.expect("sent");
    }
}

#[tokio::test]
async fn what_came_too_late_for_an_http_2_connection_is_sent_over_another() {
    let (acceptor, config) = tls();
    let connections = Arc::new(AtomicUsize::new(0));
    let address = spawn_parting(acceptor, connections.clone()).await;
    let (pool, to) = (pool(config), to(&format!("https://localhost:{}/x", address.port())));
    for (call, expected) in [1, 2, 2].into_iter().enumerate() {
        let answer = pool.send(&to, request()).await;
        assert_eq!(answer.expect("an answer").status(), 200, "call {call}");
        assert_eq!(connections.load(Ordering::SeqCst), expected, "call {call}");
    }
}
