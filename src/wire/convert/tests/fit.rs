//! Providers do not get values that they refuse, even if their format can express them.

use serde_json::{Value, json};

use super::{options, sent};
use crate::domain::label::ApiFormat::{Anthropic, OpenAiChat, OpenAiResponses};
use crate::wire::convert::{AnswerContext, StreamConverter, convert_answer, convert_request};

/// Claude Code's system prompt comes in blocks; DeepSeek reads only texts.
#[test]
fn texts_are_one_text_for_servers_that_read_no_lists() {
    let request = json!({
        "max_tokens": 100,
        "system": [{"type": "text", "text": "Be terse."}, {"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "And of"}, {"type": "text", "text": " Spain?"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let"}, {"type": "text", "text": "tuce"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"type": "text", "text": "see"}, {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
            ]},
        ],
    });
    let (chat, _) = sent(Anthropic, OpenAiChat, "deepseek-chat", &request);
    let contents: Vec<&Value> = chat["messages"].as_array().unwrap().iter().map(|m| &m["content"]).collect();
    assert_eq!(contents[..4], ["Be terse.\n\nBe kind.", "And of Spain?", "Lettuce", "a\n\nb"]);
    assert!(contents[4].is_array());
    let (chat, _) = sent(Anthropic, OpenAiChat, "gpt-4.1", &request);
    assert!(chat["messages"][0]["content"].is_array(), "OpenAI gets what was said");
}

#[test]
fn thoughts_go_back_to_those_who_want_them() {
    let request = json!({
        "input": [
            {"role": "user", "content": "Hi"},
            {"type": "reasoning", "id": "rs_nxg_1", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Again"},
        ],
    });
    let (chat, _) = sent(OpenAiResponses, OpenAiChat, "deepseek-reasoner", &request);
    assert_eq!(chat["messages"][1]["reasoning_content"], "hm");
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "llama-3.3-70b", &request);
    assert_eq!(chat["messages"][1], json!({"role": "assistant", "content": "Hello"}));
    assert_eq!(dropped, ["input.reasoning"]);
}

#[test]
fn what_only_openai_knows_stays_away_from_others() {
    let request = json!({
        "store": false,
        "text": {"verbosity": "low"},
        "tools": [{"type": "custom", "name": "patch"}, {"type": "function", "name": "f", "parameters": {}, "strict": false}],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}]},
        "input": [
            {"role": "user", "content": "Go"},
            {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "a"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
        ],
    });
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "mistral-large", &request);
    assert_eq!(chat.get("store"), None);
    assert_eq!(chat["tools"].as_array().unwrap().len(), 1);
    assert_eq!(chat["tools"][0]["function"]["parameters"]["required"], json!(["input"]));
    assert_eq!(chat["tool_choice"], "required");
    assert_eq!(
        chat["messages"][1]["tool_calls"][0]["function"],
        json!({"name": "patch", "arguments": "{\"input\":\"a\"}"})
    );
    assert_eq!(dropped, ["text.verbosity"]);
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "gpt-5.2", &request);
    assert_eq!(
        (&chat["store"], &chat["verbosity"], &chat["tools"][0]["type"]),
        (&json!(false), &json!("low"), &json!("custom"))
    );
    assert!(dropped.is_empty(), "{dropped:?}");
}

#[test]
fn results_stand_behind_their_calls() {
    let result = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": id});
    let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
    let request = json!({
        "input": [
            call("a"), call("b"), result("a"), {"role": "developer", "content": "aside"}, result("b"),
            {"role": "user", "content": "next"}, call("c"), {"role": "user", "content": "never mind"},
        ],
    });
    let (chat, _) = sent(OpenAiResponses, OpenAiChat, "gpt-5", &request);
    let roles: Vec<&str> =
        chat["messages"].as_array().unwrap().iter().filter_map(|message| message["role"].as_str()).collect();
    assert_eq!(roles, ["assistant", "tool", "tool", "developer", "user", "assistant", "user"]);
}

