//! The inference endpoint that a request came in by.

use crate::domain::label::ApiFormat;
use crate::domain::record::Call;

/// The value of `api_format` where embeddings are counted too: the three chat formats, and `openai-embeddings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Surface(usize);

impl Surface {
    /// Every value, in the order of [`Surface::index`].
    pub(super) const VALUES: &'static [&'static str] =
        &["openai-chat", "openai-responses", "anthropic", "openai-embeddings"];

    /// Position among [`Surface::VALUES`].
    pub(super) const fn index(self) -> usize {
        self.0
    }
}

impl From<Call> for Surface {
    fn from(call: Call) -> Self {
        match call {
            Call::Completion(ApiFormat::OpenAiChat) => Self(0),
            Call::Completion(ApiFormat::OpenAiResponses) => Self(1),
            Call::Completion(ApiFormat::Anthropic) => Self(2),
            Call::Embedding => Self(3),
        }
    }
}
