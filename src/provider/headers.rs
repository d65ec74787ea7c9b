//! Headers that cross the gateway.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::domain::provider::{Provider, ProviderKind};

/// Sent to Anthropic when neither the client nor the provider's settings name a version.
const ANTHROPIC_VERSION: &str = "2023-06-01";

static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static API_KEY: HeaderName = HeaderName::from_static("api-key");
static ANTHROPIC_VERSION_HEADER: HeaderName = HeaderName::from_static("anthropic-version");

/// Headers about the answering host, or for a browser that shows the answer: a provider must not set them for the
/// gateway's host.
fn is_of_the_host(name: &str) -> bool {
    matches!(
        name,
        "alt-svc"
            | "clear-site-data"
            | "expect-ct"
            | "location"
            | "nel"
            | "origin-agent-cluster"
            | "permissions-policy"
            | "public-key-pins"
            | "referrer-policy"
            | "refresh"
            | "report-to"
            | "reporting-endpoints"
            | "server"
            | "service-worker-allowed"
            | "set-cookie"
            | "strict-transport-security"
            | "timing-allow-origin"
            | "www-authenticate"
            | "x-frame-options"
            | "x-xss-protection"
    ) || name.starts_with("access-control-")
        || name.starts_with("content-security-policy")
        || name.starts_with("cross-origin-")
}

/// Headers that belong to one connection (RFC 9110 § 7.6.1).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// The headers of an upstream request: the client's, without those that must not be forwarded, and the gateway's own.
/// The client's headers are not copied until they are written.
pub struct UpstreamHeaders<'a> {
    client: &'a HeaderMap,
    /// Names that the client's `Connection` header declares hop-by-hop.
    private: Vec<String>,
    kind: ProviderKind,
    own: Vec<(HeaderName, HeaderValue)>,
}

impl<'a> UpstreamHeaders<'a> {
    /// The headers of a client's request to `provider`, with the provider's credentials.
    pub fn new(client: &'a HeaderMap, provider: &Provider) -> Self {
        let mut headers = Self {
            client,
            private: connection_options(client),
            kind: provider.kind,
            own: Vec::with_capacity(4),
        };
        headers.add(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The gateway reads the answer while it forwards it, so it must be uncompressed.
        headers.add(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.authorize(provider);
        headers
    }

    /// The client's headers alone.
    #[cfg(test)]
    pub(super) fn of_client(client: &'a HeaderMap) -> Self {
        Self { client, private: Vec::new(), kind: ProviderKind::OpenAi, own: Vec::new() }
    }

    /// Adds a header. No client header of the same name may be forwarded beside it.
    pub fn add(&mut self, name: HeaderName, value: HeaderValue) {
        debug_assert!(self.iter().all(|(sent, _)| *sent != name), "{name} would be sent twice");
        self.own.push((name, value));
    }

    /// The provider's own credentials, in the header its API reads.
    fn authorize(&mut self, provider: &Provider) {
        if let Some(key) = &provider.api_key {
            let (name, text) = match provider.kind {
                ProviderKind::Azure => (API_KEY.clone(), key.expose().to_owned()),
                ProviderKind::Anthropic => (X_API_KEY.clone(), key.expose().to_owned()),
                _ => (header::AUTHORIZATION, ["Bearer ", key.expose()].concat()),
            };
            // A key with control characters was refused when it was configured.
            if let Ok(mut value) = HeaderValue::try_from(text) {
                value.set_sensitive(true);
                self.add(name, value);
            }
        }
        let versioned = || self.iter().any(|(name, _)| *name == ANTHROPIC_VERSION_HEADER);
        if provider.kind == ProviderKind::Anthropic && !versioned() {
            let version = provider.api_version.as_deref().unwrap_or(ANTHROPIC_VERSION);
            let value = HeaderValue::from_str(version).unwrap_or(HeaderValue::from_static(ANTHROPIC_VERSION));
            self.add(ANTHROPIC_VERSION_HEADER.clone(), value);
        }
    }

    /// All headers, in the order in which they are sent.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let travels = |name: &HeaderName| {
            goes_upstream(name.as_str(), self.kind)
                && !self.private.iter().any(|option| option == name.as_str())
        };
        let own = self.own.iter().map(|(name, value)| (name, value));
        self.client.iter().filter(move |(name, _)| travels(name)).chain(own)
    }
}

fn goes_upstream(name: &str, kind: ProviderKind) -> bool {
    let private = is_hop_by_hop(name)
        || matches!(
            name,
            "host" | "content-length" | "content-type" | "accept-encoding" | "expect" | "cookie" | "forwarded" | "via"
                // Credentials of the caller.
                | "authorization" | "x-api-key" | "api-key"
                // Headers of a browser: providers would assume a page that calls them without a gateway, and refuse it.
                | "origin" | "referer" | "x-real-ip"
        )
        || name.starts_with("sec-")
        || name.starts_with("access-control-")
        || name.starts_with("x-nexusgate-")
        || name.starts_with("x-forwarded-");
    // Options of one vendor's API mean nothing, or something else, to another's.
    let foreign = match kind {
        ProviderKind::Anthropic => name.starts_with("openai-"),
        _ => name.starts_with("anthropic-"),
    };
    !private && !foreign
}

