//! The format of a record in a segment, and the search for records in a damaged one.
//!
//! ```text
//!  0  magic         F5 'N' 'G' 'J'; F5 occurs in no UTF-8 text, hence in no intact row or body that is text
//!  4  version       2
//!  5  table         0 completions, 1 embeddings
//!  6  flags         1: has a request body, 2: has a response body
//!  7  reserved      0
//!  8  time          milliseconds since 1970, u64
//! 16  row length    u32; the lengths and sums are little-endian
//! 20  request length u32
//! 24  response length u32
//! 28  row sum       CRC-32
//! 32  bodies' sum   CRC-32
//! 36  header sum    CRC-32 of bytes 0..36
//! 40  row (JSON without the bodies), request body, response body
//! ```
//!
//! The bodies lie beside the row, unescaped: they are written from where they are (`pwritev`), unless they are short, and
//! can be dropped without parsing the row. Three sums instead of one, because a row outlives its bodies: damage within the
//! bodies costs the bodies only, and a length is believed only when the header's sum is right.
//!
//! Every sum starts from a salt, random per process and kept in the file's name. A client chooses the bodies; without
//! the salt it could send a body that contains a forged record, to be found when damage makes the reader search.
//!
//! Files are reused (see `directory`), so there may be old records behind the last one. The header's sum therefore
//! starts from a salt of the segment: old records are not believed. And an end mark of eight bytes follows each record
//! and is overwritten by the next: it tells the end from damage.

use std::ops::Range;

use bytes::Bytes;

use super::Payloads;
use super::directory::SegmentId;
use crate::domain::label::LogTable;

const MAGIC: [u8; 4] = [0xF5, b'N', b'G', b'J'];
const VERSION: u8 = 2;
const END_MAGIC: [u8; 4] = [0xF5, b'N', b'G', b'E'];
pub(super) const END: usize = 8;
pub(super) const HEADER: usize = 40;
/// Bytes of bodies up to which a record is written as one piece: with its row it then takes about a page.
const SHORT: usize = 3072;
const HAS_REQUEST: u8 = 1;
const HAS_RESPONSE: u8 = 2;

/// An intact record found by [`scan`]. Ranges and offsets count from the start of the scanned bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) start: usize,
    /// Where the next record may begin.
    pub(super) end: usize,
    pub(super) table: LogTable,
    pub(super) time_ms: u64,
    pub(super) row: Range<usize>,
    pub(super) request: Option<Range<usize>>,
    pub(super) response: Option<Range<usize>>,
    /// There were bodies, but they are damaged: the ranges above are `None`.
    pub(super) bodies_lost: bool,
}

impl Frame {
    pub(super) fn has_bodies(&self) -> bool {
        self.request.is_some() || self.response.is_some()
    }
}

/// The result of [`scan`].
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) frames: Vec<Frame>,
    /// All bytes before this offset have been scanned.
    pub(super) consumed: usize,
    /// The end mark was found at that offset: no record follows.
    pub(super) ended: bool,
    /// Damaged stretches skipped.
    pub(super) damaged: u64,
}

