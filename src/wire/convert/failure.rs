//! Errors that providers report, in each format's shape and words.

use serde_json::{Value, json};

use super::fields::Object;
use super::surrogates::read_lossy;
use crate::domain::chat::{ErrorKind, ProviderError};
use crate::wire::error::words::{
    QUOTA, RATE_LIMIT, TOO_LONG, anthropic_message, anthropic_word, is_too_long, kind_of_status,
    kind_of_word, openai_word,
};
use crate::wire::error::{ErrorFormat, plain_message, shortened};

/// Reads the error in `body`, whatever its shape, or a sentence that is not JSON.
pub(crate) fn read(body: &[u8], status: Option<u16>) -> ProviderError {
    let value: Value = read_lossy(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        plain_message(&text).map_or(Value::Null, |message| message.into())
    });
    let value = match value {
        Value::Array(mut items) if items.len() == 1 => items.remove(0),
        value => value,
    };
    decode(&value, status)
}

/// Reads the error in `value`, whatever its shape: `{error: {…}}`, `{error: "…"}`, or the error itself.
pub(crate) fn decode(value: &Value, status: Option<u16>) -> ProviderError {
    let error = value.get("error").filter(|error| !error.is_null()).unwrap_or(value);
    let word = |key: &str| match &error[key] {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let code = word("code");
    let said = [code.as_deref(), error["type"].as_str()];
    // Within a success the code may be the status that the error would have had.
    let number =
        || code.as_deref()?.parse().ok().filter(|code| status.is_none() && (400..600).contains(code));
    // The code is more precise than the type, and the status than a type that is unknown or used for everything.
    let agrees = |kind: &ErrorKind| match (kind, status.map(kind_of_status)) {
        (ErrorKind::InvalidRequest, Some(of_status)) => {
            matches!(of_status, ErrorKind::InvalidRequest | ErrorKind::TooLarge)
        }
        _ => true,
    };
    let kind = number()
        .map(kind_of_status)
        .or_else(|| said.iter().flatten().find_map(|word| kind_of_word(word).filter(agrees)))
        .unwrap_or_else(|| status.map_or(ErrorKind::Api, kind_of_status));
    let message = error.as_str().map(str::to_owned).or_else(|| word("message")).or_else(|| word("detail"));
    // FastAPI lists what is wrong with each field.
    let listed =
        || [&error["message"], &error["detail"]].into_iter().find(|said| said.is_array() || said.is_object());
    let message = message.or_else(|| Some(shortened(&listed()?.to_string()).into_owned()));
    let message = message.unwrap_or_else(|| match status {
        Some(status) => format!("The provider answered with status {status}"),
        None => "The provider reported an error without saying which".into(),
    });
    let code = if is_too_long(&message) { Some(TOO_LONG.to_owned()) } else { code };
    ProviderError { kind, message, code, param: word("param") }
}

/// The error that an event of a type unknown to its format is, if it is one: proxies and self-hosted servers write
/// OpenAI's errors, with or without their envelope, into streams of any format.
pub(crate) fn in_other_shape(kind: &str, mut event: Object) -> Option<ProviderError> {
    let enveloped = kind.is_empty() && event.get("error").is_some_and(says_something);
    if !enveloped && !is_named_error(&event) {
        return None;
    }
    event.insert("type".into(), kind.into());
    Some(decode(&Value::Object(event), None))
}

/// Whether the value of an `error` field is an error.
pub(crate) fn says_something(error: &Value) -> bool {
    match error {
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => false,
    }
}

/// Whether an object says of itself that it is an error.
pub(crate) fn is_named_error(object: &Object) -> bool {
    ["object", "type"].iter().any(|name| object.get(*name).is_some_and(|name| name == "error"))
}

/// The error for an event that is not JSON.
pub(crate) fn garbage() -> ProviderError {
    let message = "The provider sent an event that is not valid JSON".to_owned();
    ProviderError { kind: ErrorKind::Api, message, code: None, param: None }
}

/// OpenAI's error object, without the envelope.
pub(crate) fn openai(error: &ProviderError) -> Value {
    let code = error.code.as_deref().or(match error.kind {
        ErrorKind::RateLimit => Some(RATE_LIMIT),
        ErrorKind::Billing => Some(QUOTA),
        _ => None,
    });
    json!({"message": error.message, "type": openai_word(error.kind), "param": error.param, "code": code})
}

/// Anthropic's error, envelope included.
pub(crate) fn anthropic(error: &ProviderError) -> Value {
    let message = anthropic_message(error.code.as_deref(), &error.message);
    json!({"type": "error", "error": {"type": anthropic_word(error.kind), "message": message}})
}

/// Writes the error `body`, which a provider answered with `status`, in the client's format `to`. Accepts any body: the
/// error formats can be told apart by shape, and proxies in front of a provider answer in any shape. An unreadable body
/// becomes a sentence about the status.
pub fn convert_error(to: ErrorFormat, status: u16, body: &[u8]) -> Vec<u8> {
    let error = read(body, Some(status));
    let written = match to {
        ErrorFormat::OpenAi => json!({"error": openai(&error)}),
        ErrorFormat::Anthropic => anthropic(&error),
    };
    written.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::label::ApiFormat;

    fn converted(to: ApiFormat, status: u16, body: &str) -> Value {
        serde_json::from_slice(&convert_error(to.into(), status, body.as_bytes())).unwrap()
    }

    #[test]
    fn errors_keep_their_meaning() {
        let quota = r#"{"error":{"message":"No money","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
        assert_eq!(
            converted(ApiFormat::Anthropic, 429, quota),
            json!({"type": "error", "error": {"type": "billing_error", "message": "No money"}})
        );
        let key =
            r#"{"error":{"message":"Bad key","type":"invalid_request_error","code":"invalid_api_key"}}"#;
        assert_eq!(converted(ApiFormat::Anthropic, 401, key)["error"]["type"], "authentication_error");
        let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        assert_eq!(
            converted(ApiFormat::OpenAiChat, 529, overloaded),
            json!({"error": {"message": "Overloaded", "type": "overloaded_error", "param": null, "code": null}})
        );
        let limited = r#"{"type":"error","error":{"type":"rate_limit_error","message":"Slow down"}}"#;
        assert_eq!(
            converted(ApiFormat::OpenAiResponses, 429, limited)["error"]["code"],
            "rate_limit_exceeded"
        );
    }

    #[test]
    fn the_code_of_an_error_in_a_stream_may_be_a_status() {
        let error = |code: Value| json!({"error": {"type": "server_error", "code": code, "message": "m"}});
        for (code, kind) in [
            (json!(503), ErrorKind::Overloaded),
            (json!("429"), ErrorKind::RateLimit),
            (json!(200), ErrorKind::Api),
            (json!("invalid_prompt"), ErrorKind::InvalidRequest),
        ] {
            assert_eq!(decode(&error(code.clone()), None).kind, kind, "{code}");
        }
        assert_eq!(decode(&error(json!(429)), Some(500)).kind, ErrorKind::Api, "the answer's own status");
    }

    #[test]
    fn the_status_says_more_than_a_type_that_is_said_of_everything() {
        let error = r#"{"error":{"type":"invalid_request_error","message":"m"}}"#;
        for (status, kind) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (404, "not_found_error"),
            (422, "invalid_request_error"),
            (429, "rate_limit_error"),
            (500, "api_error"),
        ] {
            assert_eq!(converted(ApiFormat::Anthropic, status, error)["error"]["type"], kind, "{status}");
        }
    }

    #[test]
    fn what_is_too_long_has_a_code() {
        let error = r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#;
        let told = converted(ApiFormat::OpenAiChat, 400, error);
        assert_eq!(told["error"]["code"], TOO_LONG);
        let openai = r#"{"error":{"message":"Too many words","type":"invalid_request_error","code":"context_length_exceeded"}}"#;
        let vllm = r#"{"error":{"message":"This model's maximum context length is 8 tokens.","type":"BadRequestError","code":400}}"#;
        for (body, words) in
            [(openai, "Too many words"), (vllm, "This model's maximum context length is 8 tokens.")]
        {
            let told = converted(ApiFormat::Anthropic, 400, body);
            assert_eq!(told["error"]["message"], format!("prompt is too long: {words}"));
        }
        assert_eq!(told["error"]["type"], "invalid_request_error");
    }

    #[test]
    fn any_body_will_do() {
        assert_eq!(
            converted(ApiFormat::OpenAiChat, 502, "<html>")["error"]["message"],
            "The provider answered with status 502"
        );
        assert_eq!(converted(ApiFormat::Anthropic, 404, "null")["error"]["type"], "not_found_error");
        assert_eq!(converted(ApiFormat::Anthropic, 503, " no upstream\n")["error"]["message"], "no upstream");
        assert_eq!(converted(ApiFormat::OpenAiChat, 500, r#"{"error":"oops"}"#)["error"]["message"], "oops");
        assert_eq!(
            converted(ApiFormat::OpenAiChat, 400, r#"[{"error":{"message":"m","code":400}}]"#)["error"]["code"],
            "400"
        );
    }
}
