//! One turn of the script: the provider's answer, and its behaviour on the wire.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;

use crate::domain::usage::Usage;

use super::Endpoint;
use super::answer::Answer;
use super::ask::Ask;
use super::body::Step;
use super::failure::Failure;
use super::gate::Gate;
use super::recorded::{Recording, RecordingError};
use super::render::{self, Pieces};

/// The provider's answer to one request. Cloning is cheap; rendered bytes are kept and shared by all equal requests.
///
/// Positions (`…_after(n)`) count the *pieces* of an answer: the events of a stream (Chat's role chunk is the first), the
/// chunks of a raw answer, or, after [`split`](Self::split), the parts it was split into. An answer that is one JSON body
/// has one piece; at position 0 nothing but the headers has been sent, at any later one the first half.
#[derive(Debug, Clone)]
pub struct Reply {
    what: Arc<What>,
    status: Option<StatusCode>,
    headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) delay: Duration,
    pub(super) hold: Option<Gate>,
    pace: Pace,
    split: Split,
    pauses: Vec<(usize, Pause)>,
    ending: Ending,
    cache: Cache,
}

/// Earlier renderings, by their requests.
type Cache = Arc<Mutex<Vec<(Ask, Arc<Rendered>)>>>;

#[derive(Debug)]
enum What {
    Answer(Answer),
    Failure(Failure),
    Raw {
        status: StatusCode,
        headers: HeaderMap,
        chunks: Vec<Bytes>,
    },
    Recorded(Recording),
    Garbage,
    Empty,
    /// Close the connection instead of answering.
    Drop,
}

/// How the pieces of an answer follow each other.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// Each is written to the socket before the next one is made.
    Flush,
    /// As many in one write as fit.
    Burst,
    /// This much time between two.
    Every(Duration),
}

#[derive(Debug, Clone)]
enum Split {
    No,
    /// Into parts of this many bytes.
    Size(usize),
    /// At these offsets.
    At(Vec<usize>),
}

#[derive(Debug, Clone)]
enum Pause {
    For(Duration),
    Until(Gate),
}

#[derive(Debug, Clone)]
enum Ending {
    Whole,
    /// Leave out `[DONE]`, `message_stop`, `response.completed`.
    WithoutTerminator,
    /// End the body properly, but after this many pieces.
    StopAfter(usize),
    CutAfter(usize),
    FailAfter(usize, Failure),
}

/// A reply as rendered for one shape of request.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) steps: Arc<[Step]>,
    /// Announced length; `None`: chunked.
    pub(super) length: Option<u64>,
    /// The usage reported to a client that reads the whole answer.
    pub(super) usage: Usage,
}

/// How many shapes of one reply are kept. A script rarely meets more than stream or not, usage or not, and a few models.
const CACHE_SHAPES: usize = 32;

impl Reply {
    fn of(what: What) -> Self {
        Self {
            what: Arc::new(what),
            status: None,
            headers: Vec::new(),
            delay: Duration::ZERO,
            hold: None,
            pace: Pace::Flush,
            split: Split::No,
            pauses: Vec::new(),
            ending: Ending::Whole,
            cache: Arc::default(),
        }
    }

    /// The model says this.
    pub fn answer(answer: Answer) -> Self {
        Self::of(What::Answer(answer))
    }

