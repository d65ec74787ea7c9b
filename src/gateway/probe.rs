//! Administrators' tests of a provider: whether it works, and which models it offers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde_json::{Value, json};

use crate::domain::label::ModelType;
use crate::domain::provider::{Provider, ProviderKind};
use crate::provider::{Destination, Operation, UpstreamHeaders, UpstreamRequest, endpoint};
use crate::wire::error::parse_error;
use crate::wire::openai_models::{is_openai, wants_max_completion_tokens};

use super::Gateway;
use super::gather::gather;

/// The timeout of each call: an administrator is waiting.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest answer: lists of models are some hundred kilobytes.
const MAX_ANSWER: usize = 8 << 20;
/// The longest error that is passed on, in characters.
const MAX_MESSAGE: usize = 500;
/// Tokens that a test asks for: the least that the Responses API takes.
const FEW_TOKENS: u32 = 16;

/// A model that a provider lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteModel {
    pub id: String,
    pub owned_by: Option<String>,
    /// Unix time in seconds.
    pub created: Option<i64>,
}

/// How one call went.
#[derive(Debug)]
pub struct Probe<T> {
    /// The status of the provider's answer; `None`: it did not answer.
    pub status: Option<StatusCode>,
    pub latency: Duration,
    /// The parsed answer, or why the call failed. Holds no secret.
    pub result: Result<T, String>,
}

impl Gateway {
    /// The models that `provider` lists.
    pub async fn remote_models(&self, provider: &Provider) -> Probe<Vec<RemoteModel>> {
        let uri =
            endpoint(provider, Operation::Models, "").map_err(|error| error.to_string()).and_then(|uri| {
                // Anthropic gives twenty unless asked for more.
                if provider.kind == ProviderKind::Anthropic {
                    with_query(&uri, "limit=1000")
                } else {
                    Ok(uri)
                }
            });
        let probe = self.probe(provider, Method::GET, uri, None).await;
        probe.and_then(|body| read_models(&body))
    }

    /// Tests whether the provider serves a model, by the smallest possible call.
    pub async fn test_model(&self, provider: &Provider, remote_id: &str, kind: ModelType) -> Probe<()> {
        let operation = match kind {
            ModelType::Chat => Operation::Complete,
            ModelType::Embedding => Operation::Embeddings,
        };
        let uri = endpoint(provider, operation, remote_id).map_err(|error| error.to_string());
        let body = smallest_call(provider.kind, kind, remote_id);
        let probe = self.probe(provider, Method::POST, uri, Some(&body)).await;
        probe.and_then(|body| match serde_json::from_slice::<Value>(&body) {
            Ok(Value::Object(_)) => Ok(()),
            _ => Err("The provider's answer is not a JSON object.".to_owned()),
        })
    }

    async fn probe(
        &self,
        provider: &Provider,
        method: Method,
        uri: Result<Uri, String>,
        body: Option<&Value>,
    ) -> Probe<Bytes> {
        let began = Instant::now();
        let mut status = None;
        let to = uri.and_then(|uri| Destination::new(uri).map_err(|error| error.to_string()));
        let result = match to {
            Err(error) => Err(format!("The base URL is not usable: {error}")),
            Ok(to) => {
                let (client, body) = (HeaderMap::new(), body.map(Value::to_string).unwrap_or_default());
                let mut headers = UpstreamHeaders::new(&client, provider);
                headers.add(header::ACCEPT, header::HeaderValue::from_static("application/json"));
                let request = UpstreamRequest { method, headers, body: body.into(), fresh: true };
                tokio::time::timeout(PATIENCE, self.call(provider, &to, request, &mut status))
                    .await
                    .unwrap_or_else(|_| {
                        Err(format!("The provider did not answer within {} s.", PATIENCE.as_secs()))
                    })
            }
        };
        let result = result.map_err(|message| {
            let clean = provider.without_secrets(message.as_bytes());
            String::from_utf8_lossy(&clean).chars().take(MAX_MESSAGE).collect()
        });
        Probe { status, latency: began.elapsed(), result }
    }

    async fn call(
        &self,
        provider: &Provider,
        to: &Destination,
        request: UpstreamRequest<'_>,
        status: &mut Option<StatusCode>,
    ) -> Result<Bytes, String> {
        let response = self.client().send(provider, to, request).await.map_err(|error| error.to_string())?;
        *status = Some(response.status());
        let good = response.status().is_success();
        let code = response.status().as_u16();
        let body = gather(response.into_body(), MAX_ANSWER, None)
            .await
            .map_err(|_| "The provider's answer broke off, or is too large.".to_owned())?;
        if good { Ok(body) } else { Err(format!("HTTP {code}: {}", parse_error(code, &body).message)) }
    }
}

