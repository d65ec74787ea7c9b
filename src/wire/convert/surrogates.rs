//! Texts that were cut in the middle of a character.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// Reads JSON. Servers that cut texts between two UTF-16 units, as JavaScript does, write half of a surrogate pair,
/// which is not a character: it becomes U+FFFD. Only JSON that was refused is searched for such halves.
pub(crate) fn read_lossy<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|error| match without_halves(json) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(whole) => serde_json::from_slice(&whole),
    })
}

/// The same JSON with U+FFFD for every escape of a lone surrogate. Backslashes occur only in strings.
fn without_halves(json: &[u8]) -> Cow<'_, [u8]> {
    let mut whole = Cow::Borrowed(json);
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &json[at..]) {
        at += found;
        at += match (unit(json, at), unit(json, at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => {
                // As long as what it replaces.
                whole.to_mut()[at..at + 6].copy_from_slice(br"\ufffd");
                6
            }
            (Some(_), _) => 6,
            (None, _) => 2.min(json.len() - at),
        };
    }
    whole
}

/// The UTF-16 unit whose escape begins `at`.
fn unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(br"\u")?;
    let digits = std::str::from_utf8(digits).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn half_a_character_is_a_replacement_character() {
        for (json, expected) in [
            (r#""a\ud83d""#, Some("a\u{fffd}")),
            (r#""\ude00b""#, Some("\u{fffd}b")),
            (r#""\uD83D\ud83d\ude00""#, Some("\u{fffd}😀")),
            (r#""\ude00\ud83d""#, Some("\u{fffd}\u{fffd}")),
            (r#""\ud83d\n\ud83d\u0041""#, Some("\u{fffd}\n\u{fffd}A")),
            (r#""\\ud83d \ud83d\\""#, Some("\\ud83d \u{fffd}\\")),
            (r#""\ud83d\ude00""#, Some("😀")),
            (r#""\ud83d"#, None),
            (r#""\ud83d\"#, None),
            (r#""\ud83d\u12"#, None),
            (r#""\ud83""#, None),
            (r#""\q""#, None),
        ] {
            let read = read_lossy::<Value>(json.as_bytes()).ok();
            assert_eq!(read, expected.map(Value::from), "{json}");
        }
    }
}
