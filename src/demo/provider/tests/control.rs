use http::StatusCode;

use super::*;

async fn command(provider: &ScriptedProvider, body: Value) -> (StatusCode, Value) {
    let response = soon(Client::new().post(provider.control_url()).json(&body).send()).await.unwrap();
    (response.status(), soon(response.json()).await.unwrap())
}

async fn status(provider: &ScriptedProvider) -> StatusCode {
    soon(chat(provider, &hello()).send()).await.unwrap().status()
}

#[tokio::test]
async fn the_order_is_queue_of_the_endpoint_queue_rules_always() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let says = |text: &str| Reply::text(text);
    provider.always(says("always"));
    provider.rule(|call, ask| {
        assert_eq!(call.endpoint, ask.endpoint);
        (ask.model == "gpt-4o-mini").then(|| Reply::text("rule"))
    });
    provider.next(says("next"));
    provider.next_at(Endpoint::Chat, says("chat"));
    for expected in ["chat", "next", "rule", "rule"] {
        let body = json_of(chat(&provider, &hello())).await;
        assert_eq!(body["choices"][0]["message"]["content"], expected);
    }
    let mut other = hello();
    other["model"] = "other".into();
    assert_eq!(json_of(chat(&provider, &other)).await["choices"][0]["message"]["content"], "always");
}

#[tokio::test]
async fn a_mix_draws_the_same_sequence_for_the_same_seed() {
    let mut sequences = Vec::new();
    for seed in [7, 7, 8] {
        let provider = ScriptedProvider::spawn().await.unwrap();
        let failing = Reply::status(StatusCode::INTERNAL_SERVER_ERROR);
        provider.mix(Mix::seeded(seed).with(3, Reply::text("Fine.")).with(1, failing));
        let mut sequence = Vec::new();
        for _ in 0..40 {
            sequence.push(status(&provider).await.as_u16());
        }
        let failures = sequence.iter().filter(|status| **status == 500).count();
        assert!((1..30).contains(&failures), "{failures} of 40 with a share of a quarter");
        sequences.push(sequence);
    }
    assert_eq!(sequences[0], sequences[1]);
    assert_ne!(sequences[0], sequences[2]);
}

#[tokio::test]
async fn a_provider_fails_and_recovers_when_told_to() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    for (mode, expected) in [("failing", 500), ("rate_limited", 429), ("healthy", 200)] {
        let (answer, state) = command(&provider, json!({"mode": mode})).await;
        assert_eq!((answer, &state["mode"]), (StatusCode::OK, &json!(mode)));
        assert_eq!(status(&provider).await, expected);
    }
    provider.set_mode(Mode::Dropping);
    assert!(soon(chat(&provider, &hello()).send()).await.is_err());
    provider.set_mode(Mode::Hanging);
    let waiting = tokio::spawn(chat(&provider, &hello()).send());
    soon(provider.until_called(5)).await;
    assert!(!waiting.is_finished());
    provider.set_mode(Mode::Healthy);
    assert_eq!(soon(waiting).await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn replies_can_be_scripted_over_http() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    let script = json!({
        "next": [
            {"status": 429, "retry_after": "3s", "message": "Slow down."},
            {"pieces": ["a", "b"], "usage": {"prompt": 5, "completion": 2}},
            {"text": "cut here", "cut_after": 1, "delay": "1ms", "every": "1ms"},
            {"tool_calls": [{"id": "c", "name": "f", "arguments": "{}"}], "usage": false},
        ],
        "always": {"text": "That is all.", "finish": "length"},
        "models": ["only"],
    });
    assert_eq!(command(&provider, script).await.0, StatusCode::OK);
    let limited = chat(&provider, &hello()).send().await.unwrap();
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].to_str().unwrap()), (429, "3"));
    assert_eq!(json_of(chat(&provider, &hello())).await["usage"]["total_tokens"], 7);
    let (_, complete) = read(chat(&provider, &hello_streamed()).send().await.unwrap()).await;
    assert!(!complete);
    assert_eq!(json_of(chat(&provider, &hello())).await["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(json_of(chat(&provider, &hello())).await["choices"][0]["finish_reason"], "length");
    let models = json_of(Client::new().get(format!("{}/models", provider.base_url()))).await;
    assert_eq!(models["data"][0]["id"], "only");

    let state = json_of(Client::new().get(provider.control_url())).await;
    let chat_totals = &state["totals"][0];
    assert_eq!((&chat_totals["endpoint"], &chat_totals["requests"]), (&json!("chat"), &json!(5)));
    let calls = json_of(Client::new().get(format!("{}/__calls", provider.root_url()))).await;
    assert_eq!(calls[0]["body"]["messages"][0]["content"], "Hi");
    assert_eq!(calls[2]["progress"], "Cut");
}

#[tokio::test]
async fn a_wrong_command_changes_nothing() {
    let provider = ScriptedProvider::spawn().await.unwrap();
    for wrong in [
        json!({"mode": "failing", "always": {"status": 99}}),
        json!({"mode": "failing", "next": [{"finish": "tired"}]}),
        json!({"mode": "failing", "nxet": []}),
        json!({"mode": "asleep"}),
    ] {
        let (status, answer) = command(&provider, wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(!answer["error"].as_str().unwrap().is_empty());
    }
    assert_eq!(provider.mode(), Mode::Healthy);
    assert_eq!(status(&provider).await, StatusCode::OK);
}
