//! What OpenAI's models and its Chat Completions refuse, and Azure's deployments.

use serde_json::{Value, json};

use super::{options, sent, sent_by};
use crate::domain::label::ApiFormat::{Anthropic, OpenAiChat, OpenAiResponses};
use crate::wire::convert::RequestOptions;

/// "Function tools with reasoning_effort are not supported for gpt-5.4 in /v1/chat/completions."
#[test]
fn with_functions_newer_models_do_not_reason_in_chat_completions() {
    let tools = json!([{"type": "function", "name": "f", "parameters": {}}]);
    let request = |effort: Option<&str>, tools: &Value| {
        let mut request = json!({"input": "Hello", "tools": tools, "temperature": 0.5});
        if let Some(effort) = effort {
            request["reasoning"] = json!({"effort": effort});
        }
        request
    };
    for (model, effort, told, named) in [
        ("gpt-5.2", Some("low"), json!("low"), &["temperature"][..]),
        ("gpt-5.4", Some("low"), json!("none"), &["reasoning"]),
        ("gpt-5.4", Some("none"), json!("none"), &[]),
        ("gpt-5.4", None, Value::Null, &[]),
        ("gpt-5.5", None, json!("none"), &[]),
        ("gpt-5.6-luna", Some("high"), json!("none"), &["reasoning"]),
        ("gpt-5.6-luna", None, json!("none"), &[]),
    ] {
        let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, model, &request(effort, &tools));
        assert_eq!(chat["reasoning_effort"], told, "{model} {effort:?}");
        assert_eq!(dropped, named, "{model} {effort:?}");
    }
    let (chat, _) = sent(OpenAiResponses, OpenAiChat, "gpt-5.6", &request(Some("low"), &json!([])));
    assert_eq!(chat["reasoning_effort"], "low", "nothing to call");
    let mut anthropic = json!({
        "max_tokens": 9, "output_config": {"effort": "high"}, "messages": [{"role": "user", "content": "Hello"}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    });
    let (body, dropped) = sent(Anthropic, OpenAiResponses, "gpt-5.6", &anthropic);
    assert_eq!((&body["reasoning"]["effort"], dropped.len()), (&json!("high"), 0), "Responses can do both");
    let effort = |options: &RequestOptions<'_>, request: &Value| {
        let (body, dropped) = sent_by(Anthropic, OpenAiChat, options, request);
        (body["reasoning_effort"].clone(), dropped)
    };
    let elsewhere = RequestOptions { openai_or_azure: false, ..options("gpt-5.6") };
    assert_eq!(
        effort(&elsewhere, &anthropic),
        (json!("high"), Vec::new()),
        "a proxy may send it on as Responses"
    );
    anthropic.as_object_mut().unwrap().remove("output_config");
    anthropic["thinking"] = json!({"type": "adaptive"});
    assert_eq!(effort(&options("gpt-5.6"), &anthropic), (json!("none"), vec!["thinking".to_owned()]));
}

/// "Unsupported parameter: 'parallel_tool_calls' is not supported with this model."
#[test]
fn the_o_series_is_not_told_how_many_calls_to_make() {
    let request = |parallel: bool| {
        let tools = json!([{"type": "function", "name": "f", "parameters": {}}]);
        json!({"input": "Hello", "parallel_tool_calls": parallel, "tools": tools})
    };
    for (model, parallel, told, named) in [
        ("o3-mini", true, Value::Null, &[][..]),
        ("o4-mini-2025-04-16", false, Value::Null, &["parallel_tool_calls"]),
        ("gpt-5", false, json!(false), &[]),
    ] {
        let (chat, dropped) = sent(OpenAiResponses, OpenAiChat, model, &request(parallel));
        assert_eq!(chat["parallel_tool_calls"], told, "{model} {parallel}");
        assert_eq!(dropped, named, "{model} {parallel}");
    }
}

/// The conversation began with a model that reasons.
#[test]
fn sealed_reasoning_is_not_for_models_that_do_not_reason() {
    let thought = json!({"type": "thinking", "thinking": "hm", "signature": "nxg1.openai.rs_1.SEALED"});
    let request = json!({
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [thought, {"type": "text", "text": "Hi"}]},
            {"role": "user", "content": "Again"},
        ],
    });
    let (kept, dropped) = sent(Anthropic, OpenAiResponses, "gpt-5", &request);
    assert_eq!((&kept["input"][1]["encrypted_content"], dropped.len()), (&json!("SEALED"), 0));
    assert_eq!(kept["include"], json!(["reasoning.encrypted_content"]));
    let (body, dropped) = sent(Anthropic, OpenAiResponses, "gpt-4.1", &request);
    assert!(!body.to_string().contains("SEALED") && body.get("include").is_none(), "{body}");
    assert_eq!(dropped, ["messages.thinking"]);
}

/// A deployment's name says nothing: the body has it, the rest goes by the model's.
#[test]
fn a_deployment_is_treated_as_the_model_it_is_known_as() {
    let request = json!({
        "max_tokens": 9, "temperature": 0.3, "messages": [{"role": "user", "content": "Hello"}],
    });
    let options = RequestOptions { model: "prod-eu", ..options("gpt-5") };
    let (body, dropped) = sent_by(Anthropic, OpenAiChat, &options, &request);
    assert_eq!((&body["model"], &body["max_completion_tokens"]), (&json!("prod-eu"), &json!(9)));
    assert_eq!((body.get("max_tokens"), body.get("temperature")), (None, None));
    assert_eq!(dropped, ["temperature"]);
}
