//! Guesses at tokens that no provider counted, so that a key's limit holds for them too. Nothing but the limiter sees
//! them. (Of a stream, [`super::watch`] counts the events of content.)

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::convert::surrogates::read_lossy;

/// Bytes of text to a token. OpenAI's rule of thumb for English is four characters; other languages take more bytes for
/// a character, and fewer characters for a token.
const BYTES_PER_TOKEN: u64 = 4;

/// For an encoded image or another file. OpenAI and Anthropic document from some dozens to about 1,600 for an image.
const MEDIA_TOKENS: u64 = 1000;

/// A longer text of nothing but base64 is encoded media.
const LONGEST_WORD: usize = 2048;

/// The tokens of a request or a whole answer: by the length of its texts, names of fields included, with one for each
/// number (embeddings may be asked of token ids).
pub fn tokens_of_json(body: &[u8]) -> u64 {
    read_lossy::<Tokens>(body).map_or_else(|_| tokens_of_bytes(body.len()), |Tokens(tokens)| tokens)
}

/// The tokens of a JSON value, counted while it is read.
struct Tokens(u64);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Count).map(Self)
    }
}

struct Count;

impl<'de> Visitor<'de> for Count {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_bool<E>(self, _: bool) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_i64<E>(self, _: i64) -> Result<u64, E> {
        Ok(1)
    }

    fn visit_u64<E>(self, _: u64) -> Result<u64, E> {
        Ok(1)
    }

    fn visit_f64<E>(self, _: f64) -> Result<u64, E> {
        Ok(1)
    }

    fn visit_str<E>(self, text: &str) -> Result<u64, E> {
        Ok(if is_media(text) { MEDIA_TOKENS } else { tokens_of_bytes(text.len()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<u64, A::Error> {
        let mut sum = 0;
        while let Some(Tokens(tokens)) = items.next_element()? {
            sum += tokens;
        }
        Ok(sum)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<u64, A::Error> {
        let mut sum = 0;
        while let Some((Tokens(name), Tokens(value))) = fields.next_entry()? {
            sum += name + value;
        }
        Ok(sum)
    }
}

fn tokens_of_bytes(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(BYTES_PER_TOKEN)
}

/// Whether this is base64, perhaps in lines, perhaps as a `data:` URL, and too long for a word.
fn is_media(text: &str) -> bool {
    let data = text.strip_prefix("data:").and_then(|url| url.split_once(',')).map_or(text, |(_, data)| data);
    let encodes = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(byte);
    data.len() > LONGEST_WORD && data.as_bytes().iter().all(encodes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tokens_of(value: &Value) -> u64 {
        tokens_of_json(value.to_string().as_bytes())
    }

    #[test]
    fn a_text_has_a_token_for_four_bytes() {
        let words = "word ".repeat(4000);
        let guess = tokens_of(&json!({ "model": "m", "messages": [{ "role": "user", "content": words }] }));
        assert!((5000..5020).contains(&guess), "{guess}");
        assert_eq!(tokens_of(&json!("日本語")), 3);
        assert_eq!(tokens_of_json(b"not JSON"), 2);
        assert_eq!(tokens_of_json(br#""half \ud83d""#), 2, "a lone surrogate is no reason to count escapes");
    }

    #[test]
    fn an_image_is_not_read_as_text() {
        let image = "iVBORw0K".repeat(100_000);
        let lines = format!("{image}\r\n{image}=\n");
        for data in [&format!("data:image/png;base64,{image}"), &image, &lines] {
            let guess = tokens_of(&json!([{ "image_url": { "url": data } }, { "text": "What is this?" }]));
            assert!((MEDIA_TOKENS..MEDIA_TOKENS + 20).contains(&guess), "{guess}");
        }
        let text = format!("{image} and some words");
        assert_eq!(tokens_of(&json!(text)), tokens_of_bytes(text.len()), "an image is nothing but base64");
        let short = "x".repeat(LONGEST_WORD);
        assert_eq!(tokens_of(&json!(short)), tokens_of_bytes(LONGEST_WORD));
    }

    #[test]
    fn token_ids_are_tokens() {
        assert_eq!(
            tokens_of(&json!({ "input": [[1, 2, 3], [40_000, -5, 0.5]], "x": null, "y": true })),
            6 + 4
        );
    }
}
