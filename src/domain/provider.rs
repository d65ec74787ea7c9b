//! A provider: a configured upstream account.

use std::borrow::Cow;
use std::fmt;

use url::Url;

use super::key::Secret;
use super::label::{ApiFormat, LabelValue};

/// The API that an upstream speaks, with its URLs and credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    OpenAi,
    OpenAiResponses,
    Anthropic,
    Azure,
    Ollama,
}

impl ProviderKind {
    /// Every kind with the name it has in the admin API and in `nexusgate.toml`.
    pub const ALL: &'static [Self] =
        &[Self::OpenAi, Self::OpenAiResponses, Self::Anthropic, Self::Azure, Self::Ollama];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::OpenAiResponses => "openai-responses",
            Self::Anthropic => "anthropic",
            Self::Azure => "azure",
            Self::Ollama => "ollama",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }

    /// The format in which this kind takes completions.
    pub const fn chat_format(self) -> ApiFormat {
        match self {
            Self::OpenAi | Self::Azure | Self::Ollama => ApiFormat::OpenAiChat,
            Self::OpenAiResponses => ApiFormat::OpenAiResponses,
            Self::Anthropic => ApiFormat::Anthropic,
        }
    }
}

/// A configured upstream account.
#[derive(Debug, Clone)]
pub struct Provider {
    pub id: i64,
    /// Unique among the living; also the label.
    pub name: LabelValue,
    pub kind: ProviderKind,
    /// The base URL that the provider's SDK would take.
    pub base_url: Url,
    pub api_key: Option<Secret>,
    /// `api-version` of Azure's deployment URLs; `anthropic-version` of Anthropic.
    pub api_version: Option<String>,
    /// HTTP proxy for this provider alone.
    pub proxy: Option<ProxyUrl>,
    /// Ask for usage on streams when the client did not. Off for upstreams that refuse `stream_options`.
    pub ask_stream_usage: bool,
    /// Calls to this provider at one time; `None`: unlimited.
    pub max_concurrency: Option<u32>,
}

/// A shorter secret is not looked for: it would be found in ordinary words.
const SECRET_MIN: usize = 8;

impl Provider {
    /// `text` without this provider's key and its proxy's password, which some providers repeat in their errors.
    pub fn without_secrets<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let key = self.api_key.as_ref().map(Secret::expose);
        let password = self.proxy.as_ref().and_then(|proxy| proxy.0.password());
        let mut clean = Cow::Borrowed(text);
        for secret in [key, password].into_iter().flatten().filter(|secret| secret.len() >= SECRET_MIN) {
            if let Some(without) = without(&clean, secret.as_bytes()) {
                clean = Cow::Owned(without);
            }
        }
        clean
    }
}

/// `text` with `***` for every `secret`; `None`: it holds none.
fn without(text: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::new();
    let mut from = 0;
    for at in memchr::memmem::find_iter(text, secret) {
        clean.extend_from_slice(&text[from..at]);
        clean.extend_from_slice(b"***");
        from = at + secret.len();
    }
    if from == 0 {
        return None;
    }
    clean.extend_from_slice(&text[from..]);
    Some(clean)
}

/// The URL of an HTTP proxy, perhaps with user and password; they are not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(pub Url);

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host_str().unwrap_or_default();
        write!(f, "ProxyUrl(***@{host})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_loses_its_providers_secrets_alone() {
        let provider = |key: &str| Provider {
            id: 1,
            name: LabelValue::new("p"),
            kind: ProviderKind::OpenAi,
            base_url: Url::parse("http://h/v1").unwrap(),
            api_key: Some(Secret::new(key)),
            api_version: None,
            proxy: Some(ProxyUrl(Url::parse("http://me:password@proxy").unwrap())),
            ask_stream_usage: true,
            max_concurrency: None,
        };
        let clean = |key: &str, text: &str| {
            String::from_utf8(provider(key).without_secrets(text.as_bytes()).into_owned()).unwrap()
        };
        assert_eq!(clean("sk-12345", "sk-12345sk-12345, password; sk-1234"), "******, ***; sk-1234");
        assert_eq!(clean("model", "no such model"), "no such model", "too short to be one");
        assert!(matches!(provider("sk-12345").without_secrets(b"fine"), Cow::Borrowed(b"fine")));
    }
}