#[test]
fn efforts_are_words_of_the_model() {
    let ask = |model: &str, thinking: Value| {
        let request = json!({"max_tokens": 9000, "thinking": thinking, "messages": [{"role": "user", "content": "Hi"}]});
        let (chat, dropped) = sent(Anthropic, OpenAiChat, model, &request);
        (chat.get("reasoning_effort").cloned(), dropped)
    };
    assert_eq!(ask("gpt-5.2", json!({"type": "disabled"})), (Some("none".into()), vec![]));
    assert_eq!(ask("gpt-5.1-codex", json!({"type": "disabled"})), (None, vec!["thinking".to_owned()]));
    assert_eq!(ask("gpt-4.1", json!({"type": "disabled"})), (None, vec![]));
    let most = json!({
        "max_tokens": 9, "output_config": {"effort": "max"}, "messages": [{"role": "user", "content": "Hi"}],
    });
    assert_eq!(sent(Anthropic, OpenAiChat, "gpt-5.6", &most).0["reasoning_effort"], "xhigh");
    assert_eq!(sent(Anthropic, OpenAiResponses, "gpt-5.6", &most).0["reasoning"]["effort"], "max");
}

#[test]
fn responses_give_at_least_sixteen_tokens() {
    let request = json!({"max_tokens": 1, "messages": [{"role": "user", "content": "quota"}]});
    assert_eq!(sent(Anthropic, OpenAiResponses, "gpt-5", &request).0["max_output_tokens"], 16);
    assert_eq!(sent(Anthropic, OpenAiChat, "gpt-5", &request).0["max_completion_tokens"], 1);
}

#[test]
fn a_choice_of_a_tool_that_is_not_there_is_none() {
    let request = json!({
        "max_tokens": 9, "messages": [{"role": "user", "content": "Search"}],
        "tools": [{"type": "web_search_20250305", "name": "web_search"}, {"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "web_search"},
    });
    let (chat, dropped) = sent(Anthropic, OpenAiChat, "gpt-5", &request);
    assert_eq!(chat.get("tool_choice"), None);
    assert_eq!(dropped, ["tools.web_search_20250305", "tool_choice"]);
}

#[test]
fn what_anthropic_refuses_is_left_out() {
    let request = json!({
        "user": "jo@example.com",
        "stop": ["END", "\n\n"],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " \n"}]},
            {"role": "assistant", "content": "\n\n", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "c", "content": " "},
            {"role": "assistant", "content": "It is "},
        ],
    });
    let (body, dropped) = sent(OpenAiChat, Anthropic, "claude-sonnet-4-5", &request);
    assert_eq!(body.get("metadata"), None);
    assert_eq!(body["stop_sequences"], json!(["END"]));
    assert_eq!(dropped, ["user", "stop"]);
    let tool_use = json!([{"type": "tool_use", "id": "c", "name": "f", "input": {}}]);
    let result = json!([{"type": "tool_result", "tool_use_id": "c"}]);
    let contents: Vec<&Value> = body["messages"].as_array().unwrap().iter().map(|m| &m["content"]).collect();
    assert_eq!(contents, [&json!("Hi"), &tool_use, &result, &json!("It is")]);

    let (body, _) = sent(
        OpenAiChat,
        Anthropic,
        "claude-sonnet-4-5",
        &json!({"messages": [{"role": "system", "content": "Greet"}]}),
    );
    assert_eq!(body["messages"], json!([{"role": "user", "content": "Greet"}]));
}

