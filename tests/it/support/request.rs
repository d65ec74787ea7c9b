//! Requests as clients write them.

use nexusgate::domain::label::ApiFormat;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use super::TestApp;

/// A call under construction.
pub struct Call<'a> {
    app: &'a TestApp,
    path: &'static str,
    key: String,
    pub body: Value,
    headers: Vec<(String, String)>,
}

impl<'a> Call<'a> {
    pub(super) fn chat(app: &'a TestApp, model: &str) -> Self {
        Self::completion(app, ApiFormat::OpenAiChat, model)
    }

    pub(super) fn completion(app: &'a TestApp, format: ApiFormat, model: &str) -> Self {
        let messages = json!([{ "role": "user", "content": "Say something." }]);
        let (path, body) = match format {
            ApiFormat::OpenAiChat => {
                ("/v1/chat/completions", json!({ "model": model, "messages": messages }))
            }
            ApiFormat::OpenAiResponses => {
                ("/v1/responses", json!({ "model": model, "input": "Say something." }))
            }
            ApiFormat::Anthropic => {
                ("/v1/messages", json!({ "model": model, "max_tokens": 100, "messages": messages }))
            }
        };
        Self { app, path, key: app.key.clone(), body, headers: Vec::new() }
    }

    pub(super) fn embeddings(app: &'a TestApp, model: &str) -> Self {
        let body = json!({ "model": model, "input": "Something." });
        Self { app, path: "/v1/embeddings", key: app.key.clone(), body, headers: Vec::new() }
    }

    pub fn streamed(self) -> Self {
        self.with("stream", json!(true))
    }

    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.body[field] = value;
        self
    }

    pub fn key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn build(self) -> RequestBuilder {
        let mut request = self.app.http.post(self.app.url(self.path)).bearer_auth(self.key).json(&self.body);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request
    }

    pub async fn send(self) -> Response {
        self.build().send().await.expect("an answer")
    }
}
