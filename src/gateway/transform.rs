//! Transforming a stream between provider and client.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::domain::label::ApiFormat;
use crate::wire::convert::{AnswerContext, StreamConverter};
use crate::wire::error::{ApiError, error_event};
use crate::wire::sse::{BLANK_LINE, SseScanner};
use crate::wire::watch::{Seen, StreamWatcher};

/// How an answer is delivered to the client.
pub(super) enum Plan {
    /// Unchanged, to an error that the client would read over; with `strip_usage`, without the usage chunk, which only the
    /// gateway asked for.
    Pass { format: ApiFormat, strip_usage: bool },
    /// Converted to the client's format.
    Convert { provider: ApiFormat, client: ApiFormat, context: Box<AnswerContext> },
}

impl Plan {
    /// The context for conversion; `None`: the answer is passed through.
    pub(super) fn context(&self) -> Option<&AnswerContext> {
        match self {
            Self::Pass { .. } => None,
            Self::Convert { context, .. } => Some(context),
        }
    }
}

/// Forwards a stream as it comes, or in another format.
#[expect(
    clippy::large_enum_variant,
    reason = "the large variant is the common one, and is not moved once it runs"
)]
pub(super) enum Transform {
    /// Client and provider speak the same format.
    Pass(StreamWatcher),
    /// They do not.
    Convert(Box<Conversion>),
}

/// A stream that is converted event by event, and watched in the provider's format.
pub(super) struct Conversion {
    watcher: StreamWatcher,
    scanner: SseScanner,
    converter: StreamConverter,
    out: BytesMut,
}

impl Transform {
    pub(super) fn new(plan: Plan) -> Self {
        match plan {
            Plan::Pass { format, strip_usage } => Self::Pass(StreamWatcher::new(format, strip_usage)),
            Plan::Convert { provider, client, context } => Self::Convert(Box::new(Conversion {
                watcher: StreamWatcher::new(provider, false),
                scanner: SseScanner::new(),
                converter: StreamConverter::new(provider, client, *context),
                out: BytesMut::new(),
            })),
        }
    }

    /// What the watcher has seen of the provider's stream.
    pub(super) fn seen(&self) -> &Seen {
        match self {
            Self::Pass(watcher) => watcher.seen(),
            Self::Convert(conversion) => conversion.watcher.seen(),
        }
    }

    /// A guess at the tokens of the provider's answer so far.
    pub(super) fn guessed_tokens(&self) -> u64 {
        match self {
            Self::Pass(watcher) => watcher.guessed_tokens(),
            Self::Convert(conversion) => conversion.watcher.guessed_tokens(),
        }
    }

    /// Whether the provider has sent its last event.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Pass(watcher) => watcher.is_over(),
            Self::Convert(conversion) => conversion.watcher.is_over(),
        }
    }

    /// The event of which the client was sent a part: where it begins, and its bytes so far.
    pub(super) fn unfinished_event(&self) -> Option<(u64, &[u8])> {
        match self {
            Self::Pass(watcher) => watcher.unfinished_event(),
            Self::Convert(_) => None,
        }
    }

    /// The error that the provider reported within the stream.
    pub(super) fn failure(&self) -> Option<&ApiError> {
        match self {
            Self::Pass(watcher) => watcher.failure(),
            Self::Convert(conversion) => conversion.watcher.failure(),
        }
    }

    /// Whether the client was told of an error. The converter reads more closely than the watcher, and may find an
    /// error that the provider did not report.
    pub(super) fn has_failed(&self) -> bool {
        match self {
            Self::Pass(_) => false,
            Self::Convert(conversion) => conversion.converter.has_failed(),
        }
    }

    /// Whether the client was sent a whole answer in its format.
    pub(super) fn client_has_all(&self) -> bool {
        match self {
            Self::Pass(watcher) => watcher.seen().is_complete(),
            Self::Convert(conversion) => conversion.converter.is_done(),
        }
    }

    /// Takes in a chunk from the provider; the client's bytes go to `out`.
    pub(super) fn feed(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) {
        match self {
            Self::Pass(watcher) => push(watcher.feed(chunk), out),
            Self::Convert(conversion) => {
                let Conversion { watcher, scanner, converter, out: events } = &mut **conversion;
                // An event too large to be read is noted by the watcher as malformed.
                let _ = scanner.feed(&chunk, |event| converter.feed(event.event, event.data, events));
                watcher.feed(chunk);
                push(events.split().freeze(), out);
            }
        }
    }

    /// Reads the last event of a stream that has ended, for providers that leave out the blank line behind it. Returns the
    /// bytes that were held back: the client's, if the stream turns out to be whole.
    pub(super) fn read_rest(&mut self) -> Bytes {
        match self {
            Self::Pass(watcher) => watcher.finish(),
            Self::Convert(conversion) => conversion.watcher.finish(),
        }
    }

    /// The provider's stream ended as it should; `rest` is what [`read_rest`](Self::read_rest) returned. `needed`: it is whole
    /// only by that last event, which a client's SDK would drop without its blank line.
    pub(super) fn finish(&mut self, rest: Bytes, needed: bool, out: &mut VecDeque<Bytes>) {
        match self {
            Self::Pass(_) => {
                let is_ended = rest.ends_with(BLANK_LINE);
                push(rest, out);
                if needed && !is_ended {
                    out.push_back(Bytes::from_static(BLANK_LINE));
                }
            }
            Self::Convert(conversion) => {
                let Conversion { scanner, converter, out: events, .. } = &mut **conversion;
                scanner.finish(|event| converter.feed(event.event, event.data, events));
                converter.finish(events);
                push(events.split().freeze(), out);
            }
        }
    }

    /// The provider's stream died. Ends the client's with an error event of its format, unless it stands in the middle of
    /// an event; returns whether it could.
    pub(super) fn fail(&mut self, client: ApiFormat, error: &ApiError, out: &mut VecDeque<Bytes>) -> bool {
        match self {
            Self::Pass(watcher) => {
                let between = watcher.is_between_events();
                if between {
                    out.push_back(error_event(client, error, Some(watcher.next_sequence_number())));
                }
                between
            }
            Self::Convert(conversion) => {
                let Conversion { converter, out: events, .. } = &mut **conversion;
                converter.fail(error, events);
                push(events.split().freeze(), out);
                true
            }
        }
    }
}

fn push(bytes: Bytes, out: &mut VecDeque<Bytes>) {
    if !bytes.is_empty() {
        out.push_back(bytes);
    }
}
