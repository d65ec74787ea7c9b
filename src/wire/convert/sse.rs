//! Writing server-sent events.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

/// Appends one event; `name` is its `event:` line.
pub(crate) fn event(name: Option<&str>, data: &impl Serialize, out: &mut BytesMut) {
    let start = out.len();
    if let Some(name) = name {
        out.put_slice(b"event: ");
        out.put_slice(name.as_bytes());
        out.put_u8(b'\n');
    }
    out.put_slice(b"data: ");
    // JSON holds no line breaks outside of strings and escapes them within.
    if serde_json::to_writer((&mut *out).writer(), data).is_err() {
        out.truncate(start);
        return;
    }
    out.put_slice(b"\n\n");
}

/// Appends the event that ends a chat stream.
pub(crate) fn done(out: &mut BytesMut) {
    out.put_slice(b"data: [DONE]\n\n");
}
