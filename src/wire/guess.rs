//! Guesses at tokens that no provider counted, so that a key's limit holds for them too. Metrics, costs and the request
//! log say only what providers have reported.

use serde_json::Value;

use super::convert::surrogates::read_lossy;

/// English has about four letters to a token in the vocabularies of all large models; other languages have fewer
/// letters, most of them with more bytes to each.
const BYTES_PER_TOKEN: u64 = 4;

/// For an image or another file within the JSON. Providers count some hundreds to some thousands.
const MEDIA_TOKENS: u64 = 1000;

/// A longer text without a space is encoded media.
const LONGEST_WORD: usize = 2048;

/// The bytes of an event of a stream around its text, at most.
const ENVELOPE: u64 = 400;

/// A guess at the tokens of a request or a whole answer: by the length of its texts, names of fields included, with a
/// token for each number (embeddings may be asked of token ids).
pub fn tokens_of_json(body: &[u8]) -> u64 {
    let Ok(value) = read_lossy::<Value>(body) else { return tokens_of_bytes(body.len()) };
    tokens_of_value(&value)
}

/// A guess at the tokens of a stream: one for each event, more if its events are larger than one token makes them.
pub(super) fn tokens_of_stream(events: u64, bytes: u64) -> u64 {
    events.max(bytes.saturating_sub(events.saturating_mul(ENVELOPE)) / BYTES_PER_TOKEN)
}

fn tokens_of_value(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(_) => 0,
        Value::Number(_) => 1,
        Value::String(text) if is_media(text) => MEDIA_TOKENS,
        Value::String(text) => tokens_of_bytes(text.len()),
        Value::Array(items) => items.iter().map(tokens_of_value).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| tokens_of_bytes(name.len()) + tokens_of_value(value)).sum()
        }
    }
}

fn tokens_of_bytes(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(BYTES_PER_TOKEN)
}

fn is_media(text: &str) -> bool {
    let spaceless = || text.as_bytes().iter().take(LONGEST_WORD).all(|byte| byte.is_ascii_graphic());
    text.len() > LONGEST_WORD && spaceless()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_a_token_for_four_bytes() {
        let words = "word ".repeat(4000);
        let body = serde_json::json!({ "model": "m", "messages": [{ "role": "user", "content": words }] });
        let guess = tokens_of_json(body.to_string().as_bytes());
        assert!((5000..5020).contains(&guess), "{guess}");
        assert_eq!(tokens_of_json(r#""日本語""#.as_bytes()), 3);
        assert_eq!(tokens_of_json(b"not JSON"), 2);
        assert_eq!(tokens_of_json(br#""half \ud83d""#), 2, "a lone surrogate is no reason to count escapes");
    }

    #[test]
    fn an_image_is_not_read_as_text() {
        let image = format!("data:image/png;base64,{}", "iVBORw0K".repeat(100_000));
        let parts = serde_json::json!([{ "image_url": { "url": image } }, { "text": "What is this?" }]);
        let guess = tokens_of_json(parts.to_string().as_bytes());
        assert!((MEDIA_TOKENS..MEDIA_TOKENS + 20).contains(&guess), "{guess}");
    }

    #[test]
    fn token_ids_are_tokens() {
        assert_eq!(tokens_of_json(br#"{"input":[[1,2,3],[40000,5]]}"#), 2 + 5);
    }

    #[test]
    fn a_stream_has_a_token_for_each_event_or_for_what_does_not_fit_into_one() {
        assert_eq!(tokens_of_stream(0, 0), 0);
        assert_eq!(tokens_of_stream(50, 50 * 250), 50);
        assert_eq!(tokens_of_stream(10, 10 * (ENVELOPE + 400)), 1000, "Gemini sends a hundred at once");
    }
}
