//! Watching a stream that is forwarded as it comes: for the first token, the usage, how it ended and what went wrong.

mod anthropic;
mod chat;
mod responses;
mod template;

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;

use super::error::{ApiError, error_event, parse_error, plain_message};
use super::lenient::{Raw, json_object};
use super::sse::{BLANK_LINE, SseEvent, SseScanner};
use super::usage::AnthropicUsage;
use crate::domain::label::{ApiFormat, FinishReason};
use crate::domain::usage::Usage;

use template::Template;

pub(super) use anthropic::finish_reason as anthropic_finish_reason;
pub(super) use chat::Choices;
pub(super) use responses::Response;

/// The facts read from a stream so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether a content token came: text, reasoning, a refusal or (part of) a tool call; not a mere role or an empty
    /// string.
    pub first_token: bool,
    /// The last value of each field.
    pub usage: Usage,
    pub finish_reason: Option<FinishReason>,
    /// Whether the answer is complete: chat `[DONE]` or a finish reason of every choice that has spoken, Anthropic
    /// `message_stop`, Responses `response.completed`, `.incomplete` or `.failed`. A stream that ends without it was
    /// cut off.
    pub terminal: bool,
    /// Whether `[DONE]` came.
    pub done: bool,
    /// Whether a choice of a chat went on after it had finished, so that its finish reason is not the end; only
    /// `[DONE]` or the end of the connection is.
    pub goes_on: bool,
    /// Whether the provider sent an error as an event.
    pub failed: bool,
    /// Whether that error is not where clients of this format look for one.
    pub odd_failure: bool,
    /// Whether an event was not JSON, or too large to be read.
    pub malformed: bool,
}

impl Seen {
    /// Whether the usage is that of the whole answer, and not what a stream tells of it half-way.
    pub fn is_counted(&self) -> bool {
        self.usage.completion.is_some() && (self.terminal || self.finish_reason.is_some())
    }

    /// Whether the answer is complete, though more events may follow.
    pub fn is_complete(&self) -> bool {
        self.terminal && (self.done || !self.goes_on)
    }

    /// An event is an error in a shape that this format does not have: proxies and self-hosted servers write OpenAI's
    /// into streams of any format.
    fn fail_oddly(&mut self) {
        self.odd_failure |= !self.failed;
        self.failed = true;
    }
}

/// How a reader classifies an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing but content.
    Content,
    /// Nothing of interest.
    Idle,
    /// Usage, an end or an error, perhaps beside content.
    Telling,
    /// A chat chunk with nothing but the usage.
    UsageOnly,
    /// Not JSON.
    Malformed,
}

/// Reads the events of one stream.
#[derive(Debug)]
struct Reader {
    format: ApiFormat,
    /// The usage of an Anthropic stream so far, in its own fields.
    usage: AnthropicUsage,
    /// The choices of a chat.
    choices: chat::Progress,
    /// Events so far, without empty ones.
    events: u64,
    /// Those that hold nothing but content.
    spoken: u64,
    template: Template,
    /// The first error that the provider sent as an event. Boxed, because there hardly ever is one.
    failure: Option<Box<ApiError>>,
}

impl Reader {
    fn new(format: ApiFormat) -> Self {
        Self {
            format,
            usage: AnthropicUsage::default(),
            choices: chat::Progress::default(),
            events: 0,
            spoken: 0,
            template: Template::default(),
            failure: None,
        }
    }

    fn read(&mut self, event: &SseEvent<'_>, seen: &mut Seen) -> Kind {
        // Some proxies send events with empty data as heartbeats.
        let data = event.data.trim_ascii();
        if data.is_empty() {
            return Kind::Idle;
        }
        if data == "[DONE]" {
            seen.done = true;
            seen.terminal |= self.format == ApiFormat::OpenAiChat;
            return Kind::Telling;
        }
        self.events += 1;
        if event.event == Some(ERROR) {
            return self.read_named_error(event, data, seen);
        }
        // After a finish reason it matters whether more content follows.
        if !self.choices.has_finished() && self.template.fits(data.as_bytes()) {
            self.spoken += 1;
            return Kind::Content;
        }
        let kind = match self.format {
            ApiFormat::OpenAiChat => chat::read(data, &mut self.choices, seen),
            ApiFormat::OpenAiResponses => responses::read(event.event, data, seen),
            ApiFormat::Anthropic => anthropic::read(event.event, data, &mut self.usage, seen),
        };
        if seen.failed {
            self.failed(data);
        }
        if kind == Some(Kind::Content) {
            self.spoken += 1;
            self.template.learn(data.as_bytes());
        }
        kind.unwrap_or(Kind::Malformed)
    }

