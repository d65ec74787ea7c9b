//! Writing the heads of requests and reading the heads of answers.

use std::mem::MaybeUninit;

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};

use super::Garbled;
use super::framing::Framing;
use crate::provider::headers::UpstreamHeaders;

/// The longest head of an answer. Real ones take a few kilobytes.
const MAX_HEAD: usize = 256 << 10;
/// The most headers of an answer.
const MAX_HEADERS: usize = 100;

/// The head of a request.
pub(in crate::provider) struct OutgoingHead<'a> {
    pub(in crate::provider) method: &'a Method,
    /// In the form that the receiver expects: a path, or for a proxy the whole URL.
    pub(in crate::provider) target: &'a Uri,
    pub(in crate::provider) host: &'a HeaderValue,
    /// Without `Host` and connection headers.
    pub(in crate::provider) headers: &'a UpstreamHeaders<'a>,
}

impl OutgoingHead<'_> {
    /// Writes it for a body of `length` bytes. No part of it can hold a line feed: the types rule it out.
    pub(super) fn write(&self, out: &mut Vec<u8>, length: usize) {
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        match (self.target.scheme(), self.target.path_and_query()) {
            (None, Some(path)) => out.extend_from_slice(path.as_str().as_bytes()),
            _ => out.extend_from_slice(self.target.to_string().as_bytes()),
        }
        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        out.extend_from_slice(self.host.as_bytes());
        for (name, value) in self.headers.iter() {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
        }
        if length > 0 || *self.method != Method::GET {
            out.extend_from_slice(b"\r\ncontent-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct AnswerHead {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// The connection may carry another request.
    pub(super) keep_alive: bool,
}

/// Takes the head of an answer off `read`; `None`: it is not complete yet.
pub(super) fn take_head(read: &mut BytesMut) -> Result<Option<AnswerHead>, Garbled> {
    // Some servers send an empty line too many after a body; RFC 9112 § 2.2 has servers forgive clients the same.
    while read.starts_with(b"\r\n") {
        read.advance(2);
    }
    let end = match memchr::memmem::find(read, b"\r\n\r\n") {
        Some(end) => end + 4,
        // Lines may have other ends, and bytes that are not a head should not be waited for.
        None => match parse(read, |_, _| Ok(()))? {
            Some((end, _)) => end,
            None if read.len() > MAX_HEAD => return Err(Garbled("its head is too long")),
            None => return Ok(None),
        },
    };
    let head = read.split_to(end).freeze();
    let mut headers = HeaderMap::with_capacity(32);
    let parsed = parse(&head, |name, value| {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| Garbled("a header's name is wrong"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(value))
            .map_err(|_| Garbled("a header's value is wrong"))?;
        headers.append(name, value);
        Ok(())
    })?;
    let Some((used, (status, version))) = parsed else { return Err(Garbled("its head is wrong")) };
    if used < head.len() {
        // The head ended with another kind of line end, and the empty line that was found is in the body.
        let mut rest = BytesMut::from(&head[used..]);
        rest.extend_from_slice(read);
        *read = rest;
    }
    let framing = framing(status, &headers)?;
    let says = |option: &str| {
        let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(option))
    };
    // An intermediary may have framed it differently (RFC 9112 § 6.1).
    let doubtful = headers.contains_key(header::TRANSFER_ENCODING)
        && (version == Version::HTTP_10 || headers.contains_key(header::CONTENT_LENGTH));
    let keep_alive = !doubtful
        && framing != Framing::UntilClose
        && !says("close")
        && (version == Version::HTTP_11 || says("keep-alive"));
    Ok(Some(AnswerHead { status, headers, framing, keep_alive }))
}

type StatusLine = (StatusCode, Version);

/// Reads a head and gives each header to `take`; the first value is where the head ends.
fn parse<'a>(
    bytes: &'a [u8],
    mut take: impl FnMut(&'a str, &'a [u8]) -> Result<(), Garbled>,
) -> Result<Option<(usize, StatusLine)>, Garbled> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, bytes, &mut headers)
        .map_err(|error| match error {
            httparse::Error::TooManyHeaders => Garbled("it has too many headers"),
            _ => Garbled("its head is wrong"),
        })?;
    let httparse::Status::Complete(end) = parsed else { return Ok(None) };
    for header in &*response.headers {
        take(header.name, header.value)?;
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let version = if response.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    Ok(Some((end, (status.ok_or(Garbled("its status is wrong"))?, version))))
}

/// How the body ends (RFC 9112 § 6.3). Requests are `GET` or `POST`, so an answer has a body unless its status excludes
/// one.
fn framing(status: StatusCode, headers: &HeaderMap) -> Result<Framing, Garbled> {
    if status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok(Framing::Done);
    }
    // With both headers in one answer the transfer coding wins.
    if let Some(coding) = headers.get_all(header::TRANSFER_ENCODING).iter().next_back() {
        let last = coding.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
        return Ok(if last.eq_ignore_ascii_case(b"chunked") {
            Framing::chunked()
        } else {
            Framing::UntilClose
        });
    }
    let mut length = None;
    // If the length is given twice, in two headers or in one, the values must agree.
    for value in headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
    {
        let said = number(value.trim_ascii()).ok_or(Garbled("its length is no number"))?;
        if length.replace(said).is_some_and(|before| before != said) {
            return Err(Garbled("it has two lengths"));
        }
    }
    Ok(length.map_or(Framing::UntilClose, Framing::length))
}

