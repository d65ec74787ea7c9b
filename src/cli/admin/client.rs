//! The client of a gateway's admin API.

use std::time::Duration;

use clap::ArgMatches;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use url::Url;

use super::super::http::{HttpClient, gateway_url, http_client};
use super::super::{CliError, failed};

/// `providers test` waits for a provider; everything else answers at once.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Calls the admin API of one gateway.
pub(super) struct AdminClient {
    http: HttpClient,
    base: Url,
    secret: String,
}

impl AdminClient {
    /// Reads where the gateway is, and its secret, from the flags or the environment.
    pub(super) fn new(matches: &ArgMatches) -> Result<Self, CliError> {
        let text = matches.get_one::<String>("url").map_or("", String::as_str);
        let base = gateway_url(text)?;
        let secret = matches.get_one::<String>("admin-secret").filter(|secret| !secret.is_empty()).cloned();
        let secret = secret.ok_or_else(|| {
            CliError::Other("ADMIN_SUPER_SECRET is not set: the secret of the gateway's admin API".to_owned())
        })?;
        Ok(Self { http: http_client(&base)?, base, secret })
    }

    pub(super) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, CliError> {
        self.call(Method::GET, path, query, None).await
    }

    pub(super) async fn post(&self, path: &[&str], body: &Value) -> Result<Value, CliError> {
        self.call(Method::POST, path, &[], Some(body)).await
    }

    /// Requests a report, which comes with a success (200) and with a failure (502).
    pub(super) async fn report(&self, path: &[&str]) -> Result<Value, CliError> {
        let (status, answer) = self.send(Method::POST, path, &[], None).await?;
        let is_report = answer["success"].is_boolean();
        if status.is_success() || is_report { Ok(answer) } else { Err(refused(status, &answer)) }
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<Value, CliError> {
        self.call(Method::DELETE, path, &[], None).await
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, CliError> {
        let (status, answer) = self.send(method, path, query, body).await?;
        if status.is_success() { Ok(answer) } else { Err(refused(status, &answer)) }
    }

    /// `path` are segments below `/api/admin`, not yet escaped. An answer that is not JSON is returned as null.
    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), CliError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "admin"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.secret));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::from(body)).map_err(|error| failed(&error))?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| failed(&error))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| failed(&error))?;
            Ok((status, body.to_bytes()))
        };
        let late = || CliError::Other(format!("no answer within {} s", TIMEOUT.as_secs()));
        let (status, bytes) =
            tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(late()))?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }
}

/// The gateway's own error message, if it sent one.
fn refused(status: StatusCode, answer: &Value) -> CliError {
    let error = &answer["error"];
    let message = error["message"].as_str().or_else(|| error.as_str()).or_else(|| answer["message"].as_str());
    CliError::Other(match message {
        Some(message) => format!("{message} ({status})"),
        None => format!("the gateway answered {status}"),
    })
}