#[test]
fn schemas_are_what_anthropic_enforces() {
    let open =
        json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]});
    let closed = json!({
        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false,
    });
    let tool = |n: usize, schema: &Value| json!({"type": "function", "function": {"name": format!("t{n}"), "strict": true, "parameters": schema}});
    let mut tools: Vec<Value> = (0..22).map(|n| tool(n, &closed)).collect();
    tools[0] = tool(0, &open);
    let request = json!({
        "messages": [{"role": "user", "content": "Hi"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "o", "schema": open, "strict": true}},
        "tools": tools,
    });
    let (body, dropped) = sent(OpenAiChat, Anthropic, "claude-sonnet-4-5", &request);
    let written = &body["output_config"]["format"]["schema"];
    assert_eq!(written["additionalProperties"], false);
    assert_eq!(written["properties"]["n"], json!({"type": "integer", "description": "minimum: 1"}));
    let strict = body["tools"].as_array().unwrap().iter().map(|tool| tool["strict"] == true);
    assert_eq!(strict.collect::<Vec<_>>(), [vec![false], vec![true; 20], vec![false]].concat());
    assert_eq!(body["tools"][0]["input_schema"], open, "the tool is offered as it was");
    assert_eq!(dropped, ["tools.function.strict"]);
}

/// A developer message after the results does not end the turn that they belong to.
#[test]
fn a_turn_whose_thoughts_are_lost_is_not_thought_on() {
    let request = json!({
        "reasoning": {"effort": "high"},
        "input": [
            {"role": "user", "content": "Go"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
            {"role": "developer", "content": "Be brief"},
        ],
    });
    let (body, dropped) = sent(OpenAiResponses, Anthropic, "claude-sonnet-4-5", &request);
    assert_eq!((body.get("thinking"), dropped), (None, vec!["reasoning".to_owned()]));
}

#[test]
fn reasons_to_stop_have_many_names() {
    for (word, told) in
        [("model_length", "max_tokens"), ("max_tokens", "max_tokens"), ("end_turn", "end_turn")]
    {
        let answer = json!({"choices": [{"message": {"content": "Hi"}, "finish_reason": word}]});
        let context = AnswerContext::new(Anthropic, b"{}", "m", "0a1b", 0);
        let answer = convert_answer(OpenAiChat, Anthropic, answer.to_string().as_bytes(), &context).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap()["stop_reason"], told, "{word}");
    }
}

