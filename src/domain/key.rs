//! An API key as the request path sees it: without the key itself.

use std::fmt;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use super::label::LabelValue;

/// SHA-256 of a key, by which keys are looked up.
pub type KeyHash = [u8; 32];

/// Hashes a key for look-up. A key is 128 random bits or more, so a plain hash is enough (NIST SP 800-63B § 5.1.1
/// asks for salting and stretching only of low-entropy secrets).
pub fn hash_key(key: impl AsRef<[u8]>) -> KeyHash {
    Sha256::digest(key.as_ref()).into()
}

/// A configured caller.
#[derive(Debug, Clone)]
pub struct ApiKey {
    pub id: i64,
    /// The key's name in labels and logs; `unknown` without a comment from the administrator.
    pub comment: LabelValue,
    pub limits: Limits,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked: bool,
    /// System names this key may call; `None`: all.
    pub allowed_models: Option<Vec<String>>,
}

impl ApiKey {
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    pub fn may_use(&self, system_name: &str) -> bool {
        self.allowed_models.as_ref().is_none_or(|names| names.iter().any(|name| name == system_name))
    }
}

/// Per-minute limits; `None`: unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests per minute.
    pub rpm: Option<u32>,
    /// Tokens per minute, prompt and completion together.
    pub tpm: Option<u32>,
}

/// A string that must not be printed: credentials of providers and callers.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself. Each use of this is a place to look at in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is this secret. Takes as long for any two of a length: hashing first hides where they differ, and
    /// how long this one is.
    pub fn is(&self, given: &[u8]) -> bool {
        Sha256::digest(given).ct_eq(&Sha256::digest(self.0.as_bytes())).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
