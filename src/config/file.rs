//! `nexusgate.toml`.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{ALL, ConfigError, Declared};

/// The sections that a file may have beside settings.
const SECTIONS: [&str; 3] = ["providers", "models", "api_keys"];

/// The parts of the file.
#[derive(Default)]
pub(super) struct ConfigFile {
    settings: Table,
    pub(super) declared: Declared,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let fail = |message: String| ConfigError::File { path: path.display().to_string(), message };
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        Self::parse(&text, |name| std::env::var(name).ok()).map_err(fail)
    }

    /// `variable` looks up the value of `${VAR}`.
    fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line =
                error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            format!("line {line}: {}", one_line(error.message()))
        })?;
        for (key, value) in &mut table {
            expand(key, value, &variable)?;
        }
        let declared = Declared {
            providers: entries(&mut table, "providers")?,
            models: entries(&mut table, "models")?,
            api_keys: entries(&mut table, "api_keys")?,
        };
        let mut known: Vec<String> = ALL.iter().map(super::SettingInfo::file_key).collect();
        if let Some(unknown) = table.keys().find(|key| !known.contains(key)) {
            known.extend(SECTIONS.map(str::to_owned));
            known.sort_by_key(|name| distance(name, unknown));
            return Err(format!("unknown setting {unknown:?}; did you mean {:?}?", known[0]));
        }
        Ok(Self { settings: table, declared })
    }

    /// The text of a setting, whatever TOML type it was written in.
    pub(super) fn get(&self, key: &str) -> Option<String> {
        match self.settings.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Array(items) => {
                let items: Vec<String> =
                    items.iter().map(|item| item.as_str().map_or(item.to_string(), str::to_owned)).collect();
                Some(items.join(","))
            }
            other => Some(other.to_string()),
        }
    }
}

/// The entries of a section, each read by itself, so that an error can name the one that is wrong.
fn entries<T: DeserializeOwned>(table: &mut Table, section: &str) -> Result<Vec<T>, String> {
    let entries = match table.remove(section) {
        None => Vec::new(),
        Some(Value::Array(entries)) => entries,
        Some(other) => {
            return Err(format!("{section}: expected `[[{section}]]` entries, not {}", other.type_str()));
        }
    };
    let read = |(index, entry): (usize, Value)| {
        let name = ["name", "comment"].iter().find_map(|key| entry.get(key)?.as_str());
        let named = name.map(|name| format!(" ({name:?})")).unwrap_or_default();
        entry.try_into().map_err(|error: toml::de::Error| {
            format!("{section} {}{named}: {}", index + 1, one_line(&error.to_string()))
        })
    };
    entries.into_iter().enumerate().map(read).collect()
}

/// Replaces `${VAR}` and `${VAR:-default}` in every string below `value`.
fn expand(key: &str, value: &mut Value, variable: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            *text = expand_text(text, variable).map_err(|problem| format!("{key}: {problem}"))?;
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| expand(key, item, variable)),
        Value::Table(table) => {
            table.iter_mut().try_for_each(|(inner, value)| expand(&format!("{key}.{inner}"), value, variable))
        }
        _ => Ok(()),
    }
}

fn expand_text(text: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner.find('}').ok_or("a `${` without its `}`")?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        // As in a shell, `:-` also replaces an empty value.
        let found = variable(name).filter(|found| default.is_none() || !found.is_empty());
        match found.or_else(|| default.map(str::to_owned)) {
            Some(found) => out.push_str(&found),
            None => return Err(format!("the environment variable {name} is not set")),
        }
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How unlike two names are: letters not shared, plus the difference in length.
fn distance(a: &str, b: &str) -> usize {
    let missing = b.chars().filter(|c| !a.contains(*c)).count();
    missing * 2 + a.len().abs_diff(b.len()) + usize::from(a.chars().next() != b.chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(text, |name| (name == "SECRET").then(|| "s3cret-value-0123456789".to_owned()))
    }

    #[test]
    fn settings_and_declarations_are_read() {
        let file = parse(
            r#"
            port = 8080
            upstream_timeout = "1m"
            [[providers]]
            name = "openai"
            type = "openai"
            base_url = "https://api.openai.com/v1"
            api_key = "${SECRET}"
            api_version = "${ABSENT:-}"
            [[models]]
            name = "gpt-4o"
            provider = "openai"
            input_price = 2.5
            [[api_keys]]
            key = "sk-${SECRET}"
            comment = "team a"
            rpm_limit = 60
            "#,
        )
        .expect("valid");
        assert_eq!(file.get("port").as_deref(), Some("8080"));
        assert_eq!(file.get("upstream_timeout").as_deref(), Some("1m"));
        assert_eq!(
            file.declared.providers[0].api_key.as_ref().map(|key| key.expose().to_owned()),
            Some("s3cret-value-0123456789".to_owned())
        );
        assert_eq!(file.declared.providers[0].api_version, None, "empty is none");
        assert_eq!(file.declared.api_keys[0].key.expose(), "sk-s3cret-value-0123456789");
        assert_eq!(file.declared.models[0].weight, 1);
    }

    #[test]
    fn mistakes_are_named_in_one_line() {
        for (text, part) in [
            ("prot = 1", "unknown setting \"prot\"; did you mean \"port\"?"),
            ("port = ", "line 1"),
            ("redis_url = \"${NOPE}\"", "redis_url: the environment variable NOPE is not set"),
            ("[[providers]]\nname = \"x\"\ntype = \"mystery\"\nbase_url = \"y\"", "mystery"),
            ("[[models]]\nname = \"x\"\nprovider = \"y\"\nprice = 3", "price"),
            ("redis_url = \"${OOPS\"", "without its"),
            (
                "[[models]]\nname = \"x\"\nprovider = \"y\"\n[[models]]\nname = \"z\"",
                "models 2 (\"z\"): missing field",
            ),
            ("[[api_keys]]\nkey = 1234567890123456789", "api_keys 1: expected a string, not integer"),
            ("providers = 5", "providers: expected `[[providers]]` entries, not integer"),
        ] {
            let error = parse(text).err().expect(text);
            assert!(error.contains(part), "{error}");
            assert!(!error.contains('\n') && !error.contains("1234"), "{error}");
        }
    }
}