/// Digits and nothing else: `parse` would take a sign.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<AnswerHead>, Garbled> {
        take_head(&mut BytesMut::from(text))
    }

    fn answer(headers: &str) -> AnswerHead {
        read(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).unwrap().unwrap()
    }

    #[test]
    fn a_request_is_written_as_servers_read_it() {
        let mut client = HeaderMap::new();
        client.append("x-a", HeaderValue::from_static("1"));
        client.append("x-a", HeaderValue::from_static("2"));
        let headers = UpstreamHeaders::of_client(&client);
        let written = |method, target: &'static str, length| {
            let host = HeaderValue::from_static("h:1");
            let target = Uri::from_static(target);
            let mut out = Vec::new();
            OutgoingHead { method, target: &target, host: &host, headers: &headers }.write(&mut out, length);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(&Method::POST, "/v1/x?y=z", 12),
            "POST /v1/x?y=z HTTP/1.1\r\nhost: h:1\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 12\r\n\r\n"
        );
        assert!(
            written(&Method::GET, "http://h:1/v1", 0)
                .starts_with("GET http://h:1/v1 HTTP/1.1\r\nhost: h:1\r\nx-a: 1")
        );
        assert!(!written(&Method::GET, "/", 0).contains("content-length"));
        assert!(written(&Method::POST, "/", 0).contains("content-length: 0\r\n\r\n"));
    }

    #[test]
    fn how_a_body_ends_is_what_rfc_9112_says() {
        assert_eq!(answer("content-length: 5\r\n").framing, Framing::length(5));
        assert_eq!(answer("content-length: 5, 5\r\nContent-Length: 5\r\n").framing, Framing::length(5));
        assert_eq!(answer("content-length: 0\r\n").framing, Framing::Done);
        assert_eq!(answer("content-length: 5\r\ntransfer-encoding: Chunked\r\n").framing, Framing::chunked());
        assert_eq!(answer("transfer-encoding: gzip, chunked\r\n").framing, Framing::chunked());
        assert_eq!(answer("transfer-encoding: gzip\r\n").framing, Framing::UntilClose);
        assert_eq!(answer("").framing, Framing::UntilClose);
        for status in [100, 103, 204, 304] {
            let head = read(&format!("HTTP/1.1 {status} X\r\ncontent-length: 5\r\n\r\n")).unwrap().unwrap();
            assert_eq!(head.framing, Framing::Done, "{status}");
        }
        for wrong in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: +5\r\n",
            "content-length:\r\n",
            "content-length: 99999999999999999999\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1 200 OK\r\n{wrong}\r\n")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_connection_is_kept_when_both_sides_can() {
        assert!(answer("content-length: 5\r\n").keep_alive);
        assert!(!answer("content-length: 5\r\nconnection: x, Close\r\n").keep_alive);
        assert!(!answer("").keep_alive, "its end is the body's end");
        let old = |headers: &str| {
            read(&format!("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n{headers}\r\n"))
                .unwrap()
                .unwrap()
                .keep_alive
        };
        assert!(!old("") && old("connection: keep-alive\r\n"));
        assert!(!old("connection: keep-alive, close\r\n"));
        assert!(
            !old("connection: keep-alive\r\ntransfer-encoding: chunked\r\n"),
            "no such thing in HTTP/1.0"
        );
        assert!(!answer("content-length: 5\r\ntransfer-encoding: chunked\r\n").keep_alive, "which is it?");
        assert!(answer("transfer-encoding: chunked\r\n").keep_alive);
    }

    #[test]
    fn a_head_is_waited_for_and_what_is_none_is_not() {
        let whole =
            "HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\nx-b: \u{fc}\r\ncontent-length: 2\r\n\r\nhi";
        let end = whole.len() - 2;
        for cut in 0..end {
            assert!(matches!(read(&whole[..cut.min(whole.floor_char_boundary(cut))]), Ok(None)), "{cut}");
        }
        let mut bytes = BytesMut::from(whole);
        let head = take_head(&mut bytes).unwrap().unwrap();
        assert_eq!((head.status.as_u16(), &bytes[..]), (429, &b"hi"[..]));
        assert_eq!(head.headers["retry-after"], "3");
        assert_eq!(head.headers["x-b"].as_bytes(), "\u{fc}".as_bytes());
        for wrong in [
            "SSH-2.0-OpenSSH_9.2",
            "HTTP/1.1 99 X\r\n\r\n",
            "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
            "HTTP/2 200\r\n",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
        assert!(read(&format!("HTTP/1.1 200 OK\r\n{many}\r\n")).is_err());
        let endless = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD));
        assert!(read(&endless).is_err());
    }

    #[test]
    fn empty_lines_before_a_head_are_passed_over() {
        let mut bytes = BytesMut::from("\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na");
        assert_eq!(take_head(&mut bytes).unwrap().unwrap().framing, Framing::length(1));
        assert!(matches!(read("\r\n\r"), Ok(None)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = take_head(&mut BytesMut::from(&bytes[..]));
            let _ = take_head(&mut BytesMut::from(&[b"HTTP/1.1 200 OK\r\n", &bytes[..], b"\r\n\r\n"].concat()[..]));
        }
    }

    #[test]
    fn lines_may_end_with_a_line_feed_alone() {
        let mut bytes = BytesMut::from("HTTP/1.1 200 OK\ncontent-length: 7\n\nab\r\n\r\nc");
        let head = take_head(&mut bytes).unwrap().unwrap();
        assert_eq!((head.framing, &bytes[..]), (Framing::length(7), &b"ab\r\n\r\nc"[..]));
    }
}
