//! URLs of operations.
//!
//! A provider's base URL is the one its SDK takes, with or without trailing slashes and with any prefix a proxy put
//! before it.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use http::Uri;
use url::Url;

use super::destination::{Destination, NoHost};
use crate::domain::model::Target;
use crate::domain::provider::{Provider, ProviderKind};

/// The `api-version` for Azure's deployment URLs when the provider names none: the last one that is generally
/// available.
const AZURE_API_VERSION: &str = "2024-10-21";

/// An operation of a provider's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A chat-like call in the provider's own format.
    Complete,
    Embeddings,
    /// The list of models on offer.
    Models,
    /// Anthropic's token counting.
    CountTokens,
}

impl Operation {
    fn path(self, kind: ProviderKind) -> &'static str {
        match (self, kind) {
            (Self::Complete, ProviderKind::Anthropic) => "messages",
            (Self::Complete, ProviderKind::OpenAiResponses) => "responses",
            (Self::Complete, _) => "chat/completions",
            (Self::Embeddings, _) => "embeddings",
            (Self::Models, _) => "models",
            (Self::CountTokens, _) => "messages/count_tokens",
        }
    }
}

/// The URL of `operation` at `provider`; `remote_id` names the deployment in Azure's older URLs.
///
/// # Errors
/// The base URL and the remote id do not make a URL.
pub fn endpoint(
    provider: &Provider,
    operation: Operation,
    remote_id: &str,
) -> Result<Uri, http::uri::InvalidUri> {
    let base = provider.base_url.path().trim_end_matches('/');
    let path = operation.path(provider.kind);
    let mut query = provider.base_url.query().map(str::to_owned);
    let full = match provider.kind {
        ProviderKind::OpenAi | ProviderKind::OpenAiResponses => format!("{base}/{path}"),
        ProviderKind::Ollama => format!("{}/v1/{path}", base.trim_end_matches("/v1")),
        ProviderKind::Anthropic => format!("{}/v1/{path}", base.trim_end_matches("/v1")),
        ProviderKind::Azure => {
            let (full, versioned) = azure_path(base, path, operation, remote_id);
            let version = provider.api_version.as_deref().or(versioned.then_some(AZURE_API_VERSION));
            if let Some(version) =
                version.filter(|_| !query.as_deref().unwrap_or("").contains("api-version="))
            {
                let added = format!("api-version={}", encode(version));
                query = Some(query.map_or(added.clone(), |query| format!("{query}&{added}")));
            }
            full
        }
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{full}{query}", origin(&provider.base_url)).parse()
}

/// Cache of destinations, by target and operation.
#[derive(Debug, Default)]
pub struct Endpoints(papaya::HashMap<(i64, Operation), Known, RandomState>);

#[derive(Debug)]
struct Known {
    made_for: Weak<Target>,
    destination: Arc<Destination>,
}

/// A provider's base URL and the model's name make no URL.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{0}")]
    Invalid(#[from] http::uri::InvalidUri),
    #[error("{0}")]
    NoHost(#[from] NoHost),
}

impl Endpoints {
    /// Forgets the destinations of all other targets.
    pub fn configured<'a>(&self, targets: impl Iterator<Item = &'a Target>) {
        let ids: HashSet<i64> = targets.map(|target| target.id).collect();
        self.0.pin().retain(|(id, _), _| ids.contains(id));
    }

    /// The destination for `operation` at `target`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn get(&self, target: &Arc<Target>, operation: Operation) -> Result<Arc<Destination>, EndpointError> {
        let known = self.0.pin();
        let place = (target.id, operation);
        // After an administrator's change the target is a new one under the same id.
        if let Some(Known { made_for, destination }) = known.get(&place)
            && std::ptr::eq(made_for.as_ptr(), Arc::as_ptr(target))
        {
            return Ok(destination.clone());
        }
        let uri = endpoint(&target.provider, operation, &target.remote_id)?;
        let destination = Arc::new(Destination::new(uri)?);
        known.insert(place, Known { made_for: Arc::downgrade(target), destination: destination.clone() });
        Ok(destination)
    }
}

/// Azure's path, and whether it needs an `api-version`.
fn azure_path(base: &str, path: &str, operation: Operation, remote_id: &str) -> (String, bool) {
    if base.ends_with("/openai/v1") {
        return (format!("{base}/{path}"), false);
    }
    if base.contains("/deployments/") {
        return (format!("{base}/{path}"), true);
    }
    let resource = base.trim_end_matches("/openai");
    match operation {
        Operation::Models => (format!("{resource}/openai/{path}"), true),
        _ => (format!("{resource}/openai/deployments/{}/{path}", encode(remote_id)), true),
    }
}

