//! The response body of a scripted answer: a list of steps, played while hyper polls it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::calls::CallGuard;
use super::gate::Gate;

/// One thing that happens while an answer is written.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Hand these bytes to the connection.
    Send(Bytes),
    /// Write everything handed over to the socket before going on.
    Flush,
    /// Be silent for this long.
    Sleep(Duration),
    /// Be silent until the gate opens.
    Wait(Gate),
    /// Write everything handed over, then close the connection in the middle of the answer.
    Cut,
}

/// Tells a connection to close as soon as everything handed to it has been written.
#[derive(Debug, Clone, Default)]
pub(super) struct CutSwitch(Arc<AtomicBool>);

impl CutSwitch {
    pub(super) fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Plays steps. Dropping it before the last one was played means that the client left.
pub(super) struct ScriptBody {
    steps: Arc<[Step]>,
    position: usize,
    /// Bytes still to come, when the length was announced.
    remaining: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
    asleep: bool,
    waiting: Option<BoxFuture<'static, ()>>,
    flushed: bool,
    cut: CutSwitch,
    guard: Option<CallGuard>,
}

impl ScriptBody {
    /// `length`: the announced length in bytes; `None` writes a chunked body.
    pub(super) fn new(steps: Arc<[Step]>, length: Option<u64>, cut: CutSwitch, guard: CallGuard) -> Self {
        let mut body = Self {
            steps,
            position: 0,
            remaining: length,
            sleep: None,
            asleep: false,
            waiting: None,
            flushed: false,
            cut,
            guard: Some(guard),
        };
        body.finish_if_played();
        body
    }

    /// A whole answer that no call is recorded for (control endpoints).
    pub(super) fn unrecorded(bytes: Bytes) -> Self {
        Self {
            remaining: u64::try_from(bytes.len()).ok(),
            steps: Arc::new([Step::Send(bytes)]),
            position: 0,
            sleep: None,
            asleep: false,
            waiting: None,
            flushed: false,
            cut: CutSwitch::default(),
            guard: None,
        }
    }

    fn advance(&mut self) {
        self.position += 1;
        self.finish_if_played();
    }

    fn finish_if_played(&mut self) {
        if self.position == self.steps.len()
            && let Some(guard) = self.guard.take()
        {
            guard.answered();
        }
    }
}

impl Body for ScriptBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        loop {
            match this.steps.get(this.position) {
                None => return Poll::Ready(None),
                Some(Step::Send(bytes)) => {
                    let bytes = bytes.clone();
                    if let Some(remaining) = &mut this.remaining {
                        *remaining = remaining.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                    }
                    this.advance();
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Step::Flush) if !this.flushed => {
                    // hyper flushes whenever the body is pending, and then polls again.
                    this.flushed = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Step::Flush) => {
                    this.flushed = false;
                    this.advance();
                }
                Some(Step::Sleep(pause)) => {
                    let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(*pause)));
                    if !this.asleep {
                        sleep.as_mut().reset(Instant::now() + *pause);
                        this.asleep = true;
                    }
                    ready!(sleep.as_mut().poll(cx));
                    this.asleep = false;
                    this.advance();
                }
                Some(Step::Wait(gate)) => {
                    let waiting = this.waiting.get_or_insert_with(|| gate.clone().pass().boxed());
                    ready!(waiting.poll_unpin(cx));
                    this.waiting = None;
                    this.advance();
                }
                Some(Step::Cut) => {
                    if let Some(guard) = this.guard.take() {
                        guard.cut();
                    }
                    this.cut.request();
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.position == self.steps.len()
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
