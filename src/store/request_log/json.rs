//! A row as JSON, written by hand: this runs in the middle of every request, and takes a third of serde's time, which
//! escapes the field names each time and formats through `core::fmt`.

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};

use super::row::LogRow;

impl LogRow {
    /// Appends the row without its bodies, in the form that its `Deserialize` reads; the output of its `Serialize` for
    /// such a row differs only in the digits of the time.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        // Destructured, so that a new field cannot be forgotten here.
        let Self {
            table,
            id,
            api_key_id,
            model,
            model_id,
            provider,
            provider_id,
            api_format,
            status,
            stream,
            prompt_tokens,
            completion_tokens,
            cached_tokens,
            cache_write_tokens,
            reasoning_tokens,
            prompt_cost,
            completion_cost,
            duration_ms,
            ttft_ms,
            longest_stall_ms,
            overhead_ms,
            finish_reason,
            error,
            request_id,
            source,
            request_body: _,
            response_body: _,
            created_at,
        } = self;
        let mut json = Object { out };
        json.text(r#"{"table":"#, table.as_str());
        json.text(r#","id":"#, id.hyphenated().encode_lower(&mut [0; 36]));
        json.whole(r#","api_key_id":"#, *api_key_id);
        json.text(r#","model":"#, model);
        json.some_whole(r#","model_id":"#, *model_id);
        json.some_text(r#","provider":"#, provider.as_deref());
        json.some_whole(r#","provider_id":"#, *provider_id);
        json.some_text(r#","api_format":"#, api_format.as_deref());
        json.text(r#","status":"#, status);
        json.raw(if *stream { r#","stream":true"# } else { r#","stream":false"# });
        json.some_whole(r#","prompt_tokens":"#, *prompt_tokens);
        json.some_whole(r#","completion_tokens":"#, *completion_tokens);
        json.some_whole(r#","cached_tokens":"#, *cached_tokens);
        json.some_whole(r#","cache_write_tokens":"#, *cache_write_tokens);
        json.some_whole(r#","reasoning_tokens":"#, *reasoning_tokens);
        json.exact(r#","prompt_cost":"#, *prompt_cost);
        json.exact(r#","completion_cost":"#, *completion_cost);
        json.exact(r#","duration_ms":"#, *duration_ms);
        json.some_exact(r#","ttft_ms":"#, *ttft_ms);
        json.some_exact(r#","longest_stall_ms":"#, *longest_stall_ms);
        json.exact(r#","overhead_ms":"#, *overhead_ms);
        json.some_text(r#","finish_reason":"#, finish_reason.as_deref());
        json.some_text(r#","error":"#, error.as_deref());
        json.some_text(r#","request_id":"#, request_id.as_deref());
        if let Some(source) = source {
            json.text(r#","source":"#, source.hyphenated().encode_lower(&mut [0; 36]));
        }
        json.time(r#","created_at":"#, *created_at);
        json.raw("}");
    }
}

/// Writes members one after the other; each comes with the text before its value.
struct Object<'a> {
    out: &'a mut Vec<u8>,
}

impl Object<'_> {
    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn text(&mut self, before: &str, text: &str) {
        self.raw(before);
        if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
            // Writing a text to memory cannot fail.
            let _ = serde_json::to_writer(&mut *self.out, text);
        } else {
            self.raw("\"");
            self.raw(text);
            self.raw("\"");
        }
    }

    fn some_text(&mut self, before: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(before, text);
        }
    }

    fn whole(&mut self, before: &str, number: i64) {
        self.raw(before);
        self.raw(itoa::Buffer::new().format(number));
    }

    fn some_whole(&mut self, before: &str, number: Option<i64>) {
        if let Some(number) = number {
            self.whole(before, number);
        }
    }

    /// A float, as the shortest text that reads back to the same bits.
    fn exact(&mut self, before: &str, number: f64) {
        self.raw(before);
        self.raw("\"");
        self.raw(zmij::Buffer::new().format(number));
        self.raw("\"");
    }

    fn some_exact(&mut self, before: &str, number: Option<f64>) {
        if let Some(number) = number {
            self.exact(before, number);
        }
    }

    /// RFC 3339, in UTC, with nanoseconds.
    fn time(&mut self, before: &str, time: DateTime<Utc>) {
        self.raw(before);
        if !(0..=9999).contains(&time.year()) {
            let _ = serde_json::to_writer(&mut *self.out, &time);
            return;
        }
        self.raw("\"");
        for (number, digits, after) in [
            (time.year().unsigned_abs(), 4, "-"),
            (time.month(), 2, "-"),
            (time.day(), 2, "T"),
            (time.hour(), 2, ":"),
            (time.minute(), 2, ":"),
            // For a leap second chrono reports 1,000,000,000 nanoseconds or more.
            (time.second() + time.nanosecond() / 1_000_000_000, 2, "."),
            (time.nanosecond() % 1_000_000_000, 9, "Z\""),
        ] {
            let mut buffer = itoa::Buffer::new();
            let text = buffer.format(number);
            self.raw(&"000000000"[..digits - text.len()]);
            self.raw(text);
            self.raw(after);
        }
    }
}
