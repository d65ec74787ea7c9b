//! Server-Sent Events, read from chunks that may be cut anywhere.
//!
//! Source of the rules: WHATWG HTML § 9.2.5 "Parsing an event stream" and § 9.2.6 "Interpreting an event stream". One
//! field more than these is read: llama.cpp's servers of 2025 and before wrote `error: {…}` where an event has its data
//! (ggml-org/llama.cpp#16109), and then ended the stream as if all were well.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{BufMut, BytesMut};
use memchr::{memchr, memchr2};

/// The largest event that is read, in bytes. The largest real ones are the final events of the Responses format, which
/// repeat the whole answer, images included; a stream without any blank line must not fill the memory.
pub const MAX_EVENT_BYTES: usize = 16 << 20;

/// A buffer for cut events that grew past this many bytes is freed once its event is read.
const KEEP_BUFFER_BYTES: usize = 64 << 10;

/// Ends an event, whatever ends its last line.
pub(crate) const BLANK_LINE: &[u8] = b"\n\n";

/// May precede the first event.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// One event that has at least one `data` line, or an `error` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The `event` field; `None` when missing, empty or the standard's default, `message`.
    pub event: Option<&'a str>,
    /// Whether it is an `error` line, which reads as the data of an event named `error`. Clients do not read it.
    pub is_error_line: bool,
    /// The `data` lines, joined by line feeds. Bytes that are not UTF-8 read as U+FFFD.
    pub data: &'a str,
    /// Where the raw event lies in the stream, from the first byte ever fed; its blank line is included. One line feed
    /// more belongs to it when the blank line ended in a CR that was the last byte of a chunk and the next chunk
    /// begins with a LF (see [`SseScanner::owes_line_feed`]).
    pub range: Range<u64>,
}

/// An event grew past the limit; the rest of it is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {0} bytes")]
pub struct EventTooLarge(pub usize);

/// Finds the events in a byte stream. An event that is complete in one chunk is read in place; only the bytes of an
/// event that a chunk boundary cuts are copied, and at most `limit` of them are kept.
#[derive(Debug)]
pub struct SseScanner {
    limit: usize,
    /// The beginning of the event that the next chunk continues; empty while a too large event is skipped.
    tail: Vec<u8>,
    /// Bytes of the current event that came in earlier chunks.
    begun: usize,
    /// How many bytes were fed.
    position: u64,
    /// Whether the current line has no bytes yet.
    line_is_empty: bool,
    /// Whether the last byte was a CR, to which a LF that comes next belongs.
    after_cr: bool,
}

impl Default for SseScanner {
    fn default() -> Self {
        Self::with_limit(MAX_EVENT_BYTES)
    }
}

impl SseScanner {
    pub fn new() -> Self {
        Self::default()
    }

    /// A scanner that refuses events of more than `limit` bytes.
    fn with_limit(limit: usize) -> Self {
        Self { limit, tail: Vec::new(), begun: 0, position: 0, line_is_empty: true, after_cr: false }
    }