#[test]
fn a_response_that_was_too_long_says_so() {
    let context = AnswerContext::new(OpenAiResponses, b"{}", "m", "0a1b", 0);
    let mut converter = StreamConverter::new(Anthropic, OpenAiResponses, context);
    let mut out = bytes::BytesMut::new();
    converter.feed(Some("message_start"), r#"{"type":"message_start","message":{"id":"m"}}"#, &mut out);
    let error =
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 2 > 1"}}"#;
    converter.feed(Some("error"), error, &mut out);
    let written = String::from_utf8(out.to_vec()).unwrap();
    let failed = written.lines().find(|line| line.contains("\"response.failed\"")).unwrap();
    assert!(failed.contains(r#""code":"context_length_exceeded""#), "{failed}");
}

#[test]
fn thinking_has_room_beside_the_answer() {
    let request = json!({"reasoning_effort": "high", "messages": [{"role": "user", "content": "Hi"}]});
    let (body, _) = sent(OpenAiChat, Anthropic, "claude-opus-4-8", &request);
    assert_eq!(body["max_tokens"], 8192 + 24576);
    let (body, _) = sent(OpenAiChat, Anthropic, "claude-opus-4-1-20250805", &request);
    let budget = &body["thinking"]["budget_tokens"];
    assert_eq!((&body["max_tokens"], budget), (&json!(32_000), &json!(32_000 - 8192)), "as many as it has");
}

/// Requests of OpenRouter's and LiteLLM's clients to Claude.
#[test]
fn cache_points_reach_claude() {
    let cached = json!({"type": "ephemeral", "ttl": "1h"});
    let part = |text: &str| json!({"type": "text", "text": text, "cache_control": cached});
    let request = json!({"messages": [
        {"role": "system", "content": [part("Rules")]},
        {"role": "user", "content": [{"type": "text", "text": "A"}, part("B")]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "c", "content": "42", "cache_control": cached},
        {"role": "assistant", "content": "So ", "cache_control": cached},
    ]});
    let (claude, dropped) = sent(OpenAiChat, Anthropic, "claude-sonnet-4-5", &request);
    assert_eq!(dropped, [""; 0]);
    assert_eq!(claude["system"], json!([part("Rules")]));
    assert_eq!(claude["messages"][0]["content"], json!([{"type": "text", "text": "A"}, part("B")]));
    let result = json!({"type": "tool_result", "tool_use_id": "c", "content": "42", "cache_control": cached});
    assert_eq!(claude["messages"][2]["content"], json!([result]));
    assert_eq!(claude["messages"][3]["content"], json!([part("So")]));
    let (responses, dropped) = sent(OpenAiChat, OpenAiResponses, "gpt-4.1", &request);
    assert_eq!(dropped, ["messages.content.cache_control"]);
    assert!(!responses.to_string().contains("ephemeral"), "{responses}");
    let nothing = json!({"messages": [
        {"role": "user", "content": [part("")]},
        {"role": "user", "content": "Hello"},
    ]});
    let (claude, dropped) = sent(OpenAiChat, Anthropic, "claude-sonnet-4-5", &nothing);
    assert_eq!(claude["messages"], json!([{"role": "user", "content": "Hello"}]));
    assert_eq!(dropped, ["messages.content.cache_control"]);
}

#[test]
fn documents_of_text_are_text_to_chat_providers() {
    let document = |source: Value| json!({"type": "document", "title": "a.txt", "source": source});
    let request = json!({"max_tokens": 9, "messages": [{"role": "user", "content": [
        document(json!({"type": "text", "media_type": "text/plain", "data": "Words"})),
        document(json!({"type": "base64", "media_type": "application/pdf", "data": "JVBE"})),
        {"type": "text", "text": "Sum up"},
    ]}]});
    let (chat, dropped) = sent(Anthropic, OpenAiChat, "gpt-4.1", &request);
    assert_eq!(dropped, [""; 0]);
    let content = &chat["messages"][0]["content"];
    assert_eq!(content[0], json!({"type": "text", "text": "a.txt\n\nWords"}));
    assert_eq!(content[1]["type"], "file");
    let only_text = json!({"max_tokens": 9, "messages": [{"role": "user", "content": [
        document(json!({"type": "text", "media_type": "text/plain", "data": "Words"})),
        {"type": "text", "text": "Sum up"},
    ]}]});
    let (chat, _) = sent(Anthropic, OpenAiChat, "llama-3.3-70b", &only_text);
    assert_eq!(chat["messages"][0]["content"], "a.txt\n\nWords\n\nSum up");
}

/// Anthropic's models accept them, and so do OpenAI's models that do not reason.
#[test]
fn models_that_reason_get_no_sampling() {
    let request = json!({
        "max_tokens": 9, "temperature": 0.3, "top_p": 0.9, "stop_sequences": ["a", "b", "c", "d", "e"],
        "messages": [{"role": "user", "content": "Hello"}],
    });
    for to in [OpenAiChat, OpenAiResponses] {
        let (body, dropped) = sent(Anthropic, to, "gpt-5", &request);
        assert!(["temperature", "top_p", "stop"].iter().all(|field| body.get(field).is_none()), "{body}");
        assert_eq!(dropped, ["temperature", "top_p", "stop_sequences"]);
    }
    let (chat, dropped) = sent(Anthropic, OpenAiChat, "gpt-5.1", &request);
    assert_eq!((&chat["temperature"], chat.get("stop")), (&json!(0.3), None));
    assert_eq!(dropped, ["stop_sequences"]);
    let mut told = request.clone();
    told["thinking"] = json!({"type": "disabled"});
    let (chat, dropped) = sent(Anthropic, OpenAiChat, "gpt-5.5", &told);
    assert_eq!((&chat["temperature"], &chat["stop"]), (&json!(0.3), &json!(["a", "b", "c", "d"])));
    assert_eq!(dropped, ["stop_sequences"], "the fifth");
    let (chat, dropped) = sent(Anthropic, OpenAiChat, "llama-3.3-70b", &request);
    assert_eq!((&chat["stop"], dropped.len()), (&request["stop_sequences"], 0));
    let default = json!({"max_tokens": 9, "temperature": 1, "messages": request["messages"]});
    assert_eq!(sent(Anthropic, OpenAiChat, "o3", &default).1, [""; 0], "it is what they do anyway");
}

#[test]
fn what_only_openai_keeps_is_not_for_others() {
    let request = json!({
        "input": "Hello", "prompt_cache_key": "k", "safety_identifier": "u", "store": false,
        "metadata": {"a": "b"}, "service_tier": "priority",
    });
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "llama-3.3-70b", &request);
    assert_eq!(dropped, ["metadata", "prompt_cache_key", "safety_identifier", "service_tier"]);
    assert_eq!(chat, json!({"model": "llama-3.3-70b", "messages": [{"role": "user", "content": "Hello"}]}));
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "gpt-4.1", &request);
    assert_eq!((&chat["prompt_cache_key"], chat.get("metadata")), (&json!("k"), None));
    assert_eq!(dropped, ["metadata"], "Chat Completions take it only with what they store");
    let stored = json!({"input": "Hello", "store": true, "metadata": {"a": "b"}});
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "gpt-4.1", &stored);
    assert_eq!((&chat["metadata"], dropped.len()), (&json!({"a": "b"}), 0));
}

