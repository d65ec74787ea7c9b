//! The few fields of a request that change the shape of an answer.

use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Deserialize;

use super::Endpoint;
use super::failure::Failure;

/// The part of a request that the answer depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub endpoint: Endpoint,
    /// As the request names it; the deployment on Azure's deployment URLs; empty for the models list.
    pub model: String,
    pub stream: bool,
    /// `stream_options.include_usage` of chat completions.
    pub include_usage: bool,
    /// Inputs of an embeddings request.
    pub inputs: usize,
    /// `dimensions` of an embeddings request.
    pub dimensions: Option<usize>,
    /// `encoding_format` of an embeddings request is `base64`.
    pub base64: bool,
    /// The end user the client names (`user`); the demo marks its requests with it.
    pub user: Option<String>,
    /// The models list is asked for in Anthropic's way.
    pub anthropic: bool,
}

#[derive(Deserialize)]
struct RawAsk {
    model: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    input: Option<serde_json::Value>,
    #[serde(default)]
    dimensions: Option<usize>,
    #[serde(default)]
    encoding_format: Option<String>,
    #[serde(default)]
    max_tokens: Option<serde_json::Value>,
    #[serde(default)]
    user: Option<String>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// The endpoint of a path, and the Azure deployment it names.
pub(super) struct Place<'a> {
    pub(super) endpoint: Endpoint,
    pub(super) deployment: Option<&'a str>,
    pub(super) model: Option<&'a str>,
}

/// Finds the endpoint of a path. Anything may stand before the version, as with proxies that have a prefix; the version
/// must be there, so a gateway that leaves it out gets the 404 of a real provider.
pub(super) fn place(uri: &Uri) -> Option<Place<'_>> {
    let path = uri.path();
    if let Some((_, rest)) = path.split_once("/openai/deployments/") {
        let (deployment, operation) = rest.split_once('/')?;
        let endpoint = match operation {
            "chat/completions" => Endpoint::Chat,
            "embeddings" => Endpoint::Embeddings,
            _ => return None,
        };
        // Azure answers 404 "Resource not found" to deployment URLs without an API version.
        let versioned = uri.query()?.split('&').any(|pair| pair.starts_with("api-version="));
        return versioned.then_some(Place { endpoint, deployment: Some(deployment), model: None });
    }
    let (_, operation) = path.rsplit_once("/v1/")?;
    let at = |endpoint| Some(Place { endpoint, deployment: None, model: None });
    match operation {
        "chat/completions" => at(Endpoint::Chat),
        "embeddings" => at(Endpoint::Embeddings),
        "responses" => at(Endpoint::Responses),
        "messages" => at(Endpoint::Messages),
        "messages/count_tokens" => at(Endpoint::CountTokens),
        "models" => at(Endpoint::Models),
        _ => {
            let model = operation.strip_prefix("models/").filter(|model| !model.is_empty())?;
            Some(Place { endpoint: Endpoint::Models, deployment: None, model: Some(model) })
        }
    }
}

impl Ask {
    /// Reads a request as strictly as the real providers do in the points a gateway can get wrong: method, JSON, `model`,
    /// `stream_options` without `stream`, Anthropic's version header and `max_tokens`.
    pub(super) fn read(
        place: &Place<'_>,
        method: &Method,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Self, Failure> {
        let endpoint = place.endpoint;
        let anthropic = headers.contains_key("anthropic-version");
        if endpoint == Endpoint::Models {
            let ask = Self::bare(endpoint, place.model.unwrap_or_default().to_owned(), anthropic);
            return if *method == Method::GET { Ok(ask) } else { Err(Failure::method_not_allowed()) };
        }
        if *method != Method::POST {
            return Err(Failure::method_not_allowed());
        }
        let raw: RawAsk = serde_json::from_slice(body).map_err(|error| {
            Failure::bad_request(format!("We could not parse the JSON body of your request: {error}"))
        })?;
        let model = match (place.deployment, raw.model) {
            (Some(deployment), _) => deployment.to_owned(),
            (None, Some(model)) => model,
            (None, None) => return Err(Failure::bad_request("you must provide a model parameter")),
        };
        let stream = raw.stream.unwrap_or(false);
        match endpoint {
            Endpoint::Chat if raw.stream_options.is_some() && !stream => {
                return Err(Failure::bad_request(
                    "'stream_options' is only allowed when 'stream' is enabled",
                ));
            }
            Endpoint::Messages | Endpoint::CountTokens if !anthropic => {
                return Err(Failure::bad_request("anthropic-version: header is required"));
            }
            Endpoint::Messages if raw.max_tokens.is_none() => {
                return Err(Failure::bad_request("max_tokens: Field required"));
            }
            _ => {}
        }
        Ok(Self {
            stream,
            include_usage: raw.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            inputs: raw.input.as_ref().map_or(1, count_inputs),
            dimensions: raw.dimensions,
            base64: raw.encoding_format.as_deref() == Some("base64"),
            user: raw.user,
            ..Self::bare(endpoint, model, anthropic)
        })
    }

    /// The little that is known of an unreadable request: enough to shape the error.
    pub(super) fn refused(endpoint: Endpoint) -> Self {
        Self::bare(endpoint, String::new(), false)
    }

    /// Whether both get the same bytes for the same reply; the end user does not matter.
    pub(super) fn is_answered_like(&self, other: &Self) -> bool {
        let shape = |ask: &Self| {
            (
                ask.endpoint,
                ask.stream,
                ask.include_usage,
                ask.inputs,
                ask.dimensions,
                ask.base64,
                ask.anthropic,
            )
        };
        shape(self) == shape(other) && self.model == other.model
    }

    fn bare(endpoint: Endpoint, model: String, anthropic: bool) -> Self {
        Self {
            endpoint,
            model,
            stream: false,
            include_usage: false,
            inputs: 1,
            dimensions: None,
            base64: false,
            user: None,
            anthropic,
        }
    }
}

/// A string and an array of tokens are one input; an array of strings or of token arrays is as many as it is long.
fn count_inputs(input: &serde_json::Value) -> usize {
    match input {
        serde_json::Value::Array(items) if items.iter().any(|item| !item.is_number()) => items.len(),
        _ => 1,
    }
}

impl Failure {
    fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED)
            .message("Not allowed: use the documented method for this path")
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST).message(message)
    }
}
