//! Where the demo prints.

use std::io::{self, Write};

/// Standard output. A reader that has gone away (`nexusgate demo | head`) is no reason to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Console {
    quiet: bool,
}

impl Console {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Prints what a person watches; nothing when it is to be quiet.
    pub(super) fn say(self, text: &str) {
        if !self.quiet {
            Self::print(text);
        }
    }

    /// Prints a result, quiet or not.
    pub(super) fn print(text: &str) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}
