//! Authentication by API key.

use std::sync::Arc;

use chrono::Utc;
use http::{HeaderMap, header};

use crate::domain::key::{ApiKey, hash_key};
use crate::domain::label::RejectReason;

use super::Gateway;
use super::refusal::Refusal;

impl Gateway {
    /// The key that a request carries as `Authorization: Bearer …` or `x-api-key`.
    ///
    /// # Errors
    /// A refusal with 401 when there is none, or it is unknown, revoked or expired.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<ApiKey>, Refusal> {
        let Some(given) = credential(headers) else {
            return Err(Refusal::new(
                RejectReason::MissingApiKey,
                "No API key was given. Send it as `Authorization: Bearer <key>` or `x-api-key: <key>`.",
            ));
        };
        // The look-up is by hash, so the time it takes says nothing about the keys that exist.
        let snapshot = self.snapshot();
        let Some(key) = snapshot.find_key(&hash_key(given)) else {
            return Err(Refusal::new(RejectReason::InvalidApiKey, "The API key is not valid."));
        };
        if key.revoked {
            return Err(Refusal::new(RejectReason::RevokedApiKey, "The API key has been revoked."));
        }
        if key.is_expired(Utc::now()) {
            return Err(Refusal::new(RejectReason::ExpiredApiKey, "The API key has expired."));
        }
        Ok(key.clone())
    }
}

fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let api_key = || headers.get("x-api-key").and_then(|value| value.to_str().ok());
    bearer.or_else(api_key).map(str::trim).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &'static str, value: &'static str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, header::HeaderValue::from_static(value));
        credential(&headers).map(str::to_owned)
    }

    #[test]
    fn keys_come_in_either_header() {
        assert_eq!(found("authorization", "Bearer sk-1").as_deref(), Some("sk-1"));
        assert_eq!(found("authorization", "bearer  sk-1 ").as_deref(), Some("sk-1"));
        assert_eq!(found("x-api-key", "sk-2").as_deref(), Some("sk-2"));
        assert_eq!(found("authorization", "Basic abc"), None);
        assert_eq!(found("authorization", "Bearer "), None);
    }
}
