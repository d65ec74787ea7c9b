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
mod tests;
