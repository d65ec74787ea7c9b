//! Counts the events of a stream without parsing them.

/// Counts server-sent events: an empty line after a non-empty one ends an event.
#[derive(Debug, Default)]
pub struct EventCounter {
    events: u32,
    /// Bytes in the current line; a CR does not count.
    in_line: bool,
    /// Whether there was a non-empty line since the last event.
    in_event: bool,
}

impl EventCounter {
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = &bytes[from..end];
            let filled = self.in_line || !(line.is_empty() || line == b"\r");
            if filled {
                self.in_event = true;
            } else if self.in_event {
                self.events += 1;
                self.in_event = false;
            }
            self.in_line = false;
            from = end + 1;
        }
        let rest = &bytes[from..];
        self.in_line |= !(rest.is_empty() || rest == b"\r");
    }

    pub fn events(&self) -> u32 {
        self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_however_they_are_cut() {
        let text = b"data: 1\n\ndata: 2\r\n\r\nevent: x\ndata: 3\n\n\n\ndata: [DONE]\n\ndata: cut";
        for step in 1..text.len() {
            let mut counter = EventCounter::default();
            text.chunks(step).for_each(|piece| counter.feed(piece));
            assert_eq!(counter.events(), 4, "{step}");
        }
    }
}
