//! Collecting a body into one piece.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;

/// A single piece up to this size is copied. It lies in the read buffer of its connection, which may be many times as large,
/// would live as long as the piece (until the request is in the log), and could not be read into again.
const COPIED: usize = 256 << 10;

/// Why a body could not be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotGathered<E> {
    /// It broke off.
    Broken(E),
    TooLarge,
}

/// The whole body, of at most `max` bytes. `announced`: its declared length, if any.
///
/// # Errors
/// [`NotGathered`].
pub async fn gather<B>(body: B, max: usize, announced: Option<usize>) -> Result<Bytes, NotGathered<B::Error>>
where
    B: Body<Data = Bytes>,
{
    gather_after(Bytes::new(), body, max, announced).await
}

/// Like [`gather`], for a body whose beginning, `begun`, was read before.
pub(super) async fn gather_after<B>(
    begun: Bytes,
    body: B,
    max: usize,
    announced: Option<usize>,
) -> Result<Bytes, NotGathered<B::Error>>
where
    B: Body<Data = Bytes>,
{
    let announced = announced.or(body.size_hint().exact().and_then(|length| usize::try_from(length).ok()));
    if announced.is_some_and(|length| length > max) {
        return Err(NotGathered::TooLarge);
    }
    let mut body = pin!(body);
    let (mut first, mut rest) = (begun, BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(NotGathered::Broken)?.into_data() else { continue };
        if first.len().max(rest.len()) + data.len() > max {
            return Err(NotGathered::TooLarge);
        }
        if first.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.reserve(announced.unwrap_or(first.len() + data.len()));
            rest.extend_from_slice(&first);
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { own(first) } else { rest.freeze() })
}

/// Copies up to [`COPIED`] bytes out of the larger buffer that they may be a part of; keeps longer ones as they are.
fn own(bytes: Bytes) -> Bytes {
    if bytes.len() > COPIED { bytes } else { Bytes::copy_from_slice(&bytes) }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    async fn pieces(
        pieces: &[&'static [u8]],
        max: usize,
        announced: Option<usize>,
    ) -> Result<Bytes, NotGathered<Infallible>> {
        let frames = pieces.iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece))));
        gather(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())), max, announced).await
    }

    #[tokio::test]
    async fn pieces_are_put_together_up_to_the_limit() {
        assert_eq!(pieces(&[b"ab", b"", b"cd", b"e"], 5, None).await, Ok("abcde".into()));
        assert_eq!(pieces(&[b"ab", b"", b"cd", b"e"], 4, None).await, Err(NotGathered::TooLarge));
        assert_eq!(pieces(&[], 0, None).await, Ok(Bytes::new()));
        assert_eq!(pieces(&[b"", b"abc"], 3, Some(1)).await, Ok("abc".into()), "more than it announced");
        assert_eq!(pieces(&[b"a"], 3, Some(4)).await, Err(NotGathered::TooLarge), "not read at all");
        assert_eq!(gather(Full::new(Bytes::from_static(b"four")), 3, None).await, Err(NotGathered::TooLarge));
        let more = gather_after("ab".into(), Full::new(Bytes::from_static(b"cd")), 4, None);
        assert_eq!(more.await, Ok("abcd".into()));
        let broken = stream::iter([Ok(Frame::data(Bytes::from_static(b"a"))), Err(std::fmt::Error)]);
        assert_eq!(gather(StreamBody::new(broken), 9, None).await, Err(NotGathered::Broken(std::fmt::Error)));
    }

    #[test]
    fn what_is_kept_is_no_part_of_something_larger() {
        let buffer = Bytes::from(vec![b'x'; 4 * COPIED]);
        let small = own(buffer.slice(..COPIED));
        assert!(small == buffer[..COPIED] && small.as_ptr() != buffer.as_ptr());
        assert_eq!(own(buffer.slice(..=COPIED)).as_ptr(), buffer.as_ptr(), "worth keeping as it is");
    }
}