    /// Reads `chunk` and calls `on_event` for every event that ends in it.
    ///
    /// # Errors
    /// [`EventTooLarge`], once for each event past the limit. That event is skipped, the others are still delivered, and
    /// the scanner can go on.
    pub fn feed(
        &mut self,
        chunk: &[u8],
        mut on_event: impl FnMut(SseEvent<'_>),
    ) -> Result<(), EventTooLarge> {
        let mut result = Ok(());
        let mut from = 0;
        if self.owes_line_feed() && !chunk.is_empty() {
            self.after_cr = false;
            from = usize::from(chunk[0] == b'\n');
        }
        while let Some(end) = self.find_end(chunk, from) {
            let range = self.at(from) - self.begun as u64..self.at(end);
            let was_within = self.begun <= self.limit;
            if was_within && self.begun + (end - from) > self.limit {
                result = Err(EventTooLarge(self.limit));
            } else if self.begun == 0 {
                read_event(&chunk[from..end], range, &mut on_event);
            } else if was_within {
                self.tail.extend_from_slice(&chunk[from..end]);
                read_event(&self.tail, range, &mut on_event);
            }
            self.forget_tail();
            from = end;
        }
        if from < chunk.len() {
            let was_within = self.begun <= self.limit;
            self.begun += chunk.len() - from;
            if self.begun <= self.limit {
                self.tail.extend_from_slice(&chunk[from..]);
            } else if was_within {
                self.tail = Vec::new();
                result = Err(EventTooLarge(self.limit));
            }
        }
        self.position += chunk.len() as u64;
        result
    }

    /// Reads the rest after the last chunk as if a blank line followed it. The standard drops such a rest, but some
    /// providers omit the blank line after their last event.
    pub fn finish(&mut self, mut on_event: impl FnMut(SseEvent<'_>)) {
        let range = self.pending_from()..self.position;
        read_event(&self.tail, range, &mut on_event);
        self.forget_tail();
    }

    /// How many bytes were fed.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The start of the incomplete event; [`Self::position`] when there is none, or when it is skipped because it is
    /// too large.
    pub fn pending_from(&self) -> u64 {
        self.position - self.tail.len() as u64
    }

    /// The incomplete event so far; empty when it is skipped because it is too large.
    pub fn pending(&self) -> &[u8] {
        &self.tail
    }

    /// Whether a LF, if it comes next, is the second half of the CRLF that ended the last event.
    pub fn owes_line_feed(&self) -> bool {
        self.after_cr && self.begun == 0
    }

    fn at(&self, offset: usize) -> u64 {
        self.position + offset as u64
    }

    fn forget_tail(&mut self) {
        self.begun = 0;
        if self.tail.capacity() > KEEP_BUFFER_BYTES {
            self.tail = Vec::new();
        } else {
            self.tail.clear();
        }
    }

    /// The end of the current event (past its blank line), searched in `bytes` from `at` on.
    fn find_end(&mut self, bytes: &[u8], mut at: usize) -> Option<usize> {
        loop {
            if self.after_cr {
                let next = *bytes.get(at)?;
                self.after_cr = false;
                at += usize::from(next == b'\n');
            }
            let rest = &bytes[at..];
            let Some(length) = memchr2(b'\n', b'\r', rest) else {
                self.line_is_empty &= rest.is_empty();
                return None;
            };
            let blank = self.line_is_empty && length == 0;
            self.after_cr = rest[length] == b'\r';
            self.line_is_empty = true;
            at += length + 1;
            if blank {
                if self.after_cr && at < bytes.len() {
                    self.after_cr = false;
                    at += usize::from(bytes[at] == b'\n');
                }
                return Some(at);
            }
        }
    }
}

/// Reads the lines of one whole event and hands it on when it has data.
fn read_event(raw: &[u8], range: Range<u64>, on_event: &mut impl FnMut(SseEvent<'_>)) {
    let mut rest = raw;
    if range.start == 0 {
        rest = rest.strip_prefix(BOM).unwrap_or(rest);
    }
    let mut event: Option<&[u8]> = None;
    let mut data: Option<Cow<'_, [u8]>> = None;
    let mut error: Option<&[u8]> = None;
    while !rest.is_empty() {
        let (line, after) = split_line(rest);
        rest = after;
        if let Some(value) = field(line, b"data") {
            match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(lines) => {
                    let lines = lines.to_mut();
                    lines.push(b'\n');
                    lines.extend_from_slice(value);
                }
            }
        } else if let Some(value) = field(line, b"event") {
            event = Some(value);
        } else if let Some(value) = field(line, b"error") {
            error = Some(value);
        }
    }
    let is_error_line = data.is_none() && error.is_some();
    if is_error_line {
        event = Some(b"error");
        data = error.map(Cow::Borrowed);
    }
    let Some(data) = data else { return };
    let event = event.filter(|name| !name.is_empty() && *name != b"message").map(decode);
    on_event(SseEvent { event: event.as_deref(), is_error_line, data: &decode(&data), range });
}

/// Decodes UTF-8; wrong bytes become U+FFFD. Checking first is ten times faster than `from_utf8_lossy`, which goes byte
/// by byte.
fn decode(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

/// The first line of `bytes` without its end, and what follows. A CRLF may be read as a CR and an empty line: within an
/// event an empty line means nothing.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match memchr2(b'\n', b'\r', bytes) {
        Some(length) => (&bytes[..length], &bytes[length + 1..]),
        None => (bytes, &[]),
    }
}

/// The value of `line` if its field is `name`: what follows the colon, without one leading space.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// Appends one event. Line ends within `data` become several `data` lines; `event` must not contain any.
pub fn write_event(buf: &mut BytesMut, event: Option<&str>, data: &str) {
    buf.reserve(data.len() + event.map_or(0, |name| name.len() + 8) + 8);
    if let Some(name) = event {
        buf.put_slice(b"event: ");
        buf.put_slice(name.as_bytes());
        buf.put_u8(b'\n');
    }
    let mut rest = data.as_bytes();
    loop {
        let (line, after) = split_line(rest);
        buf.put_slice(b"data: ");
        buf.put_slice(line);
        buf.put_u8(b'\n');
        // Nothing consumed past the line: there was no line end, so this was the last line.
        if line.len() == rest.len() {
            break;
        }
        let crlf = rest[line.len()] == b'\r' && memchr(b'\n', after) == Some(0);
        rest = &after[usize::from(crlf)..];
    }
    buf.put_u8(b'\n');
}

/// Whether a body is an event stream, judged by its beginning and not its header; `None`: too few bytes to tell.
pub fn begins_as_events(bytes: &[u8]) -> Option<bool> {
    const FIELDS: [&[u8]; 6] = [b"data:", b"event:", b"error:", b"id:", b"retry:", b":"];
    if BOM.starts_with(bytes) {
        return None;
    }
    let rest = bytes.strip_prefix(BOM).unwrap_or(bytes).trim_ascii_start();
    if FIELDS.iter().any(|field| rest.starts_with(field)) {
        return Some(true);
    }
    FIELDS.iter().all(|field| !field.starts_with(rest)).then_some(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Event = (Option<String>, String);

    /// Every event of `chunks`, with the bytes of its range in the whole stream.
    fn scan(chunks: &[&[u8]]) -> (Vec<Event>, Vec<Vec<u8>>) {
        let stream = chunks.concat();
        let mut scanner = SseScanner::new();
        let (mut events, mut raw) = (Vec::new(), Vec::new());
        for chunk in chunks {
            scanner
                .feed(chunk, |event| {
                    events.push((event.event.map(str::to_owned), event.data.to_owned()));
                    let [start, end] =
                        [event.range.start, event.range.end].map(|at| usize::try_from(at).unwrap());
                    raw.push(stream[start..end].to_vec());
                })
                .unwrap();
        }
        (events, raw)
    }

    #[test]
    fn a_stream_is_known_by_its_first_bytes() {
        for stream in ["data: {}", "\u{feff}\r\n event:x", "id:", ":\n", "\n\nretry: 1"] {
            for end in 0..stream.len() {
                let seen = begins_as_events(&stream.as_bytes()[..end]);
                assert_ne!(seen, Some(false), "{stream:?} up to {end}");
            }
            assert_eq!(begins_as_events(stream.as_bytes()), Some(true), "{stream:?}");
        }
        for other in ["{\"data:\"", "<!doctype", "database", "\u{feff}{", "eventually", "Data:", "\u{e9}"] {
            assert_eq!(begins_as_events(other.as_bytes()), Some(false), "{other:?}");
        }
    }

    fn events(stream: &str) -> Vec<Event> {
        scan(&[stream.as_bytes()]).0
    }

    fn event(name: Option<&str>, data: &str) -> Event {
        (name.map(str::to_owned), data.to_owned())
    }

    /// Cuts `stream` at the given positions.
    fn cut<'a>(stream: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut at: Vec<usize> = places.iter().map(|place| place.index(stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
    }

    /// The standard's algorithm, line by line over the whole decoded text.
    fn by_the_book(stream: &[u8]) -> Vec<Event> {
        let text =
            String::from_utf8_lossy(stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream)).into_owned();
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut name, mut data) = (Vec::new(), String::new(), String::new());
        let mut lines: Vec<&str> = text.split('\n').collect();
        lines.pop(); // What follows the last line end is not a line yet.
        for line in lines {
            if line.is_empty() {
                if !data.is_empty() {
                    data.pop();
                    events.push((Some(name.clone()).filter(|name| !name.is_empty()), data.clone()));
                }
                name.clear();
                data.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut name),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                _ => {}
            }
        }
        events
    }

    #[test]
    fn the_examples_of_the_standard_read_as_it_says() {
        assert_eq!(events("data: YHOO\ndata: +2\ndata: 10\n\n"), [event(None, "YHOO\n+2\n10")]);
        let stream =
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        assert_eq!(
            events(stream),
            [event(None, "first event"), event(None, "second event"), event(None, " third event")]
        );
        assert_eq!(events("data\n\ndata\ndata\n\ndata:"), [event(None, ""), event(None, "\n")]);
        assert_eq!(events("data:test\n\ndata: test\n\n"), [event(None, "test"), event(None, "test")]);
    }

    #[test]
    fn names_comments_and_unknown_fields_are_told_apart() {
        let stream =
            "event: a\n\nevent: b\nretry: 5\n: data: no\ndatabase: no\ndata: yes\n\nevent:\ndata: x\n\n";
        assert_eq!(events(stream), [event(Some("b"), "yes"), event(None, "x")]);
    }

    #[test]
    fn an_error_line_is_an_event_of_that_name() {
        let stream = "error: {\"code\":400}\n\nerror: no\ndata: yes\n\nevent: a\nerror:b\n\nerrors: no\n\n";
        let expected =
            [event(Some("error"), "{\"code\":400}"), event(None, "yes"), event(Some("error"), "b")];
        assert_eq!(events(stream), expected);
    }

    #[test]
    fn all_line_ends_and_a_byte_order_mark_are_read() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = "\u{FEFF}event: é\ndata: 1\ndata: 2\n\ndata: 3\n\n".replace('\n', end);
            assert_eq!(events(&stream), [event(Some("é"), "1\n2"), event(None, "3")], "{end:?}");
            let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            assert_eq!(scan(&bytes).0, events(&stream), "{end:?} byte by byte");
        }
    }

    #[test]
    fn a_blank_line_cut_within_its_crlf_ends_the_event_at_once() {
        let mut scanner = SseScanner::new();
        let mut seen = 0;
        scanner.feed(b"data: x\r\n\r", |_| seen += 1).unwrap();
        assert_eq!(seen, 1);
        assert!(scanner.owes_line_feed());
        scanner.feed(b"\ndata: y\r\n\r\n", |event| assert_eq!(event.range, 11..22)).unwrap();
        assert!(!scanner.owes_line_feed());
        assert_eq!(scanner.pending_from(), scanner.position());
    }

    #[test]
    fn a_too_large_event_is_skipped_and_reported_once_wherever_it_is_cut() {
        let stream = format!("data: a\n\ndata: {}\n\ndata: b\n\n", "x".repeat(100));
        for size in [1, 7, 30, 1000] {
            let mut scanner = SseScanner::with_limit(50);
            let (mut data, mut errors) = (Vec::new(), 0);
            for chunk in stream.as_bytes().chunks(size) {
                errors += usize::from(scanner.feed(chunk, |event| data.push(event.data.to_owned())).is_err());
                assert!(scanner.tail.len() <= 50);
            }
            assert_eq!((data, errors), (vec!["a".to_owned(), "b".to_owned()], 1), "chunks of {size}");
        }
    }

    #[test]
    fn an_event_without_its_blank_line_is_read_at_the_end() {
        let mut scanner = SseScanner::new();
        scanner.feed(b"data: a\n\ndata: b", |event| assert_eq!(event.data, "a")).unwrap();
        let mut last = None;
        scanner.finish(|event| last = Some((event.data.to_owned(), event.range)));
        assert_eq!(last, Some(("b".to_owned(), 9..16)));
    }

    #[test]
    fn written_events_keep_their_line_ends() {
        let mut buf = BytesMut::new();
        write_event(&mut buf, Some("ping"), "{}");
        write_event(&mut buf, None, "a\r\nb\rc\n\n");
        assert_eq!(&buf[..], b"event: ping\ndata: {}\n\ndata: a\ndata: b\ndata: c\ndata: \ndata: \n\n");
    }

    /// Arbitrary bytes, with more of those that the scanner's decisions depend on.
    fn stream_bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "data: ", "data:", "data", "event: x", "event:", ":", "é", "🦀", "\u{FEFF}", " ", "id: 1", "{}",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            4 => prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n", "\r\n\r\n"])
                .prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_read_as_the_standard_says(
            stream in stream_bytes(),
            places in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let (whole, raw) = scan(&[&stream]);
            prop_assert_eq!(&whole, &by_the_book(&stream));
            let (cut_events, cut_raw) = scan(&cut(&stream, &places));
            prop_assert_eq!(&cut_events, &whole);
            for (cut_raw, raw) in cut_raw.iter().zip(&raw) {
                // The LF of a CRLF cut by a chunk boundary is reported by `owes_line_feed` instead.
                prop_assert!(cut_raw == raw || [cut_raw, &b"\n"[..]].concat() == *raw);
            }
        }

        #[test]
        fn what_is_written_is_read_again(name in "[a-z.]{0,8}", data in "(.|\n){0,40}") {
            let data: String = data.chars().filter(|c| *c != '\r').collect();
            let mut buf = BytesMut::new();
            write_event(&mut buf, Some(&name).filter(|name| !name.is_empty()).map(|name| &**name), &data);
            let name = Some(name).filter(|name| !name.is_empty());
            prop_assert_eq!(scan(&[&buf]).0, vec![(name, data)]);
        }
    }
}
