//! What happens to a stream between provider and client.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::domain::label::ApiFormat;
use crate::wire::error::{ApiError, error_event};
use crate::wire::watch::{Seen, StreamWatcher};

/// Forwards a stream as it comes, or in another format.
pub(super) enum Transform {
    /// Client and provider speak the same format.
    Pass(StreamWatcher),
}

impl Transform {
    /// A stream that is only watched; with `strip_usage` the usage chunk that the gateway asked for is cut out.
    pub(super) fn pass(format: ApiFormat, strip_usage: bool) -> Self {
        Self::Pass(StreamWatcher::new(format, strip_usage))
    }

    /// What the provider has said so far.
    pub(super) fn seen(&self) -> &Seen {
        match self {
            Self::Pass(watcher) => watcher.seen(),
        }
    }

    /// Takes a chunk from the provider in; what the client gets goes to `out`.
    pub(super) fn feed(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) {
        match self {
            Self::Pass(watcher) => push(watcher.feed(chunk), out),
        }
    }

    /// The provider's stream ended as it should.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Bytes>) {
        match self {
            Self::Pass(watcher) => push(watcher.finish(), out),
        }
    }

    /// The provider's stream died. Ends the client's with an error event of its format, unless it stands in the middle of
    /// an event; returns whether it could.
    pub(super) fn fail(&mut self, client: ApiFormat, error: &ApiError, out: &mut VecDeque<Bytes>) -> bool {
        match self {
            Self::Pass(watcher) => {
                let between = watcher.is_between_events();
                if between {
                    out.push_back(error_event(client, error, None));
                }
                between
            }
        }
    }
}

fn push(bytes: Bytes, out: &mut VecDeque<Bytes>) {
    if !bytes.is_empty() {
        out.push_back(bytes);
    }
}
