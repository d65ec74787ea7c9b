//! Output of the demo.

use std::io::{self, Write};

/// Standard output. A closed reader (`nexusgate demo | head`) is no reason to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Console {
    quiet: bool,
}

impl Console {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Prints a line for a person to watch, unless quiet.
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
