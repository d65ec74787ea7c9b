//! Message framing: separates an answer's body from the other bytes on the connection, and finds its end.

use bytes::{Buf as _, Bytes, BytesMut};

use super::Garbled;

/// The longest chunk-size line, with its extensions, and the longest trailers.
const MAX_LINES: usize = 16 << 10;

/// The remaining part of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes; never 0.
    Length(u64),
    Chunked(Chunked),
    /// All bytes until the connection is closed.
    UntilClose,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    /// The line with a chunk's size.
    Size,
    /// This many bytes of a chunk; never 0.
    Data(u64),
    /// The end of line behind a chunk.
    End,
    /// The trailers behind the last chunk; this many bytes of them were read.
    Trailers(usize),
}

/// The result of a decoding step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Data(Bytes),
    /// More bytes have to be read first.
    More,
    Done,
}

impl Framing {
    pub(super) const fn length(bytes: u64) -> Self {
        if bytes == 0 { Self::Done } else { Self::Length(bytes) }
    }

    pub(super) const fn chunked() -> Self {
        Self::Chunked(Chunked::Size)
    }

    /// Takes the next piece of the body off `read`.
    ///
    /// # Errors
    /// The bytes are not a body of this kind.
    pub(super) fn decode(&mut self, read: &mut BytesMut) -> Result<Decoded, Garbled> {
        match self {
            Self::Done => Ok(Decoded::Done),
            _ if read.is_empty() => Ok(Decoded::More),
            Self::Length(left) => {
                let data = take(read, left);
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Decoded::Data(data))
            }
            Self::UntilClose => Ok(Decoded::Data(read.split().freeze())),
            Self::Chunked(_) => {
                if !self.reach_data(read)? {
                    return Ok(if *self == Self::Done { Decoded::Done } else { Decoded::More });
                }
                let Self::Chunked(Chunked::Data(left)) = self else { return Ok(Decoded::More) };
                let data = take(read, left);
                if *left == 0 {
                    *self = Self::Chunked(Chunked::End);
                    // Often the end has come along; then the reader need not ask for it. An error there is reported by
                    // the next call.
                    let _ = self.reach_data(read);
                }
                Ok(Decoded::Data(data))
            }
        }
    }

    /// Advances to the next byte of a chunk; `false`: there is none, or none yet.
    fn reach_data(&mut self, read: &mut BytesMut) -> Result<bool, Garbled> {
        while let Self::Chunked(place) = self {
            match place {
                Chunked::Data(_) => return Ok(!read.is_empty()),
                // httparse reads a line without digits as 0.
                Chunked::Size if read.first().is_some_and(|digit| !digit.is_ascii_hexdigit()) => {
                    return Err(Garbled("a chunk has no size"));
                }
                Chunked::Size => match httparse::parse_chunk_size(read) {
                    Ok(httparse::Status::Complete((line, size))) => {
                        // httparse accepts any byte in an extension; another parser may take a line feed there for the
                        // end of the line.
                        if read[..line - 2].contains(&b'\n') {
                            return Err(Garbled("a chunk's size is wrong"));
                        }
                        read.advance(line);
                        *place = if size == 0 { Chunked::Trailers(0) } else { Chunked::Data(size) };
                    }
                    Ok(httparse::Status::Partial) if read.len() <= MAX_LINES => return Ok(false),
                    _ => return Err(Garbled("a chunk's size is wrong")),
                },
                Chunked::End => {
                    if !b"\r\n".starts_with(&read[..read.len().min(2)]) {
                        return Err(Garbled("a chunk is longer than it says"));
                    }
                    if read.len() < 2 {
                        return Ok(false);
                    }
                    read.advance(2);
                    *place = Chunked::Size;
                }
                Chunked::Trailers(seen) => {
                    let line = memchr::memchr(b'\n', read).map(|end| end + 1);
                    if *seen + line.unwrap_or(read.len()) > MAX_LINES {
                        return Err(Garbled("its trailers are too long"));
                    }
                    let Some(line) = line else { return Ok(false) };
                    let empty = matches!(&read[..line], b"\r\n" | b"\n");
                    read.advance(line);
                    *seen += line;
                    if empty {
                        *self = Self::Done;
                    }
                }
            }
        }
        Ok(false)
    }
}

