//! A body in one piece.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;

/// A single piece up to this size is copied. It lies in the read buffer of its connection, which may be many times as large,
/// would live as long as the piece (until the request is in the log), and could not be read into again.
const COPIED: usize = 256 << 10;

/// Why a body is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotGathered {
    /// It broke off.
    Broken,
    TooLarge,
}

/// The whole body, of at most `max` bytes. `announced`: how long it says it is, if it does.
///
/// # Errors
/// [`NotGathered`].
pub async fn gather<B>(body: B, max: usize, announced: Option<usize>) -> Result<Bytes, NotGathered>
where
    B: Body<Data = Bytes>,
{
    if announced.is_some_and(|length| length > max) {
        return Err(NotGathered::TooLarge);
    }
    let mut body = pin!(body);
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| NotGathered::Broken)?.into_data() else { continue };
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

/// The same bytes, without the larger buffer that they may be a part of.
pub(super) fn own(bytes: Bytes) -> Bytes {
    if bytes.len() > COPIED { bytes } else { Bytes::copy_from_slice(&bytes) }
}
