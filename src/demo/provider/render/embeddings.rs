//! OpenAI Embeddings (platform.openai.com/docs/api-reference/embeddings).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::super::answer::Answer;
use super::super::ask::Ask;
use super::{Pieces, model};

/// Length of a vector when the request has no `dimensions`.
const DIMENSIONS: usize = 8;
/// The most a request can ask for (that of `text-embedding-3-large`).
const MAX_DIMENSIONS: usize = 3072;

pub(super) fn body(answer: &Answer, ask: &Ask) -> Pieces {
    let dimensions = ask.dimensions.unwrap_or(DIMENSIONS).min(MAX_DIMENSIONS);
    let data: Vec<Value> = (0..ask.inputs)
        .map(|index| {
            let vector = vector(index, dimensions);
            let embedding: Value = if ask.base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            } else {
                vector.into()
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let mut body = json!({"object": "list", "data": data, "model": model(answer, ask)});
    let reported = answer.embedding_usage(ask.inputs);
    if let Some(reported) = &reported {
        let tokens = reported.prompt.unwrap_or(0);
        body["usage"] = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    }
    Pieces::json(Bytes::from(body.to_string()), reported.unwrap_or_default())
}

/// Numbers between -1 and 1 that depend only on their place and have an exact binary form, so that both encodings
/// agree.
fn vector(index: usize, dimensions: usize) -> Vec<f32> {
    let value = |place: usize| {
        let step = (index.wrapping_mul(31).wrapping_add(place.wrapping_mul(17))) % 257;
        f32::from(u16::try_from(step).unwrap_or(0)) / 128.0 - 1.0
    };
    (0..dimensions).map(value).collect()
}
