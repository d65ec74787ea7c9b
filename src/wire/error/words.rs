//! The words of errors: what providers call them, what they mean, and how they are said in each format.
//!
//! Sources: <https://platform.openai.com/docs/guides/error-codes>, <https://platform.claude.com/docs/en/api/errors>.

use std::borrow::Cow;

use crate::domain::chat::ErrorKind;

/// One kind of error: its status outside a stream, OpenAI's `type`, Anthropic's `type`.
struct Words {
    kind: ErrorKind,
    status: u16,
    openai: &'static str,
    anthropic: &'static str,
}

const fn words(kind: ErrorKind, status: u16, openai: &'static str, anthropic: &'static str) -> Words {
    Words { kind, status, openai, anthropic }
}

/// In the order of [`ErrorKind`].
const KINDS: [Words; 10] = [
    words(ErrorKind::InvalidRequest, 400, "invalid_request_error", "invalid_request_error"),
    words(ErrorKind::Authentication, 401, "authentication_error", "authentication_error"),
    words(ErrorKind::Permission, 403, "permission_error", "permission_error"),
    words(ErrorKind::NotFound, 404, "not_found_error", "not_found_error"),
    words(ErrorKind::TooLarge, 413, "request_too_large", "request_too_large"),
    words(ErrorKind::RateLimit, 429, "rate_limit_error", "rate_limit_error"),
    words(ErrorKind::Billing, 402, QUOTA, "billing_error"),
    words(ErrorKind::Overloaded, 529, "overloaded_error", "overloaded_error"),
    words(ErrorKind::Timeout, 504, "timeout_error", "timeout_error"),
    words(ErrorKind::Api, 500, "server_error", "api_error"),
];

/// Other types and codes that providers use.
const SYNONYMS: [(&str, ErrorKind); 7] = [
    ("invalid_api_key", ErrorKind::Authentication),
    ("model_not_found", ErrorKind::NotFound),
    (RATE_LIMIT, ErrorKind::RateLimit),
    ("requests", ErrorKind::RateLimit),
    ("tokens", ErrorKind::RateLimit),
    (TOO_LONG, ErrorKind::InvalidRequest),
    (INVALID_PROMPT, ErrorKind::InvalidRequest),
];

/// OpenAI's word for an account without money. It comes with status 429, as if waiting would help.
pub(crate) const QUOTA: &str = "insufficient_quota";
/// OpenAI's code for too many requests or tokens.
pub(crate) const RATE_LIMIT: &str = "rate_limit_exceeded";
/// OpenAI's code for a conversation that is longer than the model can read; clients shorten it and retry.
pub(crate) const TOO_LONG: &str = "context_length_exceeded";
/// The Responses API's code for any other request that cannot be answered.
pub(crate) const INVALID_PROMPT: &str = "invalid_prompt";

/// Anthropic's message for [`TOO_LONG`]: its API has no code, and its clients act on the text.
const TOO_LONG_IN_WORDS: &str = "prompt is too long";

/// What a `type` or a `code` means; `None`: it is not known.
pub(crate) fn kind_of_word(word: &str) -> Option<ErrorKind> {
    let known = KINDS.iter().find(|words| word == words.openai || word == words.anthropic);
    let synonym = || SYNONYMS.iter().find(|(synonym, _)| word == *synonym).map(|(_, kind)| *kind);
    known.map(|words| words.kind).or_else(synonym)
}

/// What the status of an error says.
pub(crate) const fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Authentication,
        402 => ErrorKind::Billing,
        403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        408 | 504 => ErrorKind::Timeout,
        413 => ErrorKind::TooLarge,
        429 => ErrorKind::RateLimit,
        503 | 529 => ErrorKind::Overloaded,
        400..=499 => ErrorKind::InvalidRequest,
        _ => ErrorKind::Api,
    }
}

/// The status that an error of this type or code has outside a stream. Codes of a provider's account (`invalid_api_key`,
/// `model_not_found`) are left to other providers: in a success they are no fault of the caller.
pub(super) fn status_of_word(word: &str) -> Option<u16> {
    match word {
        QUOTA | RATE_LIMIT => Some(429),
        TOO_LONG | INVALID_PROMPT => Some(400),
        _ => KINDS.iter().find(|w| word == w.openai || word == w.anthropic).map(|words| words.status),
    }
}

/// OpenAI's `type` for an error that a provider reported: as precise as what is known.
pub(crate) const fn openai_word(kind: ErrorKind) -> &'static str {
    KINDS[kind as usize].openai
}

/// Anthropic's `type`.
pub(crate) const fn anthropic_word(kind: ErrorKind) -> &'static str {
    KINDS[kind as usize].anthropic
}

/// OpenAI's `type` for an error of the gateway's own. The API reference lists no closed set; these are the ones its SDKs'
/// users meet.
pub(super) const fn openai_word_for_status(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// Whether a message says what [`TOO_LONG`] does, at a provider without a code for it: Anthropic, vLLM.
pub(crate) fn is_too_long(message: &str) -> bool {
    message.starts_with(TOO_LONG_IN_WORDS)
        || message.contains("exceed context limit")
        || message.contains("maximum context length")
}

/// The message that an Anthropic client gets for an error with `message`.
pub(crate) fn anthropic_message<'a>(code: Option<&str>, message: &'a str) -> Cow<'a, str> {
    // Prompt and maximum answer are too long together: a shorter answer would do.
    let with_answer = message.contains("in the completion") || message.contains("exceed context limit");
    if code == Some(TOO_LONG) && !with_answer && !message.starts_with(TOO_LONG_IN_WORDS) {
        format!("{TOO_LONG_IN_WORDS}: {message}").into()
    } else {
        message.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_place_its_words_and_its_status() {
        for (place, words) in KINDS.iter().enumerate() {
            assert_eq!(words.kind as usize, place);
            assert_eq!(kind_of_status(words.status), words.kind);
            for word in [words.openai, words.anthropic] {
                assert_eq!(kind_of_word(word), Some(words.kind), "{word}");
            }
            assert_eq!(status_of_word(words.anthropic), Some(words.status), "{}", words.anthropic);
        }
        assert_eq!((status_of_word(QUOTA), status_of_word("model_not_found")), (Some(429), None));
        assert_eq!((kind_of_word("error"), status_of_word("error")), (None, None));
    }
}
