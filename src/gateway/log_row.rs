//! The store's rows, as the journal carries them.

use bytes::Bytes;

use crate::domain::label::LogTable;
use crate::store::request_log::LogRow;

use super::journal::{Payloads, Row};

impl Row for LogRow {
    fn table(&self) -> LogTable {
        self.table
    }

    fn take_payloads(&mut self) -> Payloads {
        Payloads {
            request: self.request_body.take().map(Bytes::from),
            response: self.response_body.take().map(Bytes::from),
        }
    }

    fn write_json(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        self.write_json(out);
        Ok(())
    }

    fn put_payloads(&mut self, payloads: Payloads) {
        self.request_body = payloads.request.and_then(text);
        self.response_body = payloads.response.and_then(text);
    }
}

/// What was UTF-8 when it was taken out is still; anything else was damaged on disk.
fn text(bytes: Bytes) -> Option<String> {
    String::from_utf8(bytes.into()).ok()
}
