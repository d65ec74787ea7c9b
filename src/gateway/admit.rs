//! Admission of a caller: shutdown, a free place, key, limits, checked in this order.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::domain::key::{ApiKey, Limits};
use crate::domain::label::{LimitType, RejectReason};
use crate::limit::{LimitState, headers as limit_headers};

use super::Gateway;
use super::refusal::Refusal;
use super::scope::{RequestScope, Slot};

/// How long a caller is asked to wait when the gateway is full: requests come and go within seconds.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// There is no room, here or at the provider.
pub(super) fn overloaded() -> Refusal {
    let message = "There are too many requests in flight; try again.";
    Refusal::new(RejectReason::Overloaded, message).with_retry_after(OVERLOAD_RETRY)
}

/// A caller that was let in.
pub struct Caller {
    pub key: Arc<ApiKey>,
    /// The state of its key's limits, for the answer's headers.
    pub limits: LimitState,
}

impl Gateway {
    /// Admits a call that is not inference: the key's limits do not count it, but it needs a place like any other.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn admit_aside(&self, headers: &HeaderMap) -> Result<(Arc<ApiKey>, Slot), Refusal> {
        self.is_open()?;
        let slot = self.slots().take().ok_or_else(overloaded)?;
        Ok((self.authenticate(headers)?, slot))
    }

    fn is_open(&self) -> Result<(), Refusal> {
        if self.is_draining() {
            let message = "The gateway is shutting down; try again.";
            return Err(Refusal::new(RejectReason::ShuttingDown, message).with_retry_after(OVERLOAD_RETRY));
        }
        Ok(())
    }

    /// Admits a request, and takes it from its key's budget.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub async fn admit(&self, scope: &RequestScope, headers: &HeaderMap) -> Result<Caller, Refusal> {
        self.before_admission();
        self.is_open()?;
        if !scope.has_slot() {
            return Err(overloaded());
        }
        let key = self.authenticate(headers)?;
        if key.limits != Limits::default() {
            self.telemetry().limited_key_seen(&key.comment);
        }
        let decision = self.limiter().admit(&key).await;
        match decision.refused_by {
            None => Ok(Caller { key, limits: decision.state }),
            Some(limit_type) => {
                self.0.parts.limits.rejections.rejected(limit_type, &key.comment);
                let message = match limit_type {
                    LimitType::Rpm => "The key's limit of requests per minute is reached.",
                    LimitType::Tpm => "The key's limit of tokens per minute is reached.",
                };
                let mut refusal = Refusal::new(RejectReason::RateLimited, message);
                refusal.headers = limit_headers(&decision);
                Err(refusal)
            }
        }
    }
}