#[test]
fn a_budget_is_an_effort_that_the_model_knows() {
    let request = json!({
        "max_tokens": 4096, "thinking": {"type": "enabled", "budget_tokens": 2000},
        "messages": [{"role": "user", "content": "Hello"}],
    });
    for (model, effort) in [("gpt-5-pro", "high"), ("gpt-5", "low")] {
        assert_eq!(sent(Anthropic, OpenAiChat, model, &request).0["reasoning_effort"], effort);
    }
}

#[test]
fn a_model_that_always_thinks_cannot_be_forced_to_call() {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let request = json!({
        "messages": [{"role": "user", "content": "Hello"}], "tools": [tool], "tool_choice": "required",
    });
    let (claude, dropped) = sent(OpenAiChat, Anthropic, "claude-fable-5", &request);
    assert_eq!(
        (&claude["tool_choice"], &dropped[..]),
        (&json!({"type": "auto"}), &["tool_choice".to_owned()][..])
    );
    let (claude, _) = sent(OpenAiChat, Anthropic, "claude-opus-4-8", &request);
    assert_eq!(claude["tool_choice"], json!({"type": "any"}));
}

#[test]
fn a_file_at_anthropic_is_nowhere_else() {
    let document = json!({"type": "document", "source": {"type": "file", "file_id": "file_1"}});
    let request = json!({"max_tokens": 9, "messages": [{"role": "user", "content": [document]}]}).to_string();
    let error = convert_request(Anthropic, OpenAiChat, request.as_bytes(), &options("m")).unwrap_err();
    assert_eq!(error.param(), Some("messages[0].content[0].source.file_id"));
}

/// Anthropic's SDKs go by the code: they resend the whole conversation, or do without a thread.
#[test]
fn threads_are_refused_by_code() {
    for (thread, code) in [
        (json!({"type": "create"}), "thread_unsupported_request"),
        (json!({"type": "continue", "previous_message_id": "msg_1"}), "thread_not_found"),
    ] {
        let request =
            json!({"max_tokens": 9, "thread": thread, "messages": [{"role": "user", "content": "A"}]});
        let body = request.to_string();
        let error = convert_request(Anthropic, OpenAiChat, body.as_bytes(), &options("m")).unwrap_err();
        assert_eq!((error.code(), error.param()), (Some(code), Some("thread")));
    }
}