fn origin(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{}://{host}:{port}", url.scheme()),
        None => format!("{}://{host}", url.scheme()),
    }
}

fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::label::{LabelValue, ModelType};
    use crate::domain::model::Slo;
    use crate::domain::usage::Price;

    fn url(kind: ProviderKind, base: &str, version: Option<&str>, operation: Operation) -> String {
        let provider = Provider {
            id: 1,
            name: LabelValue::new("p"),
            kind,
            base_url: base.parse().expect("URL"),
            api_key: None,
            api_version: version.map(str::to_owned),
            proxy: None,
            ask_stream_usage: true,
            max_concurrency: None,
        };
        endpoint(&provider, operation, "my model").expect("URL").to_string()
    }

    #[test]
    fn a_base_url_is_what_the_sdk_takes() {
        use Operation::{Complete, CountTokens, Embeddings, Models};
        use ProviderKind::{Anthropic, Ollama, OpenAi, OpenAiResponses};
        for (kind, base, operation, expected) in [
            (OpenAi, "https://api.openai.com/v1", Complete, "https://api.openai.com/v1/chat/completions"),
            (OpenAi, "https://api.openai.com/v1//", Embeddings, "https://api.openai.com/v1/embeddings"),
            (OpenAi, "http://proxy:8080/team/v1", Models, "http://proxy:8080/team/v1/models"),
            (OpenAi, "https://h/v1?x=1", Complete, "https://h/v1/chat/completions?x=1"),
            (OpenAi, "http://[::1]:9/v1", Complete, "http://[::1]:9/v1/chat/completions"),
            (OpenAiResponses, "https://api.openai.com/v1/", Complete, "https://api.openai.com/v1/responses"),
            (Anthropic, "https://api.anthropic.com", Complete, "https://api.anthropic.com/v1/messages"),
            (Anthropic, "https://p/x/v1/", CountTokens, "https://p/x/v1/messages/count_tokens"),
            (Ollama, "http://localhost:11434", Complete, "http://localhost:11434/v1/chat/completions"),
            (Ollama, "http://localhost:11434/v1", Complete, "http://localhost:11434/v1/chat/completions"),
        ] {
            assert_eq!(url(kind, base, None, operation), expected);
        }
    }

    #[test]
    fn what_was_kept_for_targets_that_are_no_more_is_forgotten() {
        let target = |id| {
            Arc::new(Target {
                id,
                system_name: LabelValue::new("m"),
                remote_id: "m".into(),
                model_type: ModelType::Chat,
                price: Price::default(),
                weight: 1,
                slo: Slo::default(),
                created_at: chrono::DateTime::UNIX_EPOCH,
                provider: Arc::new(crate::provider::headers::tests::provider(ProviderKind::OpenAi)),
            })
        };
        let (one, other) = (target(1), target(2));
        let endpoints = Endpoints::default();
        for target in [&one, &other] {
            for operation in [Operation::Complete, Operation::Models] {
                endpoints.get(target, operation).expect("a URL");
            }
        }
        let in_use = endpoints.get(&other, Operation::Complete).expect("a URL");
        endpoints.configured([&*one].into_iter());
        assert_eq!(endpoints.0.len(), 2);
        assert_eq!(in_use.uri().host(), Some("h"));
    }

    #[test]
    fn azure_takes_both_forms() {
        use Operation::{Complete, Embeddings, Models};
        for (base, version, operation, expected) in [
            (
                "https://n.openai.azure.com/openai/v1",
                None,
                Complete,
                "https://n.openai.azure.com/openai/v1/chat/completions",
            ),
            (
                "https://n.openai.azure.com/openai/v1/",
                Some("preview"),
                Embeddings,
                "https://n.openai.azure.com/openai/v1/embeddings?api-version=preview",
            ),
            (
                "https://n.openai.azure.com/",
                Some("2025-01-01"),
                Complete,
                "https://n.openai.azure.com/openai/deployments/my%20model/chat/completions?api-version=2025-01-01",
            ),
            (
                "https://n.openai.azure.com/openai",
                None,
                Embeddings,
                "https://n.openai.azure.com/openai/deployments/my%20model/embeddings?api-version=2024-10-21",
            ),
            (
                "https://gw/p/openai/deployments/d1",
                None,
                Complete,
                "https://gw/p/openai/deployments/d1/chat/completions?api-version=2024-10-21",
            ),
            ("https://n", None, Models, "https://n/openai/models?api-version=2024-10-21"),
        ] {
            assert_eq!(url(ProviderKind::Azure, base, version, operation), expected);
        }
    }
}
