//! Puts blocks in sequence: some providers let blocks overlap (parallel tool calls whose arguments come in turns),
//! which no client's format expects.

use std::collections::VecDeque;

use crate::domain::chat::{Block, Seal, StreamEvent};

/// Passes events on so that blocks do not overlap: events of a block whose turn has not come wait.
#[derive(Debug, Default)]
pub(super) struct Sequencer {
    started: bool,
    /// The block that is passed on as it comes.
    open: Option<u32>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    key: u32,
    block: Block,
    text: String,
    seal: Option<Seal>,
    closed: bool,
}

impl Sequencer {
    /// Takes `event` and passes events that are due to `sink`.
    pub(super) fn pass(&mut self, event: StreamEvent, sink: &mut dyn FnMut(StreamEvent)) {
        if !self.started && !matches!(event, StreamEvent::Start { .. } | StreamEvent::Failed(_)) {
            self.started = true;
            sink(StreamEvent::Start { id: String::new() });
        }
        match event {
            StreamEvent::Start { .. } if self.started => {}
            StreamEvent::Start { .. } => {
                self.started = true;
                sink(event);
            }
            StreamEvent::Open { key, block } if self.open.is_some() => {
                self.waiting.push_back(Waiting {
                    key,
                    block,
                    text: String::new(),
                    seal: None,
                    closed: false,
                });
            }
            StreamEvent::Open { key, .. } => {
                self.open = Some(key);
                sink(event);
            }
            StreamEvent::Delta { key, .. } | StreamEvent::Seal { key, .. } | StreamEvent::Close { key }
                if self.open != Some(key) =>
            {
                self.keep(key, event);
            }
            StreamEvent::Close { .. } => {
                self.open = None;
                sink(event);
                self.promote(sink);
            }
            StreamEvent::Stop(_) | StreamEvent::End => {
                self.close_all(sink);
                sink(event);
            }
            StreamEvent::Delta { .. }
            | StreamEvent::Seal { .. }
            | StreamEvent::Usage(_)
            | StreamEvent::Failed(_) => sink(event),
        }
    }

    /// Keeps an event of a waiting block; drops it if the block is closed or unknown.
    fn keep(&mut self, key: u32, event: StreamEvent) {
        let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.key == key) else { return };
        match event {
            StreamEvent::Delta { text, .. } => waiting.text.push_str(&text),
            StreamEvent::Seal { seal, .. } => waiting.seal = Some(seal),
            StreamEvent::Close { .. } => waiting.closed = true,
            _ => {}
        }
    }

    /// Passes on the next waiting blocks, up to one that is still open.
    fn promote(&mut self, sink: &mut dyn FnMut(StreamEvent)) {
        while self.open.is_none()
            && let Some(Waiting { key, block, text, seal, closed }) = self.waiting.pop_front()
        {
            sink(StreamEvent::Open { key, block });
            if !text.is_empty() {
                sink(StreamEvent::Delta { key, text });
            }
            if let Some(seal) = seal {
                sink(StreamEvent::Seal { key, seal });
            }
            if closed {
                sink(StreamEvent::Close { key });
            } else {
                self.open = Some(key);
            }
        }
    }

    fn close_all(&mut self, sink: &mut dyn FnMut(StreamEvent)) {
        while let Some(key) = self.open.take() {
            sink(StreamEvent::Close { key });
            self.promote(sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::StopReason;

    fn pass(events: Vec<StreamEvent>) -> Vec<StreamEvent> {
        let mut sequencer = Sequencer::default();
        let mut passed = Vec::new();
        for event in events {
            sequencer.pass(event, &mut |event| passed.push(event));
        }
        passed
    }

    fn open(key: u32) -> StreamEvent {
        StreamEvent::Open { key, block: Block::Text }
    }

    fn delta(key: u32, text: &str) -> StreamEvent {
        StreamEvent::Delta { key, text: text.into() }
    }

    fn close(key: u32) -> StreamEvent {
        StreamEvent::Close { key }
    }

    #[test]
    fn blocks_that_overlap_come_one_after_another() {
        let start = || StreamEvent::Start { id: "x".into() };
        let passed = pass(vec![
            start(),
            open(0),
            delta(0, "a"),
            open(1),
            delta(1, "b"),
            delta(0, "c"),
            delta(1, "d"),
            open(2),
            close(1),
            close(0),
            delta(2, "e"),
            StreamEvent::Stop(StopReason::EndTurn),
        ]);
        let expected = vec![
            start(),
            open(0),
            delta(0, "a"),
            delta(0, "c"),
            close(0),
            open(1),
            delta(1, "bd"),
            close(1),
            open(2),
            delta(2, "e"),
            close(2),
            StreamEvent::Stop(StopReason::EndTurn),
        ];
        assert_eq!(passed, expected);
    }

    #[test]
    fn what_belongs_to_nothing_is_forgotten_and_the_start_comes_first() {
        let passed =
            pass(vec![delta(7, "x"), close(7), open(0), close(0), delta(0, "late"), StreamEvent::End]);
        let start = StreamEvent::Start { id: String::new() };
        assert_eq!(passed, vec![start, open(0), close(0), StreamEvent::End]);
    }
}
