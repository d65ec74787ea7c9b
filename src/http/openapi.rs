//! The OpenAPI document of everything the gateway serves, and Swagger UI to read it with.
//!
//! Admin handlers document themselves where they are routed. The inference routes share handlers and pass bodies
//! through, so they are documented here.

use std::sync::LazyLock;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderValue, header};
use serde_json::Value;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, Ref, ResponseBuilder, path::Operation};
use utoipa::{OpenApi, ToSchema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{admin, models, ops};

const JSON_PATH: &str = "/api/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "nexusgate",
        description = "An LLM gateway: OpenAI's and Anthropic's inference APIs in front of any provider, and an API to \
                       administer it.",
    ),
    paths(
        inference::chat_completions, inference::responses, inference::messages, inference::count_tokens,
        inference::embeddings, models::list, models::show, ops::healthz, ops::readyz, ops::metrics,
    ),
    tags(
        (name = "Inference", description = "The API for applications, with an API key"),
        (name = "Keys", description = "API keys and their limits"),
        (name = "Providers", description = "Upstream accounts"),
        (name = "Models", description = "The offered names, their providers and prices"),
        (name = "Request log", description = "Past requests, one by one and in sums"),
        (name = "Administration", description = "About the admin API itself"),
        (name = "Operations", description = "Health and metrics"),
    ),
)]
struct Document;

/// The document, as it is served and as it is kept in docs/openapi.json.
pub fn document() -> Value {
    let mut document = Document::openapi();
    let mut administration = admin::documentation();
    for item in administration.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.put, &mut item.post, &mut item.delete] {
            operation.iter_mut().for_each(guarded);
        }
    }
    document.merge(administration);
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("adminSecret", bearer("`ADMIN_SUPER_SECRET`"));
    components.add_security_scheme("apiKey", bearer("An API key"));
    components.add_security_scheme(
        "xApiKey",
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description("x-api-key", "An API key"))),
    );
    components.add_security_scheme("metricsToken", bearer("`METRICS_BEARER_TOKEN`, when it is set"));
    name_operations(&mut document);
    serde_json::to_value(document).unwrap_or_default()
}

fn bearer(description: &str) -> SecurityScheme {
    let mut scheme = Http::new(HttpAuthScheme::Bearer);
    scheme.description = Some(description.to_owned());
    SecurityScheme::Http(scheme)
}

/// The common part of all admin operations: the secret, and the errors that any of them may return.
fn guarded(operation: &mut Operation) {
    operation.security = Some(vec![SecurityRequirement::new("adminSecret", Vec::<String>::new())]);
    if operation.request_body.is_some() {
        add_error(operation, "408", "The rest of the body did not come in time");
    }
    for (status, description) in [
        ("401", "The admin secret is missing or wrong"),
        (
            "429",
            "Too many wrong secrets; `Retry-After` says how long to wait. The right one is never refused",
        ),
        ("500", "The gateway failed; its log says why"),
        ("503", "The database does not answer in time; the body says whether a change may still be made"),
    ] {
        add_error(operation, status, description);
    }
}

/// Adds an error of the admin API, unless the operation has its own of this status.
fn add_error(operation: &mut Operation, status: &str, description: &str) {
    let content = Content::new(Some(Ref::from_schema_name("AdminError")));
    let response =
        ResponseBuilder::new().description(description).content("application/json", content).build();
    operation.responses.responses.entry(status.to_owned()).or_insert(response.into());
}

/// Operation ids must be unique, and handlers share names (`list`, `show`): makes ids of the method and the path.
fn name_operations(document: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let words: Vec<&str> =
            path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let operations = [
            ("get", &mut item.get),
            ("put", &mut item.put),
            ("post", &mut item.post),
            ("delete", &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                operation.operation_id = Some(format!("{method}_{}", words.join("_")));
            }
        }
    }
}

/// `/api/openapi.json` and `/api/docs`.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // Made on first use: it takes some megabytes to make, and most gateways are never asked for it.
    static JSON: LazyLock<Bytes> = LazyLock::new(|| format!("{:#}", document()).into());
    let config = Config::new([JSON_PATH]).persist_authorization(true).try_it_out_enabled(true);
    let json_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Router::from(SwaggerUi::new("/api/docs").config(config))
        .route(JSON_PATH, get(move || std::future::ready(([json_type.clone()], JSON.clone()))))
}

/// An error in OpenAI's shape.
#[derive(ToSchema)]
#[schema(as = OpenAiError)]
#[expect(dead_code, reason = "the shape of what the gateway writes as bytes")]
pub(super) struct OpenAiError {
    error: OpenAiErrorDetail,
}

/// What is wrong.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape of what the gateway writes as bytes")]
struct OpenAiErrorDetail {
    message: String,
    r#type: String,
    code: Option<String>,
    param: Option<String>,
}

/// An error in Anthropic's shape.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape of what the gateway writes as bytes")]
struct AnthropicError {
    /// `error`.
    r#type: String,
    error: AnthropicErrorDetail,
}

/// What is wrong.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape of what the gateway writes as bytes")]
struct AnthropicErrorDetail {
    r#type: String,
    message: String,
}