    /// Reads an event that is called an error: it is one, whatever its `data` holds, unless that was cut off.
    fn read_named_error(&mut self, event: &SseEvent<'_>, data: &str, seen: &mut Seen) -> Kind {
        let is_json = serde_json::from_str::<IgnoredAny>(data).is_ok();
        if !is_json && plain_message(data).is_none() {
            return Kind::Malformed;
        }
        let named: Named<'_> = Raw::of(data).object().unwrap_or_default();
        let is_where_clients_look = match self.format {
            ApiFormat::OpenAiChat => is_error(named.error),
            ApiFormat::OpenAiResponses => is_error(named.error) || names_error(named.kind),
            ApiFormat::Anthropic => true,
        };
        if is_where_clients_look && !event.is_error_line {
            seen.failed = true;
        } else {
            seen.fail_oddly();
        }
        self.failed(data);
        Kind::Telling
    }

    /// The event that holds `data` is an error; the first one counts.
    fn failed(&mut self, data: &str) {
        if self.failure.is_none() {
            self.failure = Some(Box::new(parse_error(200, data.as_bytes())));
        }
    }
}

json_object! {
    /// The data of an event that is called an error.
    struct Named<'de> {
        kind: Raw<'de> = "type",
        error: Raw<'de> = "error",
    }
}

/// Watches one stream of events of one format.
#[derive(Debug)]
pub struct StreamWatcher {
    scanner: SseScanner,
    reader: Reader,
    seen: Seen,
    /// Whether usage-only chunks are cut out.
    strip: bool,
    /// Bytes of an event that is not complete, kept back because it may have to be cut out.
    held: BytesMut,
    /// Whether the last event was cut out, so that the LF of its CRLF must be cut too.
    cut_last: bool,
    /// The stream has ended within an event of which bytes were forwarded.
    ended_within: bool,
    /// An odd failure was told again, and nothing behind it is forwarded.
    retold: bool,
}

impl StreamWatcher {
    /// Watches a stream of `format`. With `strip_usage_chunk` (chat only; for when the gateway asked for the usage and
    /// the client did not) the chunk with empty `choices` and a `usage` is not forwarded.
    pub fn new(format: ApiFormat, strip_usage_chunk: bool) -> Self {
        Self {
            scanner: SseScanner::new(),
            reader: Reader::new(format),
            seen: Seen::default(),
            strip: strip_usage_chunk && format == ApiFormat::OpenAiChat,
            held: BytesMut::new(),
            cut_last: false,
            ended_within: false,
            retold: false,
        }
    }

    /// The facts read so far.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Whether the stream has had its last event: nothing may follow, however its connection ends.
    pub fn is_over(&self) -> bool {
        self.seen.done || (self.seen.terminal && self.reader.format != ApiFormat::OpenAiChat)
    }

    /// The first error that the provider sent as an event, with the status that it would have had outside of a stream.
    pub fn failure(&self) -> Option<&ApiError> {
        self.reader.failure.as_deref()
    }

    /// A guess at the tokens of the answer so far: one for each event of content. Some providers send several at once.
    pub fn guessed_tokens(&self) -> u64 {
        self.reader.spoken
    }

    /// The number that the next event of a Responses stream has: they are counted from 0.
    pub fn next_sequence_number(&self) -> u64 {
        self.reader.events
    }

    /// The event of which the client has had a part: where it begins, and its bytes so far. `None`: it is between events.
    pub fn unfinished_event(&self) -> Option<(u64, &[u8])> {
        (!self.is_between_events()).then(|| (self.scanner.pending_from(), self.scanner.pending()))
    }

    /// Whether the forwarded bytes end where an event ends, so that another event may follow. Bytes that are held back
    /// do not count: the client has not seen them.
    pub fn is_between_events(&self) -> bool {
        self.retold
            || (!self.ended_within && (self.strip || self.scanner.pending_from() == self.scanner.position()))
    }

