//! Tool names that a provider would not accept: in a namespace, or too long.

use sha2::{Digest, Sha256};

/// The longest name that OpenAI's API takes, in bytes.
const MAX_LEN: usize = 64;

/// The name of tool `name` of `namespace` where there are no namespaces: the form that clients used for their servers'
/// tools before there were any.
pub(crate) fn flat(namespace: &str, name: &str) -> String {
    let joined = format!("{namespace}__{name}");
    short(&joined).unwrap_or(joined)
}

/// The flat name of a tool that may be in a namespace.
pub(crate) fn within(namespace: Option<&str>, name: String) -> String {
    match namespace {
        Some(namespace) if !namespace.is_empty() => flat(namespace, &name),
        _ => name,
    }
}

/// A short form of a name that is too long: its beginning, and a hash that distinguishes it from others that begin
/// alike.
pub(crate) fn short(name: &str) -> Option<String> {
    if name.len() <= MAX_LEN {
        return None;
    }
    let digest = Sha256::digest(name.as_bytes());
    let tail = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    Some(format!("{}_{tail:08x}", &name[..name.floor_char_boundary(MAX_LEN - 9)]))
}

/// A tool that a provider knows by another name than the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Renamed {
    /// The provider's name for it.
    pub(crate) sent: String,
    /// The client's name for it.
    pub(crate) name: String,
    /// The client's namespace of it.
    pub(crate) namespace: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_stay_apart() {
        assert_eq!(short(&"a".repeat(64)), None);
        let (one, other) = (format!("{}1", "é".repeat(40)), format!("{}2", "é".repeat(40)));
        let (one, other) = (short(&one).unwrap(), short(&other).unwrap());
        assert_ne!(one, other);
        assert!(one.len() <= MAX_LEN && one.starts_with("ééé"), "{one}");
        assert_eq!(flat("mcp__files", "read"), "mcp__files__read");
        assert_eq!(flat(&"n".repeat(60), "read").len(), MAX_LEN);
    }
}