/// At most `left` bytes.
fn take(read: &mut BytesMut, left: &mut u64) -> Bytes {
    let taken = usize::try_from(*left).map_or(read.len(), |left| left.min(read.len()));
    *left -= taken as u64;
    read.split_to(taken).freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The body that `bytes` holds, read in pieces of the given lengths, and what is left behind it.
    fn read(
        mut framing: Framing,
        bytes: &[u8],
        pieces: &[usize],
    ) -> Result<(Vec<u8>, bool, Vec<u8>), Garbled> {
        let (mut at, mut pieces) = (0, pieces.iter().cycle());
        let (mut buffer, mut body) = (BytesMut::new(), Vec::new());
        loop {
            match framing.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::Done => return Ok((body, true, [&buffer[..], &bytes[at..]].concat())),
                Decoded::More if at == bytes.len() => return Ok((body, false, buffer.to_vec())),
                Decoded::More => {
                    let piece = pieces.next().copied().unwrap_or(1).clamp(1, bytes.len() - at);
                    buffer.extend_from_slice(&bytes[at..at + piece]);
                    at += piece;
                }
            }
        }
    }

    #[test]
    fn chunks_may_have_extensions_and_trailers() {
        let sent = b"3;a=\"b\"\r\nabc\r\n0A\r\n0123456789\r\n0\r\nx-t: 1\r\n\r\nHTTP/1.1";
        for piece in 1..=sent.len() {
            let (body, done, rest) = read(Framing::chunked(), sent, &[piece]).unwrap();
            assert_eq!(
                (&body[..], done, &rest[..]),
                (&b"abc0123456789"[..], true, &b"HTTP/1.1"[..]),
                "{piece}"
            );
        }
    }

    #[test]
    fn the_end_that_came_along_is_seen_with_the_last_data() {
        let mut framing = Framing::chunked();
        let mut bytes = BytesMut::from("2\r\nab\r\n0\r\n\r\n");
        assert_eq!(framing.decode(&mut bytes), Ok(Decoded::Data("ab".into())));
        assert_eq!((framing, bytes.len()), (Framing::Done, 0));
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for wrong in [
            "x\r\n",
            "\r\n",
            "2\r\nabc\r\n",
            "2\r\nab\n\n",
            "ffffffffffffffffff\r\n",
            "-1\r\n",
            "5;a\nhello\r\n",
        ] {
            assert!(read(Framing::chunked(), wrong.as_bytes(), &[1]).is_err(), "{wrong}");
        }
        let endless = format!("1;{}", "x".repeat(2 * MAX_LINES));
        assert!(read(Framing::chunked(), endless.as_bytes(), &[1000]).is_err());
        let endless = format!("0\r\n{}", "a: b\r\n".repeat(MAX_LINES));
        assert!(read(Framing::chunked(), endless.as_bytes(), &[1000]).is_err());
    }

    proptest! {
        #[test]
        fn a_body_is_read_whatever_pieces_it_comes_in(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            pieces in proptest::collection::vec(1_usize..50, 1..10),
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = chunks.concat();
            let mut sent = Vec::new();
            for chunk in &chunks {
                sent.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                sent.extend_from_slice(chunk);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b"0\r\n\r\n");
            let (body, done, rest) = read(Framing::chunked(), &sent, &pieces).unwrap();
            prop_assert_eq!((&body, done, rest.len()), (&whole, true, 0));
            // Cut off, it is a beginning, and not over.
            let cut = cut.index(sent.len());
            let (body, done, _) = read(Framing::chunked(), &sent[..cut], &pieces).unwrap();
            prop_assert!(whole.starts_with(&body) && !done);

            let length = Framing::length(whole.len() as u64);
            let (body, done, rest) = read(length, &[&whole[..], b"more"].concat(), &pieces).unwrap();
            prop_assert_eq!((&body, done, &rest[..]), (&whole, true, &b"more"[..]));
        }

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1_usize..50) {
            let _ = read(Framing::chunked(), &bytes, &[piece]);
        }
    }
}