    /// The model says this text, streamed word by word.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self::answer(Answer::text(text))
    }

    /// An error with the provider's usual words.
    pub fn status(status: StatusCode) -> Self {
        Self::failure(Failure::new(status))
    }

    pub fn failure(failure: Failure) -> Self {
        Self::of(What::Failure(failure))
    }

    /// 429 with `Retry-After`.
    pub fn rate_limited(retry_after: Duration) -> Self {
        Self::failure(Failure::new(StatusCode::TOO_MANY_REQUESTS).retry_after(retry_after))
    }

    /// Status 200 with broken JSON, as a body or in an event.
    pub fn garbage() -> Self {
        Self::of(What::Garbage)
    }

    /// Status 200 with no byte in the body.
    pub fn empty() -> Self {
        Self::of(What::Empty)
    }

    /// Exactly these bytes, each chunk written on its own. Without a `content-length` among the headers the body is
    /// chunked.
    pub fn raw(
        status: StatusCode,
        headers: HeaderMap,
        chunks: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> Self {
        Self::of(What::Raw { status, headers, chunks: chunks.into_iter().map(Into::into).collect() })
    }

    /// An event stream of exactly these bytes.
    pub fn raw_stream(chunks: impl IntoIterator<Item = impl Into<Bytes>>) -> Self {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, render::EVENT_STREAM)]);
        Self::raw(StatusCode::OK, headers, chunks)
    }

    /// A JSON body of exactly these bytes.
    pub fn raw_json(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let headers = HeaderMap::from_iter([
            (header::CONTENT_TYPE, render::JSON),
            (header::CONTENT_LENGTH, HeaderValue::from(body.len())),
        ]);
        Self::raw(StatusCode::OK, headers, [body])
    }

    /// A recorded answer: `path` is a `.json` file, a `.chunks.txt` file (one SSE payload per line), or both without their
    /// endings. The folder's name says the format (`openai-chat`, `openai-responses`, `anthropic`, `embeddings`). A request
    /// gets the recording of the kind it asks for, stream or body, and the only one there is otherwise.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be read.
    pub fn recorded(path: impl AsRef<Path>) -> Result<Self, RecordingError> {
        Ok(Self::of(What::Recorded(Recording::load(path.as_ref())?)))
    }

    /// Reads the request, then closes the connection without a byte of answer.
    pub fn dropped() -> Self {
        Self::of(What::Drop)
    }

    /// Answers with this status instead of the reply's own.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self.changed()
    }

    /// Waits for `delay` before the headers.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self.changed()
    }

    /// Sends nothing, not even headers, until the gate opens.
    pub fn held_by(mut self, gate: &Gate) -> Self {
        self.hold = Some(gate.clone());
        self.changed()
    }

    /// Lets `gap` pass between two pieces.
    pub fn every(mut self, gap: Duration) -> Self {
        self.pace = Pace::Every(gap);
        self.changed()
    }

    /// Writes as many pieces at once as fit, instead of one by one.
    pub fn in_one_go(mut self) -> Self {
        self.pace = Pace::Burst;
        self.changed()
    }

    /// Falls silent after `pieces` pieces until the gate opens.
    pub fn stalled_after(mut self, pieces: usize, gate: &Gate) -> Self {
        self.pauses.push((pieces, Pause::Until(gate.clone())));
        self.changed()
    }

    /// Falls silent for `pause` after `pieces` pieces.
    pub fn paused_after(mut self, pieces: usize, pause: Duration) -> Self {
        self.pauses.push((pieces, Pause::For(pause)));
        self.changed()
    }

    /// Closes the connection after `pieces` pieces, so that the client sees an incomplete body.
    pub fn cut_after(mut self, pieces: usize) -> Self {
        self.ending = Ending::CutAfter(pieces);
        self.changed()
    }

    /// Ends the body properly after `pieces` pieces, dropping the rest.
    pub fn stopped_after(mut self, pieces: usize) -> Self {
        self.ending = Ending::StopAfter(pieces);
        self.changed()
    }

    /// Ends a stream properly, but without its last event (`[DONE]`, `message_stop`, `response.completed`).
    pub fn without_terminator(mut self) -> Self {
        self.ending = Ending::WithoutTerminator;
        self.changed()
    }

    /// Reports a failure in the stream after `pieces` pieces and ends the body properly. Does not change an answer that
    /// is not a stream.
    pub fn failed_after(mut self, pieces: usize, failure: Failure) -> Self {
        self.ending = Ending::FailAfter(pieces, failure);
        self.changed()
    }

    /// Cuts the body into pieces of `size` bytes, regardless of event boundaries.
    pub fn split(mut self, size: usize) -> Self {
        self.split = Split::Size(size.max(1));
        self.changed()
    }

    /// Cuts the bytes of the body at these offsets.
    pub fn split_at(mut self, offsets: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets: Vec<usize> = offsets.into_iter().collect();
        offsets.sort_unstable();
        self.split = Split::At(offsets);
        self.changed()
    }

    /// A changed reply must not share its original's renderings.
    fn changed(mut self) -> Self {
        self.cache = Arc::default();
        self
    }

    pub(super) fn drops_connection(&self) -> bool {
        matches!(*self.what, What::Drop)
    }

    /// The reply in the shape that `ask` gets, from the cache when such a request was answered before.
    pub(super) fn render(&self, ask: &Ask) -> Arc<Rendered> {
        if let Some((_, rendered)) = self.cache.lock().iter().find(|(shape, _)| shape.is_answered_like(ask)) {
            return Arc::clone(rendered);
        }
        let rendered = Arc::new(self.render_anew(ask));
        let mut cache = self.cache.lock();
        if cache.len() < CACHE_SHAPES {
            cache.push((ask.clone(), Arc::clone(&rendered)));
        }
        rendered
    }

    fn render_anew(&self, ask: &Ask) -> Rendered {
        let (status, mut headers, pieces) = self.pieces(ask);
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
        let (fixed_length, whole) = (pieces.fixed_length, total_length(&pieces.parts));
        let usage = match self.ending {
            Ending::Whole | Ending::WithoutTerminator => pieces.usage,
            Ending::FailAfter(..) if !pieces.is_stream => pieces.usage,
            _ => Usage::default(),
        };
        let steps = self.steps(ask.endpoint, pieces);
        // Only a body that is cut announces more than it sends.
        let sent = if matches!(self.ending, Ending::CutAfter(_)) { whole } else { sent_length(&steps) };
        let length = fixed_length.then_some(sent);
        Rendered { status: self.status.unwrap_or(status), headers, steps, length, usage }
    }

    /// Status, headers and the pieces of the undisturbed answer.
    fn pieces(&self, ask: &Ask) -> (StatusCode, HeaderMap, Pieces) {
        let typed = |kind: HeaderValue| HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        match &*self.what {
            What::Answer(answer) => {
                let pieces = render::answer(answer, ask);
                (StatusCode::OK, typed(pieces.content_type()), pieces)
            }
            What::Recorded(recording) => {
                let pieces = recording.pieces(ask.stream);
                (StatusCode::OK, typed(pieces.content_type()), pieces)
            }
            What::Failure(failure) => {
                let mut headers = typed(render::JSON);
                if let Some(delay) = failure.retry_after {
                    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
                    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                (failure.status, headers, Pieces::json(failure.body(ask.endpoint), Usage::default()))
            }
            What::Raw { status, headers, chunks } => {
                let pieces = Pieces {
                    is_stream: true,
                    // hyper keeps to a length among the headers, which a script may set wrong on purpose.
                    fixed_length: false,
                    parts: chunks.clone(),
                    terminator: 0,
                    usage: Usage::default(),
                };
                (*status, headers.clone(), pieces)
            }
            What::Garbage if ask.stream => {
                let parts = vec![
                    Bytes::from_static(b"data: {\"id\": \"chatcmpl-1\", \"choices\": [{\"del\n\n"),
                    Bytes::from_static(b"data: [DONE]\n\n"),
                ];
                (StatusCode::OK, typed(render::EVENT_STREAM), Pieces::stream(parts, 1, Usage::default()))
            }
            What::Garbage => {
                let body = Bytes::from_static(b"{\"id\": \"chatcmpl-1\", \"choices\": [{\"mess");
                (StatusCode::OK, typed(render::JSON), Pieces::json(body, Usage::default()))
            }
            What::Empty | What::Drop => {
                let kind = if ask.stream { render::EVENT_STREAM } else { render::JSON };
                (StatusCode::OK, typed(kind), Pieces::json(Bytes::new(), Usage::default()))
            }
        }
    }

    /// Turns the pieces into timed steps, and breaks them off as the ending requires.
    fn steps(&self, endpoint: Endpoint, pieces: Pieces) -> Arc<[Step]> {
        let Pieces { is_stream, mut parts, terminator, .. } = pieces;
        match &self.ending {
            Ending::WithoutTerminator => parts.truncate(parts.len().saturating_sub(terminator)),
            Ending::FailAfter(at, failure) if is_stream => {
                parts.truncate(*at);
                parts.extend(failure.stream_events(endpoint, *at));
            }
            _ => {}
        }
        let parts = self.split.apply(parts);
        // A body that is one piece is broken off in its middle.
        let disturbed =
            !self.pauses.is_empty() || matches!(self.ending, Ending::CutAfter(_) | Ending::StopAfter(_));
        let parts = if !is_stream && disturbed && parts.len() == 1 { halves(parts) } else { parts };

        let end = match self.ending {
            // A whole body that is cut lacks at least its last piece: with all of them it would be an answer.
            Ending::CutAfter(at) if !is_stream => at.min(parts.len().saturating_sub(1)),
            Ending::CutAfter(at) | Ending::StopAfter(at) => at.min(parts.len()),
            _ => parts.len(),
        };
        let mut steps = Vec::with_capacity(parts.len() * 2);
        for (index, part) in parts.into_iter().take(end).enumerate() {
            self.push_pauses(&mut steps, index);
            if index > 0 {
                match self.pace {
                    Pace::Flush => steps.push(Step::Flush),
                    Pace::Burst => {}
                    Pace::Every(gap) => steps.push(Step::Sleep(gap)),
                }
            }
            steps.push(Step::Send(part));
        }
        self.push_pauses(&mut steps, end);
        if matches!(self.ending, Ending::CutAfter(_)) {
            steps.push(Step::Cut);
        }
        steps.into()
    }

    fn push_pauses(&self, steps: &mut Vec<Step>, index: usize) {
        for (_, pause) in self.pauses.iter().filter(|(at, _)| *at == index) {
            steps.push(match pause {
                Pause::For(pause) => Step::Sleep(*pause),
                Pause::Until(gate) => Step::Wait(gate.clone()),
            });
        }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::answer(answer)
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        Self::failure(failure)
    }
}