impl<T> Probe<T> {
    fn and_then<U>(self, read: impl FnOnce(T) -> Result<U, String>) -> Probe<U> {
        Probe { status: self.status, latency: self.latency, result: self.result.and_then(read) }
    }
}

fn with_query(uri: &Uri, added: &str) -> Result<Uri, String> {
    let joint = if uri.query().is_some() { '&' } else { '?' };
    format!("{uri}{joint}{added}").parse().map_err(|error: http::uri::InvalidUri| error.to_string())
}

fn smallest_call(kind: ProviderKind, model_type: ModelType, remote_id: &str) -> Value {
    let said = "Say yes.";
    if model_type == ModelType::Embedding {
        return json!({ "model": remote_id, "input": said });
    }
    let messages = json!([{ "role": "user", "content": said }]);
    match kind {
        ProviderKind::OpenAiResponses => {
            json!({ "model": remote_id, "input": said, "max_output_tokens": FEW_TOKENS, "store": false })
        }
        ProviderKind::Anthropic => {
            json!({ "model": remote_id, "max_tokens": FEW_TOKENS, "messages": messages })
        }
        ProviderKind::OpenAi | ProviderKind::Azure | ProviderKind::Ollama => {
            let mut call = json!({ "model": remote_id, "messages": messages });
            let limit =
                if wants_max_completion_tokens(remote_id) { "max_completion_tokens" } else { "max_tokens" };
            // The name of a deployment on Azure need not tell its model, and so which limit it knows.
            if kind != ProviderKind::Azure || is_openai(remote_id) {
                call[limit] = FEW_TOKENS.into();
            }
            call
        }
    }
}

/// OpenAI's list, which the others follow: `data`, or a bare array as some servers have it.
fn read_models(body: &[u8]) -> Result<Vec<RemoteModel>, String> {
    let value: Value =
        serde_json::from_slice(body).map_err(|_| "The provider's list of models is not JSON.".to_owned())?;
    let listed = value.get("data").or_else(|| value.get("models")).unwrap_or(&value);
    let listed = listed.as_array().ok_or("The provider's answer holds no list of models.".to_owned())?;
    let text = |model: &Value, name: &str| model.get(name).and_then(Value::as_str).map(str::to_owned);
    let created = |model: &Value| {
        let dated = || {
            let time = chrono::DateTime::parse_from_rfc3339(model.get("created_at")?.as_str()?).ok()?;
            Some(time.timestamp())
        };
        model.get("created").and_then(Value::as_i64).or_else(dated)
    };
    let read = |model: &Value| {
        let id = text(model, "id").or_else(|| text(model, "name"))?;
        Some(RemoteModel { id, owned_by: text(model, "owned_by"), created: created(model) })
    };
    Ok(listed.iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_providers_list_is_read() {
        let ids = |body: &str| -> Vec<(String, Option<i64>)> {
            let models = read_models(body.as_bytes()).expect("models");
            models.into_iter().map(|model| (model.id, model.created)).collect()
        };
        let openai =
            r#"{"object":"list","data":[{"id":"a","object":"model","created":5,"owned_by":"x"},{"x":1}]}"#;
        assert_eq!(ids(openai), [("a".to_owned(), Some(5))]);
        let anthropic =
            r#"{"data":[{"type":"model","id":"c","created_at":"1970-01-01T00:01:00Z"}],"has_more":false}"#;
        assert_eq!(ids(anthropic), [("c".to_owned(), Some(60))]);
        assert_eq!(ids(r#"{"models":[{"name":"llama"}]}"#), [("llama".to_owned(), None)]);
        assert_eq!(ids(r#"[{"id":"bare"}]"#), [("bare".to_owned(), None)]);
        for wrong in ["<html>", "{}", "5", r#"{"data":{}}"#] {
            assert!(read_models(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_test_is_as_small_as_the_kind_allows() {
        use ProviderKind::{Anthropic, Azure, OpenAi, OpenAiResponses};
        for (kind, model, limit) in [
            (OpenAi, "gpt-4o", "max_tokens"),
            (OpenAi, "gpt-5", "max_completion_tokens"),
            (OpenAiResponses, "gpt-5", "max_output_tokens"),
            (Anthropic, "claude", "max_tokens"),
            (Azure, "gpt-4o", "max_tokens"),
        ] {
            assert_eq!(smallest_call(kind, ModelType::Chat, model)[limit], FEW_TOKENS, "{model}");
        }
        let messages = json!([{"role": "user", "content": "Say yes."}]);
        let deployment = smallest_call(Azure, ModelType::Chat, "prod-eu");
        assert_eq!(deployment, json!({"model": "prod-eu", "messages": messages}));
    }
}