/// Keeps the headers of an upstream answer that are for the client: all but those of the connection, the host or the
/// account, and those that the gateway sets itself.
pub fn keep_for_client(upstream: &mut HeaderMap) {
    let named = connection_options(upstream);
    let private = |name: &&HeaderName| {
        let text = name.as_str();
        is_hop_by_hop(text)
            || is_of_the_host(text)
            || matches!(
                text,
                "content-length" | "x-cache"
                    | "openai-organization" | "openai-project" | "anthropic-organization-id"
            )
            // The account's limits; the caller gets its key's instead.
            || text.starts_with("x-ratelimit-")
            || text.starts_with("anthropic-ratelimit-")
            || text.starts_with("x-nexusgate-")
            || named.iter().any(|option| option == text)
    };
    let private: Vec<HeaderName> = upstream.keys().filter(private).cloned().collect();
    for name in private {
        upstream.remove(name);
    }
}

/// Names that the `Connection` header declares hop-by-hop, in lower case.
fn connection_options(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|option| {
            !(option.is_empty()
                || option.eq_ignore_ascii_case("close")
                || option.eq_ignore_ascii_case("keep-alive"))
        })
        .map(str::to_ascii_lowercase)
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::key::Secret;
    use crate::domain::label::LabelValue;

    pub(in crate::provider) fn provider(kind: ProviderKind) -> Provider {
        Provider {
            id: 1,
            name: LabelValue::new("p"),
            kind,
            base_url: "https://h/v1".parse().expect("URL"),
            api_key: Some(Secret::new("upstream-key")),
            api_version: None,
            proxy: None,
            ask_stream_usage: true,
            max_concurrency: None,
        }
    }

    fn client_headers() -> HeaderMap {
        [
            ("authorization", "Bearer caller"),
            ("x-api-key", "caller"),
            ("api-key", "caller"),
            ("proxy-authorization", "caller"),
            ("content-type", "text/plain"),
            ("accept-encoding", "gzip"),
            ("anthropic-version", "of the hop"),
            ("cookie", "session"),
            ("connection", "close, x-private-hop, Anthropic-Version"),
            ("x-private-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-nexusgate-provider", "p"),
            ("anthropic-beta", "tools"),
            ("openai-organization", "org"),
            ("origin", "https://app.example"),
            ("referer", "https://app.example/chat"),
            ("sec-fetch-mode", "cors"),
            ("access-control-request-method", "POST"),
            ("x-real-ip", "192.0.2.1"),
            ("x-custom", "kept"),
        ]
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
    }

    fn sent_to(kind: ProviderKind) -> HeaderMap {
        let client = client_headers();
        let headers = UpstreamHeaders::new(&client, &provider(kind));
        let sent: HeaderMap = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        assert_eq!(sent.len(), sent.keys_len(), "none is sent twice");
        assert_eq!(sent["content-type"], "application/json");
        assert_eq!(sent["accept-encoding"], "identity");
        sent
    }

    #[test]
    fn callers_credentials_and_connection_headers_stay_here() {
        let headers = sent_to(ProviderKind::OpenAi);
        assert_eq!(headers["authorization"], "Bearer upstream-key");
        assert_eq!(headers["x-custom"], "kept");
        assert_eq!(headers["openai-organization"], "org");
        for gone in [
            "x-api-key",
            "api-key",
            "proxy-authorization",
            "anthropic-version",
            "cookie",
            "connection",
            "x-private-hop",
            "transfer-encoding",
            "x-nexusgate-provider",
            "anthropic-beta",
        ] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn what_is_the_accounts_or_the_hosts_stays_here() {
        let names = [
            "content-type",
            "x-request-id",
            "retry-after",
            "openai-processing-ms",
            "openai-organization",
            "openai-project",
            "anthropic-organization-id",
            "x-ratelimit-remaining-tokens",
            "anthropic-ratelimit-requests-limit",
            "x-nexusgate-provider",
            "x-cache",
            "set-cookie",
            "strict-transport-security",
            "access-control-allow-origin",
            "content-security-policy-report-only",
            "nel",
            "www-authenticate",
            "transfer-encoding",
        ];
        let mut answer: HeaderMap = names
            .into_iter()
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
            .collect();
        keep_for_client(&mut answer);
        let mut left: Vec<_> = answer.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "openai-processing-ms", "retry-after", "x-request-id"]);
    }

    #[test]
    fn each_kind_gets_its_own_credentials() {
        let anthropic = sent_to(ProviderKind::Anthropic);
        assert_eq!(anthropic["x-api-key"], "upstream-key");
        assert_eq!(anthropic["anthropic-version"], "2023-06-01");
        assert_eq!(anthropic["anthropic-beta"], "tools");
        assert!(!anthropic.contains_key("authorization"));
        let azure = sent_to(ProviderKind::Azure);
        assert_eq!(azure["api-key"], "upstream-key");
        assert!(!azure.contains_key("authorization"));
    }
}
