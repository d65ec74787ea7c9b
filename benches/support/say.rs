//! Output lines beside criterion's own.

/// Writes a line.
pub(crate) fn say(line: impl std::fmt::Display) {
    use std::io::Write as _;
    // If this fails, there is no reader.
    let _ = writeln!(std::io::stdout(), "{line}");
}