impl Split {
    fn apply(&self, parts: Vec<Bytes>) -> Vec<Bytes> {
        let whole = || Bytes::from(parts.concat());
        match self {
            Self::No => parts,
            Self::Size(size) => {
                let whole = whole();
                (0..whole.len())
                    .step_by(*size)
                    .map(|at| whole.slice(at..whole.len().min(at + size)))
                    .collect()
            }
            Self::At(offsets) => {
                let mut rest = whole();
                let mut taken = 0;
                let mut pieces = Vec::with_capacity(offsets.len() + 1);
                for offset in offsets {
                    let piece = rest.split_to(offset.saturating_sub(taken).min(rest.len()));
                    taken += piece.len();
                    if !piece.is_empty() {
                        pieces.push(piece);
                    }
                }
                if !rest.is_empty() {
                    pieces.push(rest);
                }
                pieces
            }
        }
    }
}

fn halves(parts: Vec<Bytes>) -> Vec<Bytes> {
    parts.into_iter().flat_map(|mut part| [part.split_to(part.len() / 2), part]).collect()
}

fn total_length(parts: &[Bytes]) -> u64 {
    u64::try_from(parts.iter().map(Bytes::len).sum::<usize>()).unwrap_or(u64::MAX)
}

fn sent_length(steps: &[Step]) -> u64 {
    let sent = steps.iter().map(|step| if let Step::Send(bytes) = step { bytes.len() } else { 0 });
    u64::try_from(sent.sum::<usize>()).unwrap_or(u64::MAX)
}
