//! The request log: one row for each finished request, in `completions` or `embeddings`.
//!
//! A [`LogRow`] is a finished request in the form of the log. It is made from a
//! [`RequestRecord`](crate::domain::record::RequestRecord), waits in the journal as JSON, and is written by
//! [`insert_batch`]; writing it twice is harmless. Reading gives the same type back.

mod json;
mod postgres;
mod read;
mod row;
mod sqlite;
mod stats;
mod usage;
mod write;
mod writer;

pub use read::{Cursor, LogFilter, Page, count, find_by_request_id, get, list};
pub use row::LogRow;
pub use stats::{Bucket, ModelCount, Overview, StatsRange, Totals, overview};
pub use usage::{Sums, UsageFilter, UsageGroup, UsageSum, usage_by};
pub use write::{delete, insert_batch, prune};
pub use writer::LogWriter;

#[cfg(test)]
pub(in crate::store) use read::{counting, listing};
#[cfg(test)]
pub(in crate::store) use write::columns;
