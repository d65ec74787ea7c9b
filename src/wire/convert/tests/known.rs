//! Tools, calls and answers keep the client's names and ids, whatever the provider calls them.

use serde_json::{Value, json};

use super::{answered, call, sent};
use crate::domain::label::ApiFormat::{Anthropic, OpenAiChat, OpenAiResponses};
use crate::wire::convert::{AnswerContext, convert_answer};

#[test]
fn tools_in_namespaces_have_their_names_outside() {
    let request = json!({
        "tools": [
            {"type": "namespace", "name": "mcp__files", "description": "Files", "tools": [
                {"type": "function", "name": "read", "parameters": {"type": "object"}, "strict": false},
            ]},
            {"type": "function", "name": "plan", "parameters": {"type": "object"}, "strict": false},
        ],
        "tool_choice": {"type": "function", "namespace": "mcp__files", "name": "read"},
        "input": [
            {"role": "user", "content": "Read it"},
            {"type": "function_call", "call_id": "c", "namespace": "mcp__files", "name": "read", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "text"},
        ],
    });
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "gpt-4.1", &request);
    assert_eq!(dropped, ["tools.description"], "that of the namespace");
    let names: Vec<&str> = chat["tools"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|tool| tool["function"]["name"].as_str())
        .collect();
    assert_eq!(names, ["mcp__files__read", "plan"]);
    assert_eq!(chat["tool_choice"]["function"]["name"], "mcp__files__read");
    assert_eq!(chat["messages"][1]["tool_calls"][0]["function"]["name"], "mcp__files__read");

    let (whole, stream) = answered(OpenAiResponses, &request, &call("c", "mcp__files__read"));
    assert_eq!(
        (&whole["output"][0]["name"], &whole["output"][0]["namespace"]),
        (&json!("read"), &json!("mcp__files"))
    );
    assert!(stream.contains(r#""name":"read","namespace":"mcp__files""#), "{stream}");
    let (whole, _) = answered(OpenAiResponses, &request, &call("c", "plan"));
    assert_eq!((&whole["output"][0]["name"], whole["output"][0].get("namespace")), (&json!("plan"), None));
}

#[test]
fn long_names_are_shortened_and_come_back() {
    let name = "mcp__plugin_with_a_long_name__".repeat(3);
    let request = json!({
        "max_tokens": 100,
        "tools": [{"name": name, "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": name},
        "messages": [
            {"role": "user", "content": "Go"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": name, "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "done"}]},
        ],
    });
    let (chat, _) = sent(Anthropic, OpenAiChat, "gpt-4.1", &request);
    let short = chat["tools"][0]["function"]["name"].as_str().unwrap();
    assert_eq!(short.len(), 64);
    assert_eq!(chat["tool_choice"]["function"]["name"], short);
    assert_eq!(chat["messages"][1]["tool_calls"][0]["function"]["name"], short);
    assert_eq!(chat["tools"][0]["function"]["parameters"], json!({"type": "object", "properties": {}}));
    let (whole, stream) = answered(Anthropic, &request, &call("t", short));
    assert_eq!(whole["content"][0]["name"], name);
    assert!(stream.contains(&name) && !stream.contains(short), "{stream}");
}

#[test]
fn calls_without_an_id_get_one_of_their_own() {
    let (whole, stream) = answered(Anthropic, &json!({}), &call("", "f"));
    assert_eq!(whole["content"][0]["id"], "call_0a1b_0");
    assert!(stream.contains(r#""id":"call_0a1b_0""#), "{stream}");
}

/// Codex offers a newer model its tools within the input, and more of them later.
#[test]
fn tools_in_the_input_are_tools() {
    let tool = |name: &str, about: &str| json!({"type": "function", "name": name, "description": about, "parameters": {"type": "object"}});
    let request = json!({"input": [
        {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [
            tool("run", "first"),
            {"type": "custom", "name": "patch"},
            {"type": "namespace", "name": "files", "tools": [tool("read", "in a namespace")]},
        ]},
        {"role": "user", "content": "Go"},
        {"type": "additional_tools", "role": "developer", "tools": [tool("run", "second")]},
    ]});
    let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, "gpt-4.1", &request);
    assert_eq!(dropped, [""; 0]);
    let told: Vec<_> = chat["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            let inner = &tool[tool["type"].as_str().unwrap()];
            (inner["name"].as_str().unwrap(), inner["description"].as_str())
        })
        .collect();
    assert_eq!(told, [("run", Some("second")), ("patch", None), ("files__read", Some("in a namespace"))]);
    assert_eq!(chat["messages"].as_array().unwrap().len(), 1);
    let (whole, _) = answered(OpenAiResponses, &request, &call("c", "files__read"));
    assert_eq!(
        (&whole["output"][0]["name"], &whole["output"][0]["namespace"]),
        (&json!("read"), &json!("files"))
    );
    let (whole, _) = answered(OpenAiResponses, &request, &call("c", "patch"));
    assert_eq!(whole["output"][0]["type"], "custom_tool_call");
}

/// Gemini refuses a turn whose calls lack the signatures that it gave them.
#[test]
fn signatures_of_calls_come_back_to_gemini() {
    let signed = json!({"tool_calls": [{
        "index": 0, "id": "", "type": "function", "function": {"name": "f", "arguments": "{}"},
        "extra_content": {"google": {"thought_signature": "a+b/c=="}},
    }]});
    for client in [Anthropic, OpenAiResponses] {
        let asked =
            json!({"input": "Hello", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9});
        let (whole, stream) = answered(client, &asked, &signed);
        let id = match client {
            Anthropic => whole["content"][0]["id"].as_str(),
            _ => whole["output"][0]["call_id"].as_str(),
        };
        let id = id.unwrap();
        assert!(stream.contains(id), "{stream}");
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)), "{id}");
        let next = match client {
            Anthropic => json!({"max_tokens": 9, "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "1"}]},
            ]}),
            _ => json!({"input": [
                {"role": "user", "content": "Hello"},
                {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": id, "output": "1"},
            ]}),
        };
        for (model, expected) in [("gemini-3-pro", json!("a+b/c==")), ("gpt-4.1", Value::Null)] {
            let (chat, _) = sent(client, OpenAiChat, model, &next);
            let call = &chat["messages"][1]["tool_calls"][0];
            assert_eq!(call["extra_content"]["google"]["thought_signature"], expected, "{chat}");
            assert_eq!(call["id"], chat["messages"][2]["tool_call_id"]);
            assert!(call["id"].as_str().is_some_and(|id| id.len() < 40), "{chat}");
        }
    }
}

/// Clients take answers with the same id for one answer.
#[test]
fn ids_that_come_again_are_not_told() {
    let request = json!({"messages": [], "max_tokens": 9});
    let context = AnswerContext::new(Anthropic, request.to_string().as_bytes(), "m", "own", 0);
    for (id, told) in [("chatcmpl-123", "msg_own"), ("chatcmpl-0123456789abcdef", "msg_0123456789abcdef")] {
        let answer = json!({"id": id, "choices": [{"message": {"content": "A"}, "finish_reason": "stop"}]});
        let whole = convert_answer(OpenAiChat, Anthropic, answer.to_string().as_bytes(), &context).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&whole).unwrap()["id"], told);
    }
}
