//! The gateway's settings for the demo: providers, models and keys, declared as a configuration file would.

use std::path::Path;

use rand::RngExt;

use crate::config::{ConfigError, Declared, DeclaredKey, DeclaredModel, DeclaredProvider, Settings};
use crate::domain::key::Secret;
use crate::domain::label::ModelType;
use crate::domain::provider::ProviderKind;

use super::report::VISITOR;
use super::traffic::Plan;
use super::upstreams::{self, Upstream};

/// Credentials for the gateway; new in each run.
pub(super) struct Secrets {
    pub(super) admin: String,
    /// For the person who watches the demo.
    pub(super) visitor: String,
    /// The applications' keys, with their comments.
    applications: Vec<(&'static str, String)>,
    few_requests: String,
    few_tokens: String,
}

/// Small enough that a demo of a few seconds runs into them (three times as much may be used at once).
const FEW_REQUESTS_PER_MINUTE: u32 = 4;
const FEW_TOKENS_PER_MINUTE: u32 = 200;

impl Secrets {
    pub(super) fn generate() -> Self {
        let mut rng = rand::rng();
        let mut key = || format!("sk-demo-{:032x}", rng.random::<u128>());
        let applications = ["checkout", "search", "support"].map(|comment| (comment, key())).to_vec();
        Self { admin: key(), visitor: key(), applications, few_requests: key(), few_tokens: key() }
    }
}

/// Everything in `folder`, on the loopback interface.
///
/// # Errors
/// None that a test would not find: all values are the demo's own.
pub(super) fn settings(
    folder: &Path,
    port: u16,
    secrets: &Secrets,
    upstreams: &[Upstream],
) -> Result<Settings, ConfigError> {
    let folder = folder.to_string_lossy();
    let mut settings = Settings::with(&[
        ("PORT", &port.to_string()),
        ("LISTEN_ADDR", "127.0.0.1"),
        ("DATABASE_URL", &format!("sqlite://{folder}/demo.db")),
        ("DATA_DIR", &format!("{folder}/data")),
        ("ADMIN_SUPER_SECRET", &secrets.admin),
        ("INSTANCE_ID", "demo"),
        // A demo is watched, so these are quicker than in production.
        ("GAUGE_REFRESH_INTERVAL", "2s"),
        ("SNAPSHOT_REFRESH_INTERVAL", "5s"),
        ("UPSTREAM_TIMEOUT", "30s"),
        ("STREAM_IDLE_TIMEOUT", "20s"),
        ("DRAIN_ON_DISCONNECT", "10s"),
        ("SHUTDOWN_GRACE", "10s"),
    ])?;
    settings.declared = declared(secrets, upstreams);
    Ok(settings)
}

fn declared(secrets: &Secrets, upstreams: &[Upstream]) -> Declared {
    let providers = upstreams.iter().map(|upstream| DeclaredProvider {
        name: upstream.name.to_owned(),
        kind: upstream.kind,
        base_url: upstream.base_url(),
        api_key: Some(Secret::new(format!("upstream-key-of-{}", upstream.name))),
        api_version: (upstream.kind == ProviderKind::Azure).then(|| "2024-10-21".to_owned()),
        comment: Some("scripted".to_owned()),
        proxy_url: None,
        proxy_enabled: false,
        ask_stream_usage: true,
        max_concurrency: None,
    });
    let models = upstreams.iter().flat_map(|upstream| {
        upstream.offers.iter().map(|offer| DeclaredModel {
            name: offer.name.to_owned(),
            provider: upstream.name.to_owned(),
            remote_id: Some(offer.remote.to_owned()),
            model_type: offer.model_type,
            input_price: offer.price.input,
            output_price: offer.price.output,
            cached_input_price: offer.price.cached_input,
            cache_write_price: offer.price.cache_write,
            weight: offer.weight,
            context_length: None,
            slo_ttft_ms: (offer.model_type == ModelType::Chat).then_some(500),
            slo_tpot_ms: (offer.model_type == ModelType::Chat).then_some(50),
            comment: None,
        })
    });
    let key = |comment: &str, key: &str, rpm_limit, tpm_limit| DeclaredKey {
        key: Secret::new(key),
        comment: Some(comment.to_owned()),
        rpm_limit,
        tpm_limit,
        expires_at: None,
        allowed_models: None,
    };
    let mut api_keys: Vec<DeclaredKey> =
        secrets.applications.iter().map(|(comment, secret)| key(comment, secret, None, None)).collect();
    api_keys.push(key("few-requests", &secrets.few_requests, Some(FEW_REQUESTS_PER_MINUTE), None));
    api_keys.push(key("few-tokens", &secrets.few_tokens, None, Some(FEW_TOKENS_PER_MINUTE)));
    api_keys.push(key(VISITOR, &secrets.visitor, None, None));
    Declared { providers: providers.collect(), models: models.collect(), api_keys }
}

/// Keys and models for the generator.
pub(super) fn plan(secrets: &Secrets, all: &[Upstream]) -> Plan {
    Plan {
        keys: secrets.applications.iter().map(|(_, key)| key.clone()).collect(),
        small_request_key: secrets.few_requests.clone(),
        small_token_key: secrets.few_tokens.clone(),
        chat_models: upstreams::names_of(all, ModelType::Chat),
        embedding_models: upstreams::names_of(all, ModelType::Embedding),
    }
}
