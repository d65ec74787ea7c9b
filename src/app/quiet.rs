//! Filters out needless wake-ups from hyper.
//!
//! Taking a piece of an HTTP/1 request's body wakes the connection, which may be waiting to pass on the next one. hyper
//! 1.12 does so after the last piece too. Handlers run in their connection's own task, so that wake-up would poll all
//! of the task once more, including the whole request path. A connection polled with a [`Quiet`] waker does not get
//! this wake-up from its [`Quieted`] bodies; it gets all others.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use http_body::{Body, Frame, SizeHint};

thread_local! {
    /// How to treat wake-ups from this thread.
    static WAKES: Cell<Wakes> = const { Cell::new(Wakes::Pass) };
}

enum Wakes {
    Pass,
    /// A body is being polled: the first wake-up is held until the result is known.
    Hold,
    /// The held wake-up.
    Held(Waker),
}

/// The waker of a task, made once.
#[derive(Default)]
pub(super) struct Quiet(Option<(Waker, Waker)>);

impl Quiet {
    /// The context of the task, with its wake-ups held back while a [`Quieted`] body is polled.
    pub(super) fn context(&mut self, cx: &Context<'_>) -> Context<'_> {
        if self.0.as_ref().is_some_and(|(task, _)| !task.will_wake(cx.waker())) {
            self.0 = None;
        }
        let (_, quiet) = self.0.get_or_insert_with(|| {
            let task = cx.waker().clone();
            (task.clone(), Waker::from(Arc::new(Task(task))))
        });
        Context::from_waker(quiet)
    }
}

struct Task(Waker);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let held = match WAKES.replace(Wakes::Pass) {
            Wakes::Pass => return self.0.wake_by_ref(),
            Wakes::Hold => self.0.clone(),
            Wakes::Held(first) => {
                self.0.wake_by_ref();
                first
            }
        };
        WAKES.set(Wakes::Held(held));
    }
}

/// While it lives, this thread's first wake-up is held back.
struct Holding;

impl Holding {
    fn start() -> Self {
        WAKES.set(Wakes::Hold);
        Self
    }

    /// Returns the held wake-up.
    fn end(self) -> Option<Waker> {
        match WAKES.replace(Wakes::Pass) {
            Wakes::Held(waker) => Some(waker),
            Wakes::Pass | Wakes::Hold => None,
        }
    }
}

/// If a body panics, the thread's other connections must not miss their wake-ups.
impl Drop for Holding {
    fn drop(&mut self) {
        WAKES.set(Wakes::Pass);
    }
}

/// A request's body that does not wake its connection when all of it has been taken.
pub(super) struct Quieted<B> {
    body: B,
    /// Over HTTP/2 bodies wake their connection for other reasons: a window has room again.
    is_http1: bool,
}

impl<B> Quieted<B> {
    pub(super) fn new(body: B, is_http1: bool) -> Self {
        Self { body, is_http1 }
    }
}

impl<B: Body + Unpin> Body for Quieted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if !self.is_http1 {
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        // In between runs only the body's end of hyper's channel, which wakes nothing but its other end.
        let holding = Holding::start();
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        // Only a body of known length ends together with a piece. The sender of that piece is gone, and waits for
        // nothing.
        if let Some(connection) = holding.end()
            && !self.body.is_end_stream()
        {
            // This may be a different task from the one polling: admin requests run in their own.
            connection.wake();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Future as _, poll_fn};
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http::Response;
    use http_body_util::{BodyExt as _, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::sync::Notify;

    use super::*;

    /// Answers one request with its body's length when told to, and counts its polls until then. The body is read here
    /// or `elsewhere`, in another task.
    async fn serve(stream: DuplexStream, elsewhere: bool, answer: Arc<Notify>, looked: Arc<AtomicUsize>) {
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (answer, looked) = (answer.clone(), looked.clone());
            async move {
                let taking = Quieted::new(request.into_body(), true).collect();
                let taken = if elsewhere { tokio::spawn(taking).await.unwrap() } else { taking.await };
                let body = taken.unwrap();
                let mut told = pin!(answer.notified());
                poll_fn(|cx| {
                    looked.fetch_add(1, Ordering::SeqCst);
                    told.as_mut().poll(cx)
                })
                .await;
                let length = body.to_bytes().len().to_string();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(length))))
            }
        });
        let mut quiet = Quiet::default();
        let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        poll_fn(|cx| connection.as_mut().poll(&mut quiet.context(cx))).await.unwrap();
    }

    /// Sends a request in these pieces; returns the answer, and the number of the service's polls.
    async fn ask(elsewhere: bool, pieces: &[&str]) -> (String, usize) {
        let (mut client, server) = tokio::io::duplex(4096);
        let (answer, looked) = (Arc::new(Notify::new()), Arc::<AtomicUsize>::default());
        let serving = tokio::spawn(serve(server, elsewhere, answer.clone(), looked.clone()));
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            // On this runtime's one thread, the server now does everything it can.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        answer.notify_one();
        let mut text = String::new();
        let reading = client.read_to_string(&mut text);
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect("an answer").unwrap();
        serving.await.unwrap();
        (text.rsplit("\r\n\r\n").next().unwrap().to_owned(), looked.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn a_body_that_was_taken_wakes_nobody() {
        let request = "POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 6\r\n\r\nsixsix";
        let seen = ask(false, &[request]).await;
        assert_eq!(seen, ("6".into(), 2), "when it began to wait, and when it was told");
    }

    #[tokio::test]
    async fn a_body_of_many_pieces_arrives() {
        let chunked = "POST / HTTP/1.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        let counted = "POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 40000\r\n\r\n";
        let expected =
            "POST / HTTP/1.1\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n";
        let half = "x".repeat(20_000);
        for elsewhere in [false, true] {
            assert_eq!(ask(elsewhere, &[expected, "six", "six"]).await.0, "6");
            for pieces in [
                &[chunked, "3\r\nsix\r\n", "3\r\nsix\r\n", "0\r\n\r\n"][..],
                &[&[chunked, "3\r\nsix\r\n3\r\nsix\r\n0\r\n\r\n"].concat()],
            ] {
                assert_eq!(ask(elsewhere, pieces).await.0, "6");
            }
            for pieces in [&[counted, &half, &half][..], &[&[counted, &half, &half].concat()]] {
                assert_eq!(ask(elsewhere, pieces).await.0, "40000");
            }
        }
    }
}
