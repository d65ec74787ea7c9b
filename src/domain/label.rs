//! Label values: closed enums, and sanitised strings that an administrator configured.
//!
//! A metric label is either one of the enums below or a [`LabelValue`]. There is no third way, so a string
//! that a client sent cannot become a label by accident.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Declares an enum whose variants have one fixed label value each.
macro_rules! label_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every variant, in the order of declaration: `ALL[v as usize] == v`.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The label value of every variant, in the same order.
            pub const VALUES: &'static [&'static str] = &[$($text),+];

            /// The label value, also the text stored in the request log.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The variant with this label value.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label_enum! {
    /// The wire format a client speaks.
    ApiFormat {
        /// OpenAI Chat Completions, `POST /v1/chat/completions`.
        OpenAiChat = "openai-chat",
        /// OpenAI Responses, `POST /v1/responses`.
        OpenAiResponses = "openai-responses",
        /// Anthropic Messages, `POST /v1/messages`.
        Anthropic = "anthropic",
    }
}

label_enum! {
    /// How an accepted request ended.
    Status {
        /// The client received the whole answer.
        Completed = "completed",
        /// No answer, or one that broke off on the provider's or the gateway's side.
        Failed = "failed",
        /// The client left first.
        Aborted = "aborted",
        /// Answered from the request log by request id; no provider was called.
        CacheHit = "cache_hit",
    }
}

label_enum! {
    /// Why a request was refused before it reached a model.
    RejectReason {
        MissingApiKey = "missing_api_key",
        InvalidApiKey = "invalid_api_key",
        ExpiredApiKey = "expired_api_key",
        RevokedApiKey = "revoked_api_key",
        ModelNotFound = "model_not_found",
        InvalidRequest = "invalid_request",
        BodyTooLarge = "body_too_large",
        RateLimited = "rate_limited",
        InFlightDuplicate = "in_flight_duplicate",
        Overloaded = "overloaded",
        ShuttingDown = "shutting_down",
        /// The client left before its request was complete, or before it was decided on.
        ClientClosed = "client_closed",
        /// A handler panicked.
        InternalError = "internal_error",
    }
}

label_enum! {
    /// The one of a key's two limits that refused a request.
    LimitType {
        /// Requests per minute.
        Rpm = "rpm",
        /// Tokens per minute.
        Tpm = "tpm",
    }
}

label_enum! {
    /// How one call to one provider ended.
    Outcome {
        Ok = "ok",
        /// No connection: refused, unreachable, DNS, TLS, or the connect timeout.
        Connect = "connect",
        /// No first byte in time, or a stream that fell silent.
        Timeout = "timeout",
        Http429 = "http_429",
        Http4xx = "http_4xx",
        Http5xx = "http_5xx",
        /// An answer that violates its format.
        Protocol = "protocol",
        /// The answer broke off.
        StreamCut = "stream_cut",
        /// The gateway gave up because the client had left.
        Cancelled = "cancelled",
    }
}

label_enum! {
    /// What a model is for.
    ModelType { Chat = "chat", Embedding = "embedding" }
}

label_enum! {
    /// Why the model stopped, folded to the reasons that all formats have.
    FinishReason {
        Stop = "stop",
        Length = "length",
        ToolCalls = "tool_calls",
        ContentFilter = "content_filter",
        Other = "other",
    }
}

label_enum! {
    /// Why tokens were paid for in vain.
    WasteReason { Aborted = "aborted", Failed = "failed" }
}

label_enum! {
    /// A table of the request log.
    LogTable { Completions = "completions", Embeddings = "embeddings" }
}

label_enum! {
    /// A kind of Redis operation.
    RedisOp {
        /// Connecting, and proving that the connection works.
        Connect = "connect",
        /// Probing an idle connection.
        Probe = "probe",
        /// Deciding on a request.
        Admit = "admit",
        /// Charging tokens.
        Charge = "charge",
        /// Reading usage.
        Usage = "usage",
        /// Reading, adding or moving rejection counts.
        Rejections = "rejections",
        /// Announcing a change to the other replicas.
        Announce = "announce",
        /// Listening for announcements.
        Subscribe = "subscribe",
        /// Locks on requests in flight.
        Lock = "lock",
        /// Leases.
        Lease = "lease",
    }
}

/// The longest label value, in characters.
pub const LABEL_MAX_CHARS: usize = 128;

/// A configured name made safe for exposition: at most [`LABEL_MAX_CHARS`] characters, no control characters,
/// no backslash (the exporter escapes it wrongly: `a\b` and `a\\b` would become one series twice).
///
/// Equality compares the text; hashing costs one `u64`, computed once, because every finished request looks
/// its series up by three of these.
#[derive(Clone)]
pub struct LabelValue {
    text: Arc<str>,
    hash: u64,
}

impl LabelValue {
    /// Sanitises `raw`; if nothing is left, the label is `unknown`.
    pub fn new(raw: &str) -> Self {
        let clean: String = raw
            .chars()
            .take(LABEL_MAX_CHARS)
            .map(|c| match c {
                '\\' => '/',
                c if c.is_control() => ' ',
                c => c,
            })
            .collect();
        let clean = clean.trim();
        let text = if clean.is_empty() { "unknown" } else { clean };
        // Fixed keys: the hash only has to spread configured names, which no attacker chooses.
        let mut hasher = std::hash::DefaultHasher::new();
        text.hash(&mut hasher);
        Self { text: text.into(), hash: hasher.finish() }
    }

    /// The text; it has no control characters.
    pub fn shared(&self) -> Arc<str> {
        self.text.clone()
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for LabelValue {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for LabelValue {}

impl Hash for LabelValue {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_safe_to_expose() {
        assert_eq!(LabelValue::new("a\\b").as_str(), "a/b");
        assert_eq!(LabelValue::new("a\nb\0").as_str(), "a b");
        assert_eq!(LabelValue::new("  ").as_str(), "unknown");
        assert_eq!(LabelValue::new(&"é".repeat(300)).as_str().chars().count(), LABEL_MAX_CHARS);
        assert_eq!(LabelValue::new("team:\"x\",{}=é").as_str(), "team:\"x\",{}=é");
    }

    #[test]
    fn enums_know_their_place_and_text() {
        for (index, reason) in RejectReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(RejectReason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(Status::parse("nonsense"), None);
    }
}