/// Header and row of a record whose bodies will follow it. The header has to be [sealed](seal) once the record's
/// segment is known.
///
/// # Errors
/// When the row does not serialise, or a part is longer than 4 GiB.
pub(super) fn encode(
    write_row: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>,
    table: LogTable,
    payloads: &Payloads,
    salt: u32,
    time_ms: u64,
) -> Result<Vec<u8>, EncodeError> {
    // A row without its bodies takes 500 to 700 bytes: one allocation for all, freed after the write.
    let bodies = if is_short(payloads) { payloads.len() } else { 0 };
    let mut head = Vec::with_capacity(1024 + bodies);
    head.resize(HEADER, 0);
    write_row(&mut head).map_err(EncodeError::Row)?;
    let (header, row) = head.split_at_mut(HEADER);
    let length =
        |bytes: Option<&Bytes>| u32::try_from(bytes.map_or(0, Bytes::len)).map_err(|_| EncodeError::TooLong);
    let mut sum = crc32fast::Hasher::new_with_initial(salt);
    for body in [&payloads.request, &payloads.response].into_iter().flatten() {
        sum.update(body);
    }
    let flags = if payloads.request.is_some() { HAS_REQUEST } else { 0 }
        | if payloads.response.is_some() { HAS_RESPONSE } else { 0 };
    header[0..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&[VERSION, table_code(table), flags, 0]);
    header[8..16].copy_from_slice(&time_ms.to_le_bytes());
    header[16..20]
        .copy_from_slice(&u32::try_from(row.len()).map_err(|_| EncodeError::TooLong)?.to_le_bytes());
    header[20..24].copy_from_slice(&length(payloads.request.as_ref())?.to_le_bytes());
    header[24..28].copy_from_slice(&length(payloads.response.as_ref())?.to_le_bytes());
    header[28..32].copy_from_slice(&checksum(salt, row).to_le_bytes());
    header[32..36].copy_from_slice(&sum.finalize().to_le_bytes());
    Ok(head)
}

/// Whether the bodies are short enough to be written as one piece with the head: copying them costs less than having the
/// kernel gather them.
pub(super) fn is_short(payloads: &Payloads) -> bool {
    payloads.len() <= SHORT
}

/// Why a row could not be framed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("the row does not serialise: {0}")]
    Row(serde_json::Error),
    #[error("the row is longer than 4 GiB")]
    TooLong,
}

/// Rewrites the record `frame` of `bytes` without its bodies. `id`: the segment it was found in.
pub(super) fn without_bodies(bytes: &[u8], frame: &Frame, id: SegmentId) -> Vec<u8> {
    let mut stripped = bytes[frame.start..frame.row.end].to_vec();
    let header = &mut stripped[..HEADER];
    header[4] = VERSION;
    header[6] = 0;
    header[20..28].fill(0);
    header[32..36].copy_from_slice(&checksum(id.salt, &[]).to_le_bytes());
    seal(header, id);
    stripped
}

/// Finds up to `max` intact records in `bytes`, skipping damage.
///
/// With `last`, nothing follows `bytes`, so that a record cut off at the end is damage; otherwise it is left
/// unconsumed, to be scanned again with more.
pub(super) fn scan(bytes: &[u8], id: SegmentId, last: bool, max: usize) -> Scan {
    let mut found = Scan::default();
    let mut at = 0;
    // One stretch of damage is counted once, however many false starts it contains.
    let mut in_damage = false;
    while at < bytes.len() && found.frames.len() < max {
        match parse(&bytes[at..], id, last) {
            Parsed::Frame(mut frame) => {
                frame.shift(at);
                at = frame.end;
                in_damage = frame.bodies_lost;
                found.damaged += u64::from(frame.bodies_lost);
                found.frames.push(frame);
            }
            Parsed::End => {
                found.ended = true;
                break;
            }
            Parsed::Cut if !last => break,
            Parsed::Cut | Parsed::Damaged => {
                if !in_damage {
                    found.damaged += 1;
                    in_damage = true;
                }
                at = match memchr::memmem::find(&bytes[at + 1..], &MAGIC) {
                    Some(next) => at + 1 + next,
                    // The magic may be cut in two by the end of the bytes.
                    None if !last => (at + 1).max(bytes.len().saturating_sub(MAGIC.len() - 1)),
                    None => bytes.len(),
                };
            }
        }
    }
    found.consumed = at;
    found
}

enum Parsed {
    Frame(Frame),
    /// May be a record, but more bytes are needed to know.
    Cut,
    Damaged,
    /// No record follows.
    End,
}

