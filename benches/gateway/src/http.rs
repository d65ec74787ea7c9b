//! HTTP/1.1 messages, read incrementally.

/// The maximum number of header fields.
const MAX_HEADERS: usize = 64;

/// The peer's bytes are not HTTP/1.1, or exceed the limits here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHttp;

impl std::fmt::Display for NotHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not an HTTP/1.1 message")
    }
}

impl std::error::Error for NotHttp {}

/// The kind of message to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

/// The message in progress; created anew (or [reset](Self::reset)) for the next one.
#[derive(Debug)]
pub struct Message {
    side: Side,
    /// The beginning of an incomplete head.
    partial: Vec<u8>,
    status: u16,
    body: Option<Body>,
    keep_alive: bool,
}

#[derive(Debug)]
enum Body {
    /// This many bytes are still to come.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// The reader's position in a chunked body.
#[derive(Debug, Clone, Copy)]
enum Chunked {
    /// In a chunk's length, whose digits so far make this number; `true`: past the digits, in an extension.
    Size(u64, bool),
    Data(u64),
    /// Between a chunk's data and the end of its line.
    DataEnd,
    /// In a line of the trailer; `true`: the line is empty so far.
    Trailer(bool),
}

impl Message {
    pub fn new(side: Side) -> Self {
        Self { side, partial: Vec::new(), status: 0, body: None, keep_alive: true }
    }

    /// Prepares for the next message on the same connection.
    pub fn reset(&mut self) {
        self.partial.clear();
        self.body = None;
        self.status = 0;
        self.keep_alive = true;
    }

    /// The status of a response whose head is complete.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the connection may be used for another message.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether no byte of the message has come.
    pub fn is_fresh(&self) -> bool {
        self.body.is_none() && self.partial.is_empty()
    }

    /// Reads bytes; `data` gets the body's. Returns whether the message is complete; bytes behind it are ignored,
    /// because neither side pipelines here.
    ///
    /// # Errors
    /// [`NotHttp`].
    pub fn feed(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<bool, NotHttp> {
        let mut rest = bytes;
        if self.body.is_none() {
            let known = self.partial.len();
            let length = if known == 0 {
                self.parse_head(bytes)?
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(bytes);
                let length = self.parse_head(&whole)?;
                self.partial = whole;
                length
            };
            let Some(length) = length else {
                if known == 0 {
                    self.partial.extend_from_slice(bytes);
                }
                return Ok(false);
            };
            rest = bytes.get(length.saturating_sub(known)..).unwrap_or_default();
        }
        match &mut self.body {
            Some(Body::Length(left)) => {
                let here = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                data(&rest[..here]);
                *left -= u64::try_from(here).unwrap_or(0);
                Ok(*left == 0)
            }
            Some(Body::Chunked(state)) => feed_chunked(state, rest, data),
            Some(Body::UntilClose) => {
                data(rest);
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// The peer closed the connection; returns whether this ends the message properly.
    pub fn closed(&self) -> bool {
        matches!(self.body, Some(Body::UntilClose))
    }

    /// Reads a head and returns its length; `None`: it is incomplete.
    fn parse_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, NotHttp> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let (length, headers) = match self.side {
            Side::Request => {
                let mut request = httparse::Request::new(&mut headers);
                let httparse::Status::Complete(length) = request.parse(bytes).map_err(|_| NotHttp)? else {
                    return Ok(None);
                };
                (length, &*request.headers)
            }
            Side::Response => {
                let mut response = httparse::Response::new(&mut headers);
                let httparse::Status::Complete(length) = response.parse(bytes).map_err(|_| NotHttp)? else {
                    return Ok(None);
                };
                self.status = response.code.unwrap_or(0);
                (length, &*response.headers)
            }
        };
        let mut body = match self.side {
            Side::Request => Body::Length(0),
            Side::Response => Body::UntilClose,
        };
        for header in headers {
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(header.value).map_err(|_| NotHttp)?;
                body = Body::Length(text.trim().parse().map_err(|_| NotHttp)?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                body = Body::Chunked(Chunked::Size(0, false));
            } else if header.name.eq_ignore_ascii_case("connection") {
                self.keep_alive = !header.value.eq_ignore_ascii_case(b"close");
            }
        }
        self.keep_alive &= !matches!(body, Body::UntilClose);
        self.body = Some(body);
        Ok(Some(length))
    }
}

fn feed_chunked(state: &mut Chunked, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<bool, NotHttp> {
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        match *state {
            Chunked::Size(size, extension) => {
                *state = match (byte, char::from(byte).to_digit(16)) {
                    (b'\n', _) if size == 0 => Chunked::Trailer(true),
                    (b'\n', _) => Chunked::Data(size),
                    (_, Some(digit)) if !extension => {
                        let size = size.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit)));
                        Chunked::Size(size.ok_or(NotHttp)?, false)
                    }
                    (b'\r' | b';' | b' ', _) => Chunked::Size(size, true),
                    _ if extension => Chunked::Size(size, true),
                    _ => return Err(NotHttp),
                };
                rest = after;
            }
            Chunked::Data(left) => {
                let here = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                data(&rest[..here]);
                rest = &rest[here..];
                let left = left - u64::try_from(here).unwrap_or(0);
                *state = if left == 0 { Chunked::DataEnd } else { Chunked::Data(left) };
            }
            Chunked::DataEnd => {
                if byte == b'\n' {
                    *state = Chunked::Size(0, false);
                }
                rest = after;
            }
            Chunked::Trailer(empty) => {
                match byte {
                    b'\n' if empty => return Ok(true),
                    b'\n' => *state = Chunked::Trailer(true),
                    b'\r' => {}
                    _ => *state = Chunked::Trailer(false),
                }
                rest = after;
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of `step` bytes; returns whether it became complete with its last piece, and the body.
    fn read(side: Side, text: &str, step: usize) -> (Vec<bool>, String, u16) {
        let mut message = Message::new(side);
        let mut body = Vec::new();
        let complete = text
            .as_bytes()
            .chunks(step)
            .map(|piece| message.feed(piece, |data| body.extend_from_slice(data)).unwrap())
            .collect();
        (complete, String::from_utf8(body).unwrap(), message.status())
    }

    #[test]
    fn bodies_are_read_however_they_are_cut() {
        let sized = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let chunked = "HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhe\r\nA\r\nllo world!\r\n0\r\nX: y\r\n\r\n";
        for step in 1..80 {
            let (complete, body, status) = read(Side::Response, sized, step);
            assert_eq!((body.as_str(), status), ("hello", 200));
            assert_eq!(complete.iter().position(|done| *done), Some(complete.len() - 1), "{step}");
            let (complete, body, status) = read(Side::Response, chunked, step);
            assert_eq!((body.as_str(), status), ("hello world!", 429));
            assert_eq!(complete.iter().position(|done| *done), Some(complete.len() - 1), "{step}");
        }
    }

    #[test]
    fn a_request_without_a_length_has_no_body() {
        assert_eq!(read(Side::Request, "GET / HTTP/1.1\r\nHost: h\r\n\r\n", 7).0.last(), Some(&true));
    }

    #[test]
    fn a_response_without_a_length_ends_with_the_connection() {
        let mut message = Message::new(Side::Response);
        assert_eq!(message.feed(b"HTTP/1.1 200 OK\r\n\r\nabc", |_| {}), Ok(false));
        assert!(message.closed());
        assert!(!message.keep_alive());
        assert_eq!(Message::new(Side::Response).feed(b"SSH-2.0-OpenSSH\r\n\r\n", |_| {}), Err(NotHttp));
    }
}
