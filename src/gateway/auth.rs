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

fn credential(headers: &HeaderMap) -> Option<&[u8]> {
    let api_key = || headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii());
    bearer(headers).or_else(api_key).filter(|key| !key.is_empty())
}

/// Credentials of the Bearer scheme (RFC 6750 § 2.1), as bytes: a secret need not be ASCII.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, given) = value.split_at_checked(value.iter().position(|byte| *byte == b' ')?)?;
    let given = given.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer") && !given.is_empty()).then_some(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(given: &[(&'static str, &'static str)]) -> Option<String> {
        let given = given.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), header::HeaderValue::from_static(value))
        });
        credential(&given.collect()).map(|key| String::from_utf8_lossy(key).into_owned())
    }

    #[test]
    fn keys_come_in_either_header() {
        assert_eq!(found(&[("authorization", "Bearer sk-1")]).as_deref(), Some("sk-1"));
        assert_eq!(found(&[("authorization", "bearer   sk-1 ")]).as_deref(), Some("sk-1"));
        assert_eq!(found(&[("x-api-key", " sk-2")]).as_deref(), Some("sk-2"));
        for nothing in ["Basic abc", "Bearer", "Bearer ", "sk-1", ""] {
            assert_eq!(found(&[("authorization", nothing)]), None, "{nothing}");
            assert_eq!(found(&[("authorization", nothing), ("x-api-key", "sk-2")]).as_deref(), Some("sk-2"));
        }
        assert_eq!(
            found(&[("authorization", "Bearer sk-1"), ("x-api-key", "sk-2")]).as_deref(),
            Some("sk-1")
        );
    }
}