fn parse(bytes: &[u8], id: SegmentId, last: bool) -> Parsed {
    let mark = end_mark(id);
    if bytes.starts_with(&mark) {
        return Parsed::End;
    }
    // A partial mark at the end of the file counts as the mark. Up to three bytes of it may as well begin a record.
    if bytes.len() > 3 && mark.starts_with(bytes) {
        return if last { Parsed::End } else { Parsed::Cut };
    }
    let Some(header) = bytes.get(..HEADER) else {
        let known = bytes.len().min(MAGIC.len());
        return if bytes[..known] == MAGIC[..known] { Parsed::Cut } else { Parsed::Damaged };
    };
    let salt = match header[4] {
        // Version 1 salts headers like bodies, with the salt in the file's name.
        1 => id.salt,
        VERSION => header_salt(id),
        _ => return Parsed::Damaged,
    };
    if header[0..4] != MAGIC || number(header, 36) != checksum(salt, &header[..36]) {
        return Parsed::Damaged;
    }
    let Some(table) = table_of(header[5]) else { return Parsed::Damaged };
    let length = |at| usize::try_from(number(header, at)).unwrap_or(usize::MAX);
    let row = HEADER..HEADER.saturating_add(length(16));
    let request = row.end..row.end.saturating_add(length(20));
    let response = request.end..request.end.saturating_add(length(24));
    let whole = bytes.len() >= response.end;
    if !whole && !last {
        return Parsed::Cut;
    }
    let Some(text) = bytes.get(row.clone()) else { return Parsed::Cut };
    if number(header, 28) != checksum(id.salt, text) {
        return Parsed::Damaged;
    }
    let time_ms = u64::from(number(header, 8)) | u64::from(number(header, 12)) << 32;
    let mut frame = Frame {
        start: 0,
        end: response.end,
        table,
        time_ms,
        row,
        request: (header[6] & HAS_REQUEST != 0).then(|| request.clone()),
        response: (header[6] & HAS_RESPONSE != 0).then(|| response.clone()),
        bodies_lost: false,
    };
    if !whole || number(header, 32) != checksum(id.salt, &bytes[request.start..response.end]) {
        // The bytes behind the row cannot be trusted, not even their length: a write that failed half-way may have been
        // followed by the next record. The search goes on right behind the row.
        frame.end = frame.row.end;
        frame.request = None;
        frame.response = None;
        frame.bodies_lost = true;
    }
    Parsed::Frame(frame)
}

impl Frame {
    fn shift(&mut self, by: usize) {
        let moved = |range: &Range<usize>| range.start + by..range.end + by;
        self.start += by;
        self.end += by;
        self.row = moved(&self.row);
        self.request = self.request.as_ref().map(moved);
        self.response = self.response.as_ref().map(moved);
    }
}

/// Ties the header at the beginning of `head` to segment `id`, by writing its sum.
pub(super) fn seal(head: &mut [u8], id: SegmentId) {
    let sum = checksum(header_salt(id), &head[..36]);
    head[36..40].copy_from_slice(&sum.to_le_bytes());
}

/// The mark that follows the last record of segment `id`.
pub(super) fn end_mark(id: SegmentId) -> [u8; END] {
    let sum = checksum(header_salt(id), &END_MAGIC).to_le_bytes();
    let mut mark = [0; END];
    mark[..4].copy_from_slice(&END_MAGIC);
    mark[4..].copy_from_slice(&sum);
    mark
}

/// Differs from segment to segment of a process.
const fn header_salt(id: SegmentId) -> u32 {
    let seq = id.seq.to_le_bytes();
    id.salt ^ u32::from_le_bytes([seq[0], seq[1], seq[2], seq[3]]).wrapping_mul(0x9e37_79b9)
}

pub(super) fn checksum(salt: u32, bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new_with_initial(salt);
    sum.update(bytes);
    sum.finalize()
}

fn number(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

const fn table_code(table: LogTable) -> u8 {
    match table {
        LogTable::Completions => 0,
        LogTable::Embeddings => 1,
    }
}

const fn table_of(code: u8) -> Option<LogTable> {
    match code {
        0 => Some(LogTable::Completions),
        1 => Some(LogTable::Embeddings),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
