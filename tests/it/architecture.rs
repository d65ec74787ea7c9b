//! Imports point down only (ARCHITECTURE.md has the table).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each room and its permitted imports.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("config", &["domain"]),
    ("telemetry", &["domain"]),
    ("wire", &["domain"]),
    ("store", &["domain", "config", "telemetry"]),
    ("limit", &["domain", "config", "telemetry"]),
    ("provider", &["domain", "config", "telemetry", "wire"]),
    ("gateway", &["domain", "config", "telemetry", "wire", "store", "limit", "provider"]),
    ("http", &["domain", "config", "telemetry", "wire", "limit", "provider", "gateway"]),
    ("app", &["domain", "config", "telemetry", "wire", "store", "limit", "provider", "gateway", "http"]),
    ("demo", &["app", "config", "domain", "wire"]),
    ("cli", &["app", "demo", "config", "store", "telemetry"]),
];

/// Arrows outside the table: paths with the first prefix may also import the second.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Administration works on the database.
    ("src/http/admin/", "store"),
];

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    assert!(files.len() > 50, "the sources were found");
    let mut wrong = BTreeSet::new();
    for file in files {
        let name = file.strip_prefix(root).expect("below the root").display().to_string();
        let room = name.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(known, _)| *known == room) else {
            assert!(["lib", "main"].contains(&room.as_str()), "{name} stands in no room");
            continue;
        };
        let text = std::fs::read_to_string(&file).expect("readable");
        // Tests may look from above.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for imported in imports(text) {
            let excepted = EXCEPTIONS.iter().any(|(from, to)| name.starts_with(from) && imported == *to);
            if imported != room && !allowed.contains(&imported.as_str()) && !excepted {
                wrong.insert(format!("{name} imports {imported}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports must point down:\n{}",
        wrong.into_iter().collect::<Vec<_>>().join("\n")
    );
}

/// The rooms named after `crate::`, in imports and in paths.
fn imports(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect())
        .filter(|room: &String| MAY_IMPORT.iter().any(|(known, _)| known == room))
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
}
