use http::StatusCode;

use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;

use super::*;

fn full_usage() -> Usage {
    Usage {
        prompt: Some(100),
        completion: Some(20),
        cached: Some(64),
        cache_write: Some(6),
        reasoning: Some(5),
    }
}

/// Text, thoughts and two parallel tools at once.
fn rich() -> Answer {
    Answer::text("Let me look. ")
        .thinking("They want the weather.")
        .calling(ToolCall {
            id: "call_a".into(),
            name: "weather".into(),
            arguments: r#"{"city":"Zürich"}"#.into(),
        })
        .calling(ToolCall { id: "call_b".into(), name: "time".into(), arguments: "{}".into() })
        .usage(full_usage())
}

#[tokio::test]
async fn chat_answers_with_what_was_scripted() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.always(rich());
    let body = json_of(chat(&provider, &hello())).await;
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "gpt-4o-mini");
    let message = &body["choices"][0]["message"];
    assert_eq!(message["content"], "Let me look. ");
    assert_eq!(message["reasoning_content"], "They want the weather.");
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], r#"{"city":"Zürich"}"#);
    assert_eq!(message["tool_calls"][1]["id"], "call_b");
    assert_eq!(body["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(body["usage"]["prompt_tokens"], 100);
    assert_eq!(body["usage"]["total_tokens"], 120);
    assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 64);
    assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 5);
}

#[tokio::test]
async fn a_chat_stream_says_the_same_and_reports_usage_only_when_asked() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.always(rich());
    let text = text_of(chat(&provider, &hello_streamed())).await;
    assert!(text.ends_with("data: [DONE]\n\n"));
    let plain = payloads(&text);
    assert_eq!(plain[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(joined(&plain, "/choices/0/delta/content"), "Let me look. ");
    assert_eq!(joined(&plain, "/choices/0/delta/reasoning_content"), "They want the weather.");
    assert_eq!(
        joined(&plain, "/choices/0/delta/tool_calls/0/function/arguments"),
        r#"{"city":"Zürich"}{}"#,
        "in fragments, one call after the other"
    );
    assert_eq!(plain.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(provider.totals().tokens, Tokens::default(), "what was not reported is not counted");

    let counted = payloads(&text_of(chat(&provider, &hello_counted())).await);
    let (last, others) = counted.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["prompt_tokens"], 100);
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!(provider.totals().tokens.completion, 20);
}

#[tokio::test]
async fn messages_are_anthropics() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.always(rich());
    let ask =
        json!({"model": "claude-sonnet", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]});
    let body = json_of(messages(&provider, &ask)).await;
    let kinds: Vec<&str> =
        body["content"].as_array().unwrap().iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use", "tool_use"]);
    assert_eq!(body["content"][2]["input"], json!({"city": "Zürich"}));
    assert_eq!(body["stop_reason"], "tool_use");
    // Anthropic counts the cached part separately: 100 = 30 + 64 read + 6 written.
    assert_eq!(body["usage"]["input_tokens"], 30);
    assert_eq!(body["usage"]["cache_read_input_tokens"], 64);

    let mut ask = ask;
    ask["stream"] = true.into();
    let text = text_of(messages(&provider, &ask)).await;
    assert!(text.starts_with("event: message_start\ndata: "));
    assert!(text.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
    let events = payloads(&text);
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 30);
    assert_eq!(joined(&events, "/delta/text"), "Let me look. ");
    assert_eq!(joined(&events, "/delta/thinking"), "They want the weather.");
    assert_eq!(joined(&events, "/delta/partial_json"), r#"{"city":"Zürich"}{}"#);
    let last = &events[events.len() - 2];
    assert_eq!((&last["type"], &last["usage"]["output_tokens"]), (&json!("message_delta"), &json!(20)));
    assert_eq!(
        provider.totals_at(Endpoint::Messages).tokens.prompt,
        200,
        "both answers, cached tokens included"
    );

    let count = post(&provider, "/v1/messages/count_tokens", &ask).header("anthropic-version", "2023-06-01");
    assert_eq!(json_of(count).await, json!({"input_tokens": 100}));
    assert_eq!(
        provider.totals_at(Endpoint::CountTokens).tokens,
        Tokens::default(),
        "counting consumes nothing"
    );
}

#[tokio::test]
async fn responses_are_openais() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    provider.always(rich());
    let body = json_of(post(&provider, "/v1/responses", &json!({"model": "gpt-5", "input": "Hi"}))).await;
    let kinds: Vec<&str> =
        body["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"]);
    assert_eq!(body["status"], "completed");
    assert_eq!(body["output"][1]["content"][0]["text"], "Let me look. ");
    assert_eq!(body["usage"]["input_tokens_details"]["cached_tokens"], 64);

    let ask = json!({"model": "gpt-5", "input": "Hi", "stream": true});
    let text = text_of(post(&provider, "/v1/responses", &ask)).await;
    let events = payloads(&text);
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], index);
        assert!(text.contains(&format!(
            "event: {}
data: ",
            event["type"].as_str().unwrap()
        )));
    }
    let deltas = |kind: &str| {
        let chosen: Vec<Value> = events.iter().filter(|event| event["type"] == kind).cloned().collect();
        joined(&chosen, "/delta")
    };
    assert_eq!(deltas("response.output_text.delta"), "Let me look. ");
    assert_eq!(deltas("response.reasoning_summary_text.delta"), "They want the weather.");
    assert_eq!(deltas("response.function_call_arguments.delta"), r#"{"city":"Zürich"}{}"#);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["output"], body["output"], "the stream adds up to the body");
    assert_eq!(provider.totals_at(Endpoint::Responses).tokens.reasoning, 10);
}

