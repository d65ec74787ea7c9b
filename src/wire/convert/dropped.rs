//! Fields that were left out because the target cannot express them.

/// Names kept per request; a client that sends more unknown fields learns of the first ones.
const MAX_NAMES: usize = 32;
/// Longer names, and names of unusual characters, are a client's invention and not repeated to it.
const MAX_LEN: usize = 64;

/// The names of the fields that were left out, in the client's words, each once, in the order of discovery.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    names: Vec<String>,
}

impl Dropped {
    /// Notes that `name` was left out.
    pub(crate) fn add(&mut self, name: impl Into<String>) {
        let mut name = name.into();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.len() > MAX_LEN || !name.chars().all(plain) {
            name = "other".into();
        }
        if self.names.len() < MAX_NAMES && !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_a_header() {
        let mut dropped = Dropped::default();
        dropped.add("seed");
        dropped.add("seed");
        dropped.add("messages.cache_control");
        dropped.add("a\r\nset-cookie: x");
        dropped.add("é");
        dropped.add("x".repeat(65));
        assert_eq!(dropped.into_names(), ["seed", "messages.cache_control", "other"]);
    }

    #[test]
    fn names_are_bounded() {
        let mut dropped = Dropped::default();
        for n in 0..1000 {
            dropped.add(format!("field_{n}"));
        }
        assert_eq!(dropped.into_names().len(), MAX_NAMES);
    }
}
