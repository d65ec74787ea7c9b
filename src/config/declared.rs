//! Providers, models and keys that `nexusgate.toml` declares.

use serde::Deserialize;

use crate::domain::key::Secret;
use crate::domain::label::ModelType;
use crate::domain::provider::ProviderKind;

/// Everything the file declares; applied at start-up, idempotently.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Declared {
    pub providers: Vec<DeclaredProvider>,
    pub models: Vec<DeclaredModel>,
    pub api_keys: Vec<DeclaredKey>,
}

/// One `[[providers]]` entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredProvider {
    pub name: String,
    #[serde(rename = "type", deserialize_with = "kind")]
    pub kind: ProviderKind,
    #[serde(deserialize_with = "trimmed")]
    pub base_url: String,
    #[serde(default, deserialize_with = "secret")]
    pub api_key: Option<Secret>,
    #[serde(default, deserialize_with = "not_empty")]
    pub api_version: Option<String>,
    pub comment: Option<String>,
    /// HTTP proxy for this provider alone.
    #[serde(default, deserialize_with = "secret")]
    pub proxy_url: Option<Secret>,
    /// Whether `proxy_url` is used; it is, unless this says `false`.
    #[serde(default = "yes")]
    pub proxy_enabled: bool,
    /// Ask for usage on streams when the client did not.
    #[serde(default = "yes")]
    pub ask_stream_usage: bool,
    /// Calls at one time.
    pub max_concurrency: Option<u32>,
}

/// One `[[models]]` entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredModel {
    /// The name callers use.
    pub name: String,
    /// Name of the provider that offers it.
    pub provider: String,
    /// The name the provider uses; the same when left out.
    pub remote_id: Option<String>,
    #[serde(rename = "type", default = "chat", deserialize_with = "model_type")]
    pub model_type: ModelType,
    /// USD per million input tokens.
    pub input_price: Option<f64>,
    /// USD per million output tokens.
    pub output_price: Option<f64>,
    /// USD per million input tokens read from the provider's cache; `input_price` when left out.
    pub cached_input_price: Option<f64>,
    /// USD per million input tokens written to the provider's cache; `input_price` when left out.
    pub cache_write_price: Option<f64>,
    /// Share of the traffic relative to the other providers of this model.
    #[serde(default = "one")]
    pub weight: u32,
    /// In tokens.
    pub context_length: Option<u32>,
    /// Target for the first token, in milliseconds.
    pub slo_ttft_ms: Option<u32>,
    /// Target for each further token, in milliseconds.
    pub slo_tpot_ms: Option<u32>,
    pub comment: Option<String>,
}

/// One `[[api_keys]]` entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredKey {
    /// The key itself; write it as `${VAR}`.
    #[serde(deserialize_with = "required_secret")]
    pub key: Secret,
    pub comment: Option<String>,
    /// Requests per minute; unlimited when left out.
    pub rpm_limit: Option<u32>,
    /// Tokens per minute; unlimited when left out.
    pub tpm_limit: Option<u32>,
    /// RFC 3339.
    pub expires_at: Option<chrono::DateTime<chrono::Utc>>,
    /// System names it may call; all when left out.
    pub allowed_models: Option<Vec<String>>,
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn chat() -> ModelType {
    ModelType::Chat
}

fn kind<'de, D: serde::Deserializer<'de>>(input: D) -> Result<ProviderKind, D::Error> {
    let text = String::deserialize(input)?;
    ProviderKind::parse(&text).ok_or_else(|| {
        let names: Vec<&str> = ProviderKind::ALL.iter().map(|kind| kind.as_str()).collect();
        serde::de::Error::custom(format!("type = {text:?}: expected one of {}", names.join(", ")))
    })
}

fn model_type<'de, D: serde::Deserializer<'de>>(input: D) -> Result<ModelType, D::Error> {
    let text = String::deserialize(input)?;
    ModelType::parse(&text)
        .ok_or_else(|| serde::de::Error::custom(format!("type = {text:?}: expected chat or embedding")))
}

/// Text that may come from a file, which often ends with a line feed.
fn trimmed<'de, D: serde::Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    text(input).map(|text| text.trim().to_owned())
}

/// Text that is empty, as `${VAR:-}` leaves it, is none.
fn not_empty<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    Ok(Some(trimmed(input)?).filter(|text| !text.is_empty()))
}

fn secret<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Secret>, D::Error> {
    Ok(not_empty(input)?.map(Secret::new))
}

/// A string; the error for anything else does not repeat it.
fn text<'de, D: serde::Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    match toml::Value::deserialize(input)? {
        toml::Value::String(text) => Ok(text),
        other => Err(serde::de::Error::custom(format!("expected a string, not {}", other.type_str()))),
    }
}

fn required_secret<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Secret, D::Error> {
    let text = text(input)?;
    if text.len() < 16 {
        return Err(serde::de::Error::custom("key: expected at least 16 characters"));
    }
    Ok(Secret::new(text))
}