#[tokio::test]
async fn every_format_says_length_and_refusal_in_its_own_way() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let ask = json!({"model": "m", "max_tokens": 1, "messages": []});
    for (answer, chat_reason, anthropic_reason, responses_status) in [
        (Answer::text("Once").finish(FinishReason::Length), "length", "max_tokens", "incomplete"),
        (Answer::refusal("I will not."), "stop", "refusal", "completed"),
    ] {
        provider.always(answer);
        assert_eq!(json_of(chat(&provider, &hello())).await["choices"][0]["finish_reason"], chat_reason);
        assert_eq!(json_of(messages(&provider, &ask)).await["stop_reason"], anthropic_reason);
        let body = json_of(post(&provider, "/v1/responses", &json!({"model": "m", "input": "x"}))).await;
        assert_eq!(body["status"], responses_status);
    }
}

#[tokio::test]
async fn embeddings_count_their_inputs_and_encode_alike() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let ask = |input: Value, format: &str| {
        let body = json!({"model": "e", "input": input, "encoding_format": format, "dimensions": 4});
        json_of(post(&provider, "/v1/embeddings", &body))
    };
    let body = ask(json!(["a", "b"]), "float").await;
    assert_eq!(body["data"].as_array().unwrap().len(), 2);
    assert_eq!(body["usage"]["prompt_tokens"], 2 * TOKENS_PER_INPUT);
    let coded = ask(json!(["a", "b"]), "base64").await;
    for (float, base64) in body["data"].as_array().unwrap().iter().zip(coded["data"].as_array().unwrap()) {
        use base64::Engine;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(base64["embedding"].as_str().unwrap()).unwrap();
        let decoded: Vec<f64> = bytes
            .chunks_exact(4)
            .map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap())))
            .collect();
        assert_eq!(float["embedding"], json!(decoded));
        assert_eq!(decoded.len(), 4);
    }
    for (input, count) in [(json!("a"), 1), (json!([1, 2, 3]), 1), (json!([[1], [2], [3]]), 3)] {
        assert_eq!(ask(input, "float").await["data"].as_array().unwrap().len(), count);
    }
}

#[tokio::test]
async fn models_are_listed_in_the_shape_of_who_asks() {
    let provider = ScriptedProvider::builder().models(["a", "b"]).spawn().await.unwrap();
    let url = format!("{}/models", provider.base_url());
    let openai = json_of(Client::new().get(&url)).await;
    assert_eq!((&openai["object"], &openai["data"][1]["id"]), (&json!("list"), &json!("b")));
    let anthropic = json_of(Client::new().get(&url).header("anthropic-version", "2023-06-01")).await;
    assert_eq!((&anthropic["data"][0]["type"], &anthropic["last_id"]), (&json!("model"), &json!("b")));
    assert_eq!(json_of(Client::new().get(format!("{url}/a"))).await["id"], "a");
    // The queue is for inference; the list has one of its own.
    provider.next(Reply::status(StatusCode::BAD_GATEWAY));
    assert_eq!(Client::new().get(&url).send().await.unwrap().status(), StatusCode::OK);
    provider.next_at(Endpoint::Models, Reply::status(StatusCode::UNAUTHORIZED));
    assert_eq!(Client::new().get(&url).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn azure_wants_a_deployment_and_an_api_version() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let ask = json!({"messages": []});
    let path = "/openai/deployments/my-gpt/chat/completions";
    let right = post(&provider, &format!("{path}?api-version=2024-10-21"), &ask).header("api-key", "k");
    assert_eq!(json_of(right).await["model"], "my-gpt");
    let call = provider.last_call().unwrap();
    assert_eq!(call.header("api-key"), Some("k"));
    assert_eq!(call.query.as_deref(), Some("api-version=2024-10-21"));
    assert_eq!(post(&provider, path, &ask).send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn requests_that_real_providers_refuse_are_refused() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let mut options = hello();
    options["stream_options"] = json!({"include_usage": true});
    for (request, status) in [
        (chat(&provider, &json!({"messages": []})), 400),
        (chat(&provider, &options), 400),
        (post(&provider, "/v1/messages", &hello()), 400),
        (messages(&provider, &hello()), 400),
        (post(&provider, "/chat/completions", &hello()), 404),
        (Client::new().get(format!("{}/chat/completions", provider.base_url())), 405),
        (Client::new().post(format!("{}/chat/completions", provider.base_url())).body("{"), 400),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        let body: Value = response.json().await.unwrap();
        assert!(body["error"]["message"].as_str().unwrap().contains(FAILURE_MARK));
    }
    assert_eq!(provider.totals(), Totals { requests: 7, refused: 7, ..Totals::default() });
}

#[tokio::test]
async fn errors_have_the_words_and_shape_of_the_format() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let ask = json!({"model": "m", "max_tokens": 1, "messages": []});
    for (status, openai, anthropic) in [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "invalid_request_error", "authentication_error"),
        (404, "invalid_request_error", "not_found_error"),
        (500, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        provider.always(Reply::status(status));
        let response = chat(&provider, &hello_streamed()).send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["type"], openai);
        let body = json_of(messages(&provider, &ask)).await;
        assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(anthropic)));
    }
    provider.next(Reply::rate_limited(Duration::from_millis(1500)));
    let response = chat(&provider, &hello()).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "2", "rounded up");
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "rate_limit_exceeded");
}