/// The inference routes. Body fields that the gateway does not read are passed on, so only those it reads are
/// described.
#[expect(dead_code, reason = "documentation of routes whose handler is one for all formats")]
mod inference {
    use serde_json::Value;
    use utoipa::ToSchema;

    use super::{AnthropicError, OpenAiError};

    macro_rules! inference_route {
        (
            $(#[doc = $doc:literal])+
            $name:ident, $path:literal, $body:ident, $error:ident $(, $event_stream:literal)?
        ) => {
            $(#[doc = $doc])+
            #[utoipa::path(
                post, path = $path, tag = "Inference", request_body = $body,
                params(
                    ("X-NexusGate-Provider" = Option<String>, Header, description = "The provider to use"),
                    ("X-NexusGate-ReqId" = Option<String>, Header,
                        description = "Makes the request idempotent: one id of a key, one answer. Only the id is compared, not the body"),
                ),
                security(("apiKey" = []), ("xApiKey" = [])),
                responses(
                    (status = 200, description = "The answer, or the requested stream",
                        content((Object = "application/json") $(, (String = $event_stream))?)),
                    (status = 400, description = "The body cannot be routed, or the provider refused it", body = $error),
                    (status = 401, description = "No API key, or one that is not valid", body = $error),
                    (status = 404, description = "There is no such model", body = $error),
                    (status = 408, description = "The rest of the body did not come in time", body = $error),
                    (status = 409, description = "A request with this id is running, or its answer was not kept", body = $error),
                    (status = 413, description = "The body is too large", body = $error),
                    (status = 429, description = "The key's limit, or the provider's, is reached", body = $error),
                    (status = "4XX", description = "The provider's answer"),
                    (status = 500, description = "The gateway, or the provider, failed", body = $error),
                    (status = 502, description = "No provider answered", body = $error),
                    (status = 503, description = "The gateway is overloaded, or shutting down", body = $error),
                    (status = 504, description = "No provider answered in time", body = $error),
                    (status = "5XX", description = "The provider's answer"),
                ),
            )]
            pub(super) fn $name() {}
        };
    }

    inference_route!(
        /// OpenAI Chat Completions.
        chat_completions, "/v1/chat/completions", ChatRequest, OpenAiError, "text/event-stream"
    );
    inference_route!(
        /// OpenAI Responses.
        responses, "/v1/responses", ResponsesRequest, OpenAiError, "text/event-stream"
    );
    inference_route!(
        /// Anthropic Messages.
        messages, "/v1/messages", MessagesRequest, AnthropicError, "text/event-stream"
    );
    /// Anthropic's token counting, if a provider of the model supports it. Neither limited nor logged.
    #[utoipa::path(
        post, path = "/v1/messages/count_tokens", tag = "Inference", request_body = CountRequest,
        params(("X-NexusGate-Provider" = Option<String>, Header, description = "The provider to use")),
        security(("apiKey" = []), ("xApiKey" = [])),
        responses(
            (status = 200, description = "The count", body = Object),
            (status = 400, description = "The body cannot be routed, or no provider of the model counts tokens", body = AnthropicError),
            (status = 401, description = "No API key, or one that is not valid", body = AnthropicError),
            (status = 404, description = "There is no such model", body = AnthropicError),
            (status = 408, description = "The rest of the body did not come in time", body = AnthropicError),
            (status = 413, description = "The body is too large", body = AnthropicError),
            (status = "4XX", description = "The provider's answer"),
            (status = 500, description = "The gateway, or the provider, failed", body = AnthropicError),
            (status = 502, description = "The provider did not answer", body = AnthropicError),
            (status = 503, description = "The gateway is overloaded, or shutting down", body = AnthropicError),
            (status = "5XX", description = "The provider's answer"),
        ),
    )]
    pub(super) fn count_tokens() {}

    inference_route!(
        /// OpenAI Embeddings.
        embeddings, "/v1/embeddings", EmbeddingsRequest, OpenAiError
    );

    /// A Chat Completions request; all other fields are passed on.
    #[derive(ToSchema)]
    struct ChatRequest {
        /// A system name, perhaps with `@provider` behind it.
        model: String,
        messages: Vec<Value>,
        stream: Option<bool>,
    }

    /// A Responses request; all other fields are passed on.
    #[derive(ToSchema)]
    struct ResponsesRequest {
        /// A system name, perhaps with `@provider` behind it.
        model: String,
        input: Value,
        stream: Option<bool>,
    }

    /// A Messages request; all other fields are passed on.
    #[derive(ToSchema)]
    struct MessagesRequest {
        /// A system name, perhaps with `@provider` behind it.
        model: String,
        #[schema(minimum = 1)]
        max_tokens: u32,
        messages: Vec<Value>,
        stream: Option<bool>,
    }

    /// A Messages request whose tokens are counted; all other fields are passed on.
    #[derive(ToSchema)]
    struct CountRequest {
        /// A system name, perhaps with `@provider` behind it.
        model: String,
        messages: Vec<Value>,
    }

    /// An Embeddings request; all other fields are passed on.
    #[derive(ToSchema)]
    struct EmbeddingsRequest {
        /// A system name, perhaps with `@provider` behind it.
        model: String,
        /// A text, a list of texts, or tokens.
        input: Value,
    }
}