    /// Reads `chunk` and returns the bytes to forward now: the same bytes, uncopied, unless usage chunks are cut out;
    /// then it may be empty, because a trailing incomplete event waits for its end. An error in a shape that the format
    /// does not have is forwarded too, then told again in the right one, and ends what is forwarded.
    pub fn feed(&mut self, chunk: Bytes) -> Bytes {
        let before = self.scanner.position();
        let cut_line_feed = self.cut_last && self.scanner.owes_line_feed() && chunk.first() == Some(&b'\n');
        let mut cuts = Vec::new();
        let mut odd_end = None;
        let Self { scanner, reader, seen, strip, .. } = self;
        let fed = scanner.feed(&chunk, |event| {
            if seen.odd_failure {
                return;
            }
            match reader.read(&event, seen) {
                Kind::UsageOnly if *strip => cuts.push(event.range),
                Kind::Malformed => seen.malformed = true,
                Kind::Telling if seen.odd_failure => odd_end = Some(event.range.end),
                Kind::UsageOnly | Kind::Content | Kind::Idle | Kind::Telling => {}
            }
        });
        seen.malformed |= fed.is_err() && !seen.odd_failure;
        if self.retold {
            return Bytes::new();
        }
        let chunk = match odd_end {
            Some(end) => chunk.slice(..offset(before, end, &chunk)),
            None => chunk,
        };
        let out = if !self.strip || chunk.is_empty() {
            chunk
        } else {
            self.cut_last = cuts.last().is_some_and(|cut| cut.end == self.scanner.position());
            self.forward(&chunk, before, cut_line_feed, &cuts)
        };
        if odd_end.is_some() { self.retell(&out) } else { out }
    }

    /// `told`, which ends with an odd failure, and that failure as an event of this format.
    fn retell(&mut self, told: &[u8]) -> Bytes {
        self.retold = true;
        // The odd event has no number.
        let number = self.next_sequence_number() - 1;
        let retold = self.failure().map(|error| error_event(self.reader.format, error, Some(number)));
        [told, &retold.unwrap_or_default()].concat().into()
    }

    /// The part of `chunk` that can be forwarded, without `cuts`; `chunk` begins at the position `before` of the
    /// stream.
    fn forward(&mut self, chunk: &Bytes, before: u64, cut_line_feed: bool, cuts: &[Range<u64>]) -> Bytes {
        let offset = |position: u64| offset(before, position, chunk);
        let complete = offset(self.scanner.pending_from());
        if complete == chunk.len() && self.held.is_empty() && cuts.is_empty() && !cut_line_feed {
            return chunk.clone();
        }
        let mut from = usize::from(cut_line_feed);
        let mut pieces = Vec::with_capacity(cuts.len() + 1);
        for cut in cuts {
            if cut.start < before {
                self.held.clear();
            }
            pieces.push(from..offset(cut.start));
            from = offset(cut.end);
        }
        pieces.push(from..complete);
        pieces.retain(|piece| !piece.is_empty());
        let out = match (&pieces[..], self.held.is_empty() || complete == 0) {
            ([], true) => Bytes::new(),
            ([piece], true) => chunk.slice(piece.clone()),
            (pieces, _) => {
                for piece in pieces {
                    self.held.extend_from_slice(&chunk[piece.clone()]);
                }
                self.held.split().freeze()
            }
        };
        self.held.extend_from_slice(&chunk[from.max(complete)..]);
        out
    }

    /// Reads the rest as if a blank line followed it, and returns the bytes held back.
    pub fn finish(&mut self) -> Bytes {
        self.ended_within = !self.is_between_events();
        let mut cut = false;
        let (reader, seen) = (&mut self.reader, &mut self.seen);
        // A rest that is not JSON is an event that was cut off, which `terminal` shows, not `malformed`.
        if !self.retold {
            self.scanner.finish(|event| cut = reader.read(&event, seen) == Kind::UsageOnly);
        }
        let held = self.held.split().freeze();
        if self.seen.odd_failure && !self.retold {
            return self.retell(&[&held, BLANK_LINE].concat());
        }
        if cut && self.strip { Bytes::new() } else { held }
    }
}

/// The place in `chunk`, which begins at the position `before` of a stream, of a later position.
fn offset(before: u64, position: u64, chunk: &[u8]) -> usize {
    usize::try_from(position.saturating_sub(before)).map_or(chunk.len(), |at| at.min(chunk.len()))
}

/// Whether the value of an `error` field is an error: an object or a text that is not empty.
pub(super) fn is_error(value: Raw<'_>) -> bool {
    (value.is_object() && value.is_filled()) || value.text().is_some()
}

/// Whether a name of an event or an object says that it is an error: self-hosted servers (vLLM, FastChat) write
/// `"object": "error"`, without an envelope.
fn names_error(name: Raw<'_>) -> bool {
    name.text().as_deref() == Some(ERROR)
}

/// The name of errors.
const ERROR: &str = "error";

#[cfg(test)]
mod tests;
