//! The body of an answer on its way to the client.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::domain::label::Status;

use super::finish::FinishGuard;
use super::relay::Relay;

/// What a handler returns as a body. It never fails on its own: what goes wrong upstream is told in the caller's format.
pub enum GatewayBody {
    /// Bytes that are there, and the record to finish when they have been handed over.
    Whole { bytes: Option<Bytes>, finish: Option<(Box<FinishGuard>, Status)> },
    /// Chunks that are there, as an event stream.
    Chunks { chunks: VecDeque<Bytes>, finish: Option<(Box<FinishGuard>, Status)> },
    /// A stream that is still coming.
    Relay(Box<Relay>),
}

impl GatewayBody {
    /// A body that nothing depends on.
    pub fn whole(bytes: Bytes) -> Self {
        Self::Whole { bytes: Some(bytes), finish: None }
    }

    /// A whole answer: the request ends as `status` when the client has it, and as aborted when it leaves before.
    pub(super) fn answer(bytes: Bytes, guard: Box<FinishGuard>, status: Status) -> Self {
        Self::Whole { bytes: Some(bytes), finish: Some((guard, status)) }
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::Whole { bytes, finish } => {
                let frame = bytes.take().filter(|bytes| !bytes.is_empty());
                // hyper does not come back after the last byte of a body whose length it knows.
                end(finish);
                Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Chunks { chunks, finish } => {
                let frame = chunks.pop_front();
                if chunks.is_empty() {
                    end(finish);
                }
                Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            // Not before it was polled, even when empty: the record has to be finished.
            Self::Whole { bytes, finish } => bytes.is_none() && finish.is_none(),
            Self::Chunks { chunks, finish } => chunks.is_empty() && finish.is_none(),
            Self::Relay(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { bytes, .. } => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Chunks { .. } | Self::Relay(_) => SizeHint::default(),
        }
    }
}

fn end(finish: &mut Option<(Box<FinishGuard>, Status)>) {
    if let Some((guard, status)) = finish.take() {
        guard.finish(status);
    }
}
