//! Lines for whoever runs the bench, beside criterion's own.

/// Writes a line.
pub(crate) fn say(line: impl std::fmt::Display) {
    use std::io::Write as _;
    // Nobody is there to read it if this fails.
    let _ = writeln!(std::io::stdout(), "{line}");
}
