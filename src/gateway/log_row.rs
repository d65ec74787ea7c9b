//! The store's rows, as the journal carries them.

use bytes::Bytes;
use bytestring::ByteString;

use crate::domain::label::LogTable;
use crate::store::request_log::LogRow;

use super::journal::{Payloads, Row};

impl Row for LogRow {
    fn table(&self) -> LogTable {
        self.table
    }

    fn payloads(&self) -> Payloads {
        let bytes = |body: &Option<ByteString>| body.as_ref().map(|body| body.as_bytes().clone());
        Payloads { request: bytes(&self.request_body), response: bytes(&self.response_body) }
    }

    fn set_payloads(&mut self, payloads: Payloads) {
        // Bodies were UTF-8 when they were written; anything else was damaged on disk.
        let text = |body: Option<Bytes>| body.and_then(|body| ByteString::try_from(body).ok());
        self.request_body = text(payloads.request);
        self.response_body = text(payloads.response);
    }

    fn write_json(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        self.write_json(out);
        Ok(())
    }
}
