//! Domain → wire → domain loses nothing that the format can express.

use proptest::prelude::*;

use super::strategy::{answer, model_for, request};
use super::{decode_answer, decode_request, encode_answer, encode_request};
use crate::domain::chat::{ChatAnswer, ChatRequest, Part, Role};
use crate::domain::label::ApiFormat;

fn there_and_back(format: ApiFormat, request: &ChatRequest) {
    there_and_back_with(format, model_for(format), request);
}

fn there_and_back_with(format: ApiFormat, model: &str, request: &ChatRequest) {
    let (body, dropped) = encode_request(format, request, model).unwrap();
    let written = String::from_utf8(body).unwrap();
    assert!(dropped.is_empty(), "{dropped:?} of {written}");
    let (read, dropped) = decode_request(format, written.as_bytes()).unwrap();
    assert!(dropped.is_empty(), "{dropped:?} of {written}");
    assert_eq!(&read, request, "{written}");
}

/// Ids get the prefix of the format, and chat answers cannot express seals of reasoning.
fn same_answer(format: ApiFormat, mut read: ChatAnswer, mut written: ChatAnswer) {
    let prefix = match format {
        ApiFormat::OpenAiChat => "chatcmpl-",
        ApiFormat::OpenAiResponses => "resp_",
        ApiFormat::Anthropic => "msg_",
    };
    written.id = format!("{prefix}{}", written.id);
    for answer in [&mut read, &mut written] {
        answer.parts = joined(std::mem::take(&mut answer.parts), format);
    }
    assert_eq!(read, written);
}

/// Chat has a single text where the other formats have several.
fn joined(parts: Vec<Part>, format: ApiFormat) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match (all.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more)) if format == ApiFormat::OpenAiChat => {
                text.push_str(&more)
            }
            (Some(Part::Refusal(text)), Part::Refusal(more)) if format == ApiFormat::OpenAiChat => {
                text.push_str(&more);
            }
            (_, part) => all.push(part),
        }
    }
    all
}

proptest! {
    #[test]
    fn chat_requests_survive(mut request in request(ApiFormat::OpenAiChat)) {
        // Providers either take thoughts back or know the role of developers.
        let thinks = request.messages.iter().flat_map(|message| &message.parts).any(|part| matches!(part, Part::Reasoning(_)));
        if !thinks {
            there_and_back(ApiFormat::OpenAiChat, &request);
            return Ok(());
        }
        for message in request.messages.iter_mut().filter(|message| message.role == Role::Developer) {
            message.role = Role::System;
        }
        there_and_back_with(ApiFormat::OpenAiChat, "deepseek-reasoner", &request);
    }

    #[test]
    fn responses_requests_survive(request in request(ApiFormat::OpenAiResponses)) {
        there_and_back(ApiFormat::OpenAiResponses, &request);
    }

    #[test]
    fn anthropic_requests_survive(request in request(ApiFormat::Anthropic)) {
        there_and_back(ApiFormat::Anthropic, &request);
    }

    #[test]
    fn chat_answers_survive(answer in answer(ApiFormat::OpenAiChat)) {
        let body = encode_answer(ApiFormat::OpenAiChat, &answer);
        same_answer(ApiFormat::OpenAiChat, decode_answer(ApiFormat::OpenAiChat, &body).unwrap(), answer);
    }

    #[test]
    fn responses_answers_survive(answer in answer(ApiFormat::OpenAiResponses)) {
        let body = encode_answer(ApiFormat::OpenAiResponses, &answer);
        same_answer(ApiFormat::OpenAiResponses, decode_answer(ApiFormat::OpenAiResponses, &body).unwrap(), answer);
    }

    #[test]
    fn anthropic_answers_survive(answer in answer(ApiFormat::Anthropic)) {
        let body = encode_answer(ApiFormat::Anthropic, &answer);
        same_answer(ApiFormat::Anthropic, decode_answer(ApiFormat::Anthropic, &body).unwrap(), answer);
    }
}
