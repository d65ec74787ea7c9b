//! The admin API, through the running gateway.

mod access;
mod keys;
mod logs;
mod models;
mod operator_keys;
mod provider_test;
mod providers;
mod secrets;
mod spec;

use reqwest::{Method, Response};
use serde_json::Value;

use crate::support::TestApp;

/// An administrator of a test's gateway.
pub struct Administrator<'a>(pub &'a TestApp);

impl Administrator<'_> {
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    /// A request with the secret.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = self.0.url(&format!("/api/admin{path}"));
        self.0.http.request(method, url).bearer_auth(self.0.running().admin_secret().expose())
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::read(request.send().await.expect("an answer")).await
    }
}

/// An answer of the admin API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    pub async fn read(response: Response) -> Self {
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["content-type"], "application/json");
        let status = response.status().as_u16();
        Self { status, body: response.json().await.expect("JSON") }
    }

    /// The body of a success.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Checks that it is this error, about this field if any, and returns its message.
    pub fn refused(self, status: u16, code: &str, field: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.body["code"], code, "{}", self.body);
        assert_eq!(self.body["field"].as_str(), field, "{}", self.body);
        self.body["error"].as_str().expect("a sentence").to_owned()
    }
}
