//! Streams say what whole answers say.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::Value;

use super::strategy::answer;
use super::{answer_of, context, encode_answer, events, grammar, stream_of};
use crate::domain::chat::ChatAnswer;
use crate::domain::label::ApiFormat;
use crate::wire::convert::{StreamConverter, convert_answer};

/// Converts a stream; each event alone, as it comes.
pub(super) fn convert(from: ApiFormat, to: ApiFormat, stream: &str) -> String {
    let mut context = context(to);
    context.include_usage = true;
    let mut converter = StreamConverter::new(from, to, context);
    let mut out = BytesMut::new();
    for (name, data) in events(stream) {
        converter.feed(name, data, &mut out);
    }
    converter.finish(&mut out);
    assert!(converter.is_done());
    let stream = String::from_utf8(out.to_vec()).unwrap();
    grammar::check(to, &stream).unwrap_or_else(|error| panic!("{error} in {stream}"));
    stream
}

/// A whole answer, converted, is the converted stream, folded.
fn same_streamed_or_not(from: ApiFormat, to: ApiFormat, answer: &ChatAnswer) {
    let body = encode_answer(from, answer);
    let whole: Value =
        serde_json::from_slice(&convert_answer(from, to, &body, &context(to)).unwrap()).unwrap();
    let stream = convert(from, to, &stream_of(from, &body).unwrap());
    let folded = answer_of(to, &stream).unwrap_or_else(|error| panic!("{error} in {stream}"));
    assert_eq!(sorted(folded), sorted(whole), "{stream}");
}

/// Without what only one of the two ways of telling says.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

fn replayed(format: ApiFormat, answer: &ChatAnswer) {
    let body = encode_answer(format, answer);
    let whole: Value = serde_json::from_slice(&body).unwrap();
    let folded = answer_of(format, &stream_of(format, &body).unwrap()).unwrap();
    assert_eq!(sorted(folded), sorted(whole));
}

proptest! {
    #[test]
    fn a_kept_answer_comes_back_from_its_own_stream(
        chat in answer(ApiFormat::OpenAiChat),
        responses in answer(ApiFormat::OpenAiResponses),
        anthropic in answer(ApiFormat::Anthropic),
    ) {
        replayed(ApiFormat::OpenAiChat, &chat);
        replayed(ApiFormat::OpenAiResponses, &responses);
        replayed(ApiFormat::Anthropic, &anthropic);
    }

    #[test]
    fn chat_streams_say_what_answers_say(answer in answer(ApiFormat::OpenAiChat)) {
        for to in [ApiFormat::OpenAiResponses, ApiFormat::Anthropic] {
            same_streamed_or_not(ApiFormat::OpenAiChat, to, &answer);
        }
    }

    #[test]
    fn responses_streams_say_what_answers_say(answer in answer(ApiFormat::OpenAiResponses)) {
        for to in [ApiFormat::OpenAiChat, ApiFormat::Anthropic] {
            same_streamed_or_not(ApiFormat::OpenAiResponses, to, &answer);
        }
    }

    #[test]
    fn anthropic_streams_say_what_answers_say(answer in answer(ApiFormat::Anthropic)) {
        for to in [ApiFormat::OpenAiChat, ApiFormat::OpenAiResponses] {
            same_streamed_or_not(ApiFormat::Anthropic, to, &answer);
        }
    }
}
