//! One HTTP/1.1 connection to an upstream, one request after the other.
//!
//! Why not hyper's: its client hands each request over a channel to the connection's dispatcher and the answer back
//! over a second one, is driven from outside, and writes by way of a queue. That is a tenth of a request's cost here
//! (docs/PERFORMANCE.md). The gateway needs less: it sends whole bodies with `GET` and `POST`, never upgrades and does
//! not pipeline. `httparse` reads heads and chunk sizes, as it does for hyper; HTTP/2 is left to hyper.
//!
//! An answer may come before the request has been written (a refusal of a large body): it is passed on while the rest
//! is written, and the connection is reused only when both are complete.

mod framing;
mod head;

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::SizeHint;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use self::framing::{Decoded, Framing};
pub(super) use self::head::OutgoingHead;
use self::head::take_head;

/// Size of a read, in bytes: at first, and at most, when answers come faster.
const READ_MIN: usize = 8 << 10;
const READ_MAX: usize = 256 << 10;

/// A body up to this length is copied behind its head: that costs less than having the kernel gather the two.
const JOINED: usize = 4096;

/// The received bytes are not HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not HTTP: {0}")]
pub(super) struct Garbled(&'static str);

/// Why an answer did not arrive, or broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error(transparent)]
    Garbled(#[from] Garbled),
    #[error("the connection was closed before the answer was whole")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// Before the first byte of the request was on its way.
    #[error("the connection was broken: {0}")]
    Unsent(io::Error),
    /// Before the first byte of an answer.
    #[error("the connection broke before the answer: {0}")]
    Unanswered(io::Error),
}

/// A connection.
pub(super) struct Http1<S> {
    io: TokioIo<S>,
    /// Received and not yet parsed.
    read: BytesMut,
    read_size: usize,
    /// The head being sent, and the body if it is short.
    head: Vec<u8>,
    /// Bytes of `head` already sent.
    head_sent: usize,
    /// The rest of a long body.
    body: Bytes,
    sending: bool,
    /// The framing of the answer being received.
    framing: Framing,
    keep_alive: bool,
}

impl<S: Read + Write + Unpin> Http1<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            io: TokioIo::new(stream),
            read: BytesMut::new(),
            read_size: READ_MIN,
            head: Vec::with_capacity(1024),
            head_sent: 0,
            body: Bytes::new(),
            sending: false,
            framing: Framing::Done,
            keep_alive: true,
        }
    }

    /// Whether the peer has closed the connection, or sent unsolicited bytes. Only for an idle connection.
    pub(super) fn is_stale(&mut self) -> bool {
        !self.read.is_empty() || self.poll_read(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Sends a request and waits for the head of its answer. The body then comes from [`poll_data`](Self::poll_data).
    ///
    /// # Errors
    /// [`ExchangeError`]; the connection cannot be used any more.
    pub(super) async fn send(
        &mut self,
        head: &OutgoingHead<'_>,
        body: Bytes,
    ) -> Result<Response<()>, ExchangeError> {
        self.head.clear();
        head.write(&mut self.head, body.len());
        self.head_sent = 0;
        self.body = body;
        if self.body.len() <= JOINED {
            self.head.extend_from_slice(&self.body);
            self.body = Bytes::new();
        }
        self.sending = true;
        // Until there is an answer.
        self.framing = Framing::Done;
        self.keep_alive = false;
        let mut broken: Option<io::Error> = None;
        // An informational answer.
        let mut heard = false;
        poll_fn(|cx| {
            if self.sending
                && let Poll::Ready(Err(error)) = self.poll_send(cx)
            {
                if self.head_sent == 0 {
                    return Poll::Ready(Err(ExchangeError::Unsent(error)));
                }
                // A peer that refuses a body may close the connection after its answer.
                broken = Some(error);
            }
            loop {
                if !self.read.is_empty()
                    && let Some(answer) = take_head(&mut self.read)?
                {
                    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
                        return Poll::Ready(Err(Garbled("it switches protocols").into()));
                    }
                    if answer.status.is_informational() {
                        heard = true;
                        continue;
                    }
                    self.framing = answer.framing;
                    self.keep_alive = answer.keep_alive && broken.is_none();
                    let mut response = Response::new(());
                    *response.status_mut() = answer.status;
                    *response.headers_mut() = answer.headers;
                    return Poll::Ready(Ok(response));
                }
                let read = match ready!(self.poll_read(cx)) {
                    Ok(0) => Err(None),
                    Ok(_) => Ok(()),
                    Err(error) => Err(Some(error)),
                };
                if let Err(error) = read {
                    // The first thing that went wrong says most.
                    let error = broken.take().or(error);
                    let silent = !heard && self.read.is_empty();
                    return Poll::Ready(Err(match error {
                        _ if silent => ExchangeError::Unanswered(
                            error.unwrap_or_else(|| ErrorKind::UnexpectedEof.into()),
                        ),
                        Some(error) => error.into(),
                        None => ExchangeError::Closed,
                    }));
                }
            }
        })
        .await
    }

    /// The next piece of the answer's body; `None`: it is over.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        if self.sending {
            // An error here does not matter any more: the answer has arrived.
            let _ = self.poll_send(cx);
        }
        loop {
            match self.framing.decode(&mut self.read) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Decoded::Done) => return Poll::Ready(None),
                Ok(Decoded::More) => {}
                Err(garbled) => return self.fail(garbled.into()),
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) if self.framing == Framing::UntilClose => {
                    self.framing = Framing::Done;
                    return Poll::Ready(None);
                }
                Ok(0) => return self.fail(ExchangeError::Closed),
                Ok(_) => {}
                Err(error) => return self.fail(error.into()),
            }
        }
    }

    fn fail(&mut self, error: ExchangeError) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        self.framing = Framing::Done;
        self.keep_alive = false;
        Poll::Ready(Some(Err(error)))
    }

    /// The answer is whole.
    pub(super) fn is_done(&self) -> bool {
        self.framing == Framing::Done
    }

    /// Whether the connection may carry another request.
    pub(super) fn is_free(&self) -> bool {
        self.is_done() && self.keep_alive && !self.sending && self.read.is_empty()
    }

    /// The remaining length of the answer's body.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Done => SizeHint::with_exact(0),
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }

    /// The answer has been passed on: shrinks buffers that it made grow.
    pub(super) fn rest(&mut self) {
        if self.read_size > READ_MIN || self.read.capacity() > READ_MIN {
            self.read = BytesMut::new();
            self.read_size = READ_MIN;
        }
        if self.head.capacity() > READ_MIN {
            self.head = Vec::new();
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Framing::Length(left) = self.framing {
            self.read_size = usize::try_from(left).unwrap_or(READ_MAX).clamp(self.read_size, READ_MAX);
        }
        let want = self.read_size;
        // Pieces of a stream are parts of this buffer and keep it alive, so it is filled before there is another.
        if !self.read.try_reclaim(want) && self.read.capacity() - self.read.len() < want / 4 {
            self.read.reserve(want);
        }
        let room = self.read.capacity() - self.read.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))?;
        if read == room && room >= want {
            self.read_size = (self.read_size * 2).min(READ_MAX);
        } else if read < want / 4 && !matches!(self.framing, Framing::Length(_)) {
            self.read_size = (self.read_size / 2).max(READ_MIN);
        }
        Poll::Ready(Ok(read))
    }

    /// Writes the rest of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(self.poll_write_all(cx));
        if result.is_err() {
            self.keep_alive = false;
        }
        self.sending = false;
        self.body = Bytes::new();
        Poll::Ready(result)
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = Pin::new(&mut self.io);
        loop {
            let head = &self.head[self.head_sent..];
            let written = match (head.is_empty(), self.body.is_empty()) {
                (true, true) => return io.poll_flush(cx),
                (true, false) => ready!(io.as_mut().poll_write(cx, &self.body))?,
                (false, true) => ready!(io.as_mut().poll_write(cx, head))?,
                (false, false) => ready!(
                    io.as_mut().poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(&self.body)])
                )?,
            };
            if written == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(head.len());
            self.head_sent += of_head;
            self.body.advance(written - of_head);
        }
    }
}

#[cfg(test)]
mod tests;
