//! Recognising the next content event by the last one.
//!
//! The content events of a stream are alike but for the content (and a running number): the same ids, the same model,
//! the same nulls. So once an event was fully read and held nothing but content, the next one is compared with it,
//! piece by piece around the strings that may differ. That takes a tenth of the time of reading JSON, and proves the
//! same: a text that equals valid JSON in all but the inside of some strings is valid JSON, and the compared places are
//! all that a reader looks at.

use std::ops::Range;

/// String fields whose text no reader looks at after the first token, at any depth of an event.
const FREE_TEXT: [&[u8]; 11] = [
    b"content",
    b"reasoning_content",
    b"reasoning",
    b"refusal",
    b"arguments",
    b"delta",
    b"text",
    b"thinking",
    b"partial_json",
    b"obfuscation",
    b"item_id",
];

/// Number fields that no reader looks at.
const FREE_NUMBERS: [&[u8]; 3] = [b"sequence_number", b"created", b"output_index"];

/// Longer events are not worth keeping a copy of.
const MAX_BYTES: usize = 4096;

/// The most templates made in a row without a fit; a stream whose events are never alike stops trying.
const MAX_FAILURES: u8 = 8;

/// A remembered content event of one stream.
#[derive(Debug, Default)]
pub(super) struct Template {
    /// Empty: none yet.
    text: Vec<u8>,
    holes: Vec<Hole>,
    failures: u8,
}

/// A part of the text that may differ.
#[derive(Debug)]
struct Hole {
    span: Range<usize>,
    is_text: bool,
}

impl Template {
    /// Whether `data` is JSON and equals the remembered event, but for free text and numbers.
    pub(super) fn fits(&mut self, data: &[u8]) -> bool {
        let fits = !self.text.is_empty() && self.compare(data).is_some();
        if fits {
            self.failures = 0;
        }
        fits
    }

    /// Never learns anything, so that every event is read.
    #[cfg(test)]
    pub(super) fn give_up(&mut self) {
        self.failures = MAX_FAILURES;
    }

    fn compare(&self, data: &[u8]) -> Option<()> {
        let (mut rest, mut from) = (data, 0);
        for Hole { span, is_text } in &self.holes {
            rest = rest.strip_prefix(&self.text[from..span.start])?;
            let length = if *is_text { text_length(rest)? } else { number_length(rest)? };
            rest = &rest[length..];
            from = span.end;
        }
        (rest == &self.text[from..]).then_some(())
    }

    /// Remembers `data`, which is JSON and holds nothing but content.
    pub(super) fn learn(&mut self, data: &[u8]) {
        if data.len() > MAX_BYTES || self.failures >= MAX_FAILURES {
            return;
        }
        self.failures += 1;
        self.holes.clear();
        self.text.clear();
        self.text.extend_from_slice(data);
        let mut at = 0;
        while let Some((key, value)) = next_member(data, at) {
            at = value;
            let is_text = data.get(value) == Some(&b'"');
            let start = value + usize::from(is_text);
            let rest = &data[start..];
            let length = match is_text {
                true if FREE_TEXT.contains(&key) => text_length(rest),
                false if FREE_NUMBERS.contains(&key) => number_length(rest),
                _ => None,
            };
            if let Some(length) = length {
                at = start + length + usize::from(is_text);
                self.holes.push(Hole { span: start..start + length, is_text });
            }
        }
    }
}

/// The next key of an object in valid JSON, and where its value begins. `at` is not within a string.
fn next_member(json: &[u8], mut at: usize) -> Option<(&[u8], usize)> {
    loop {
        let start = at + memchr::memchr(b'"', json.get(at..)?)? + 1;
        let end = start + text_length(&json[start..])?;
        at = skip_space(json, end + 1);
        // In valid JSON only a key is followed by a colon.
        if json.get(at) == Some(&b':') {
            return Some((&json[start..end], skip_space(json, at + 1)));
        }
    }
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while json.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The length of the text of a JSON string up to its closing quote; `None` if it is not valid.
fn text_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += bytes[at..].iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20))?;
        match (bytes[at], bytes.get(at + 1)) {
            (b'"', _) => return Some(at),
            (b'\\', Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't')) => at += 2,
            (b'\\', Some(b'u')) if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at += 6,
            _ => return None,
        }
    }
}

/// The length of the whole number that `bytes` begins with; `None` if there is none.
fn number_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    (length == 1 || length > 1 && bytes[0] != b'0').then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(learned: &str, other: &str) -> bool {
        let mut template = Template::default();
        template.learn(learned.as_bytes());
        assert!(template.fits(learned.as_bytes()), "{learned} fits itself");
        template.fits(other.as_bytes())
    }

    const CHUNK: &str =
        r#"{"id":"a","created":17,"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}"#;

    #[test]
    fn content_and_running_numbers_may_differ() {
        for content in ["", "y", "é🦀", r#"a\"b\\\/\b\f\n\r\t\u00e9\ud83e"#, "}],{:"] {
            assert!(fits(CHUNK, &CHUNK.replace("\"x\"", &format!("\"{content}\""))), "{content}");
        }
        for created in ["0", "1", "999999999999"] {
            assert!(fits(CHUNK, &CHUNK.replace("17", created)), "{created}");
        }
        let spaced = r#"{ "delta" : "a" , "sequence_number" : 5 , "x" : "delta" }"#;
        assert!(fits(spaced, r#"{ "delta" : "bc" , "sequence_number" : 66 , "x" : "delta" }"#));
    }

    #[test]
    fn everything_else_must_be_the_same() {
        for (from, to) in [
            ("null", "\"stop\""),
            ("\"a\"", "\"b\""),
            ("\"index\":0", "\"index\":1"),
            ("\"x\"", "null"),
            ("}]}", "}],\"usage\":{}}"),
            ("}]}", "}]} "),
            ("}]}", "}]"),
            ("17", "01"),
            ("17", "1.5"),
            ("17", "1e5"),
            ("17", "-1"),
            ("17", ""),
        ] {
            assert!(!fits(CHUNK, &CHUNK.replace(from, to)), "{from} -> {to}");
        }
        assert!(!Template::default().fits(b""));
    }

    #[test]
    fn what_is_not_json_does_not_fit() {
        for content in ["\n", "\0", r"\x", r"\u12", r"\u12g4", "\\", "\"", "\",\"", r#"","error":"x"#] {
            assert!(!fits(CHUNK, &CHUNK.replace("\"x\"", &format!("\"{content}\""))), "{content:?}");
        }
        for end in 0..CHUNK.len() {
            assert!(!fits(CHUNK, &CHUNK[..end]));
        }
    }

    #[test]
    fn a_stream_that_is_never_alike_is_given_up() {
        let mut template = Template::default();
        for n in 0..100 {
            template.learn(format!("{{\"n\":{n}}}").as_bytes());
        }
        assert!(template.fits(br#"{"n":7}"#) && !template.fits(br#"{"n":99}"#));
        template.learn(&vec![b' '; MAX_BYTES + 1]);
        assert!(template.fits(br#"{"n":7}"#), "too long to be remembered");
    }
}
