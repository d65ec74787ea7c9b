//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::domain::label::Status;

use super::finish::FinishGuard;
use super::relay::Relay;

/// The body that a handler returns. Where it can, it reports upstream errors in the caller's format.
pub struct GatewayBody(Kind);

enum Kind {
    /// A complete body, and the record to finish when it has been handed over.
    Whole { bytes: Option<Bytes>, finish: Option<(Box<FinishGuard>, Status)> },
    /// A stream that is still coming.
    Relay(Box<Relay>),
}

impl GatewayBody {
    /// A complete body without a record to finish.
    pub fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole { bytes: Some(bytes), finish: None })
    }

    /// A whole answer: the request ends as `status` when the client has it, and as aborted when it leaves before.
    pub(super) fn answer(bytes: Bytes, guard: Box<FinishGuard>, status: Status) -> Self {
        Self(Kind::Whole { bytes: Some(bytes), finish: Some((guard, status)) })
    }

    /// The bytes of a complete body; `None` for a stream.
    pub(super) fn bytes(&self) -> Option<&Bytes> {
        match &self.0 {
            Kind::Whole { bytes, .. } => bytes.as_ref(),
            Kind::Relay(_) => None,
        }
    }

    /// A stream that is still coming; it finishes its record itself.
    pub(super) fn relay(relay: Relay) -> Self {
        Self(Kind::Relay(Box::new(relay)))
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Whole { bytes, finish } => {
                let frame = bytes.take().filter(|bytes| !bytes.is_empty());
                // hyper does not come back after the last byte of a body whose length it knows.
                end(finish);
                Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
            }
            Kind::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            // Even an empty body has to be polled first: that finishes the record.
            Kind::Whole { bytes, finish } => bytes.is_none() && finish.is_none(),
            Kind::Relay(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Relay(_) => SizeHint::default(),
        }
    }
}

fn end(finish: &mut Option<(Box<FinishGuard>, Status)>) {
    if let Some((guard, status)) = finish.take() {
        guard.finish(status);
    }
}
