//! The settings as documentation.

use std::fmt::Write as _;

use super::{ALL, SettingInfo};

/// `docs/SETTINGS.md`, whole.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Settings\n\n\
         Generated from `src/config/mod.rs` by `cargo run -- settings-reference > docs/SETTINGS.md`; do not edit.\n\n\
         Each setting is an environment variable, a flag (`UPSTREAM_TIMEOUT` is `--upstream-timeout`) and a key of the\n\
         settings file (`upstream_timeout`). Flags win over the environment, both over the file, all over the default.\n\
         Durations are written like `30s`, `5m`, `1h 30m`; sizes like `32MiB`. A wrong value stops start-up with one line\n\
         that names the setting, the value and what it takes; `nexusgate check-config` finds it without starting anything.\n\n\
         | setting | takes | default | meaning |\n|---|---|---|---|\n",
    );
    for info in ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            info.name,
            cell(info.takes),
            default(info),
            cell(info.help()),
        );
    }
    out.push_str(FILE);
    out
}

fn default(info: &SettingInfo) -> String {
    match info.default {
        None | Some("") => "–".to_owned(),
        Some(text) => format!("`{text}`"),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The rest of the page.
const FILE: &str = r#"
## The settings file

`--config nexusgate.toml` (or `NEXUSGATE_CONFIG`) names a TOML file. It may hold every setting above, in lower case, and
declare providers, models and API keys. They are applied at each start, idempotently: a declared entry is created or
updated by its name (a key by its text), all other entries are left alone. `${VAR}` and `${VAR:-default}` stand for
environment variables anywhere in a string; write secrets that way. An unknown key is an error, and is named.

```toml
port = 3000
gauge_refresh_interval = "15s"

[[providers]]
name = "openai"                        # the label of metrics, and the provider of `model@openai`
type = "openai"                        # openai, openai-responses, anthropic, azure, ollama
base_url = "https://api.openai.com/v1" # the base URL as the provider's SDK takes it
api_key = "${OPENAI_API_KEY}"
# api_version = "2024-10-21"           # azure with deployments
# proxy_url = "http://proxy:3128"      # an HTTP proxy for this provider alone
# ask_stream_usage = false             # for providers that refuse stream_options
# max_concurrency = 100                # concurrent calls; further ones go to the next provider

[[models]]
name = "gpt-4o"                        # the name that callers use
provider = "openai"
# remote_id = "gpt-4o-2024-11-20"      # the name that the provider uses
# type = "embedding"                   # chat when left out
input_price = 2.5                      # USD per million tokens
output_price = 10.0
cached_input_price = 1.25              # read from the provider's cache; input_price when left out
# cache_write_price = 3.125            # written to it; input_price when left out
weight = 3                             # share of the traffic among the providers of this name
slo_ttft_ms = 1000                     # targets that nexusgate_completions_within_slo_total counts against
slo_tpot_ms = 50

[[api_keys]]
key = "${TEAM_SEARCH_KEY}"             # at least 16 characters
comment = "team-search"                # the label of metrics
rpm_limit = 600                        # requests per minute; left out: unlimited (the admin API's default is 50)
tpm_limit = 200000                     # tokens per minute; left out: unlimited (the admin API's default is 50,000)
# expires_at = "2027-01-01T00:00:00Z"
# allowed_models = ["gpt-4o"]
```
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_valid_file() {
        let example =
            FILE.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nexusgate.toml");
        // Comments show further keys; they must be valid too.
        let text = example
            .lines()
            .map(|line| line.strip_prefix("# ").unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n")
            .replace("${OPENAI_API_KEY}", "sk-0123456789abcdef")
            .replace("${TEAM_SEARCH_KEY}", "sk-0123456789abcdef");
        std::fs::write(&path, text).expect("written");
        let settings = super::super::Settings::load(Some(&path), |_| None).expect("valid");
        assert_eq!(settings.declared.models[0].slo_ttft_ms, Some(1000));
        assert_eq!(settings.declared.providers[0].max_concurrency, Some(100));
    }
}
