//! Client and provider speak the same format: nothing changes but the model's name and the usage option; and the
//! request to the provider besides the body.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::StatusCode;
use nexusgate::demo::provider::{Endpoint, Gate, Reply};
use nexusgate::domain::label::{ApiFormat, ModelType};
use nexusgate::domain::provider::ProviderKind;
use serde_json::{Value, json};

use crate::streams::recorded;
use crate::support::TestApp;
use crate::support::app::{EMBEDDING_MODEL, MODEL};

const KINDS: [(ProviderKind, ApiFormat); 3] = [
    (ProviderKind::OpenAi, ApiFormat::OpenAiChat),
    (ProviderKind::OpenAiResponses, ApiFormat::OpenAiResponses),
    (ProviderKind::Anthropic, ApiFormat::Anthropic),
];

async fn behind(kind: ProviderKind) -> TestApp {
    TestApp::builder().targets(vec![("alpha", kind, None)]).spawn().await
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Every recorded answer, whole and streamed, arrives as it was sent, byte for byte.
#[tokio::test]
async fn recorded_answers_arrive_as_they_are() {
    let Some(folder) = recorded() else {
        eprintln!("skipped: ../shared/fixtures/recorded is not there");
        return;
    };
    let mut count = 0;
    for (kind, format) in KINDS {
        let app = behind(kind).await;
        for path in files(&folder.join(format.as_str())) {
            let recording = std::fs::read(&path).expect("readable");
            let name = path.display();
            if !name.to_string().ends_with(".chunks.txt") {
                let body: Value = serde_json::from_slice(&recording).expect("JSON");
                let failed = body["error"].is_object() && body["output"].is_null();
                let status = if failed { StatusCode::BAD_REQUEST } else { StatusCode::OK };
                app.provider().always(Reply::raw_json(recording.clone()).with_status(status));
                let response = app.ask(format, MODEL).send().await;
                assert_eq!(response.status(), status, "{name}");
                assert!(response.headers().get("x-nexusgate-dropped").is_none());
                assert_eq!(response.bytes().await.expect("a body"), recording, "{name}");
            } else {
                let events: Vec<Bytes> = (recording.split(|byte| *byte == b'\n'))
                    .filter(|line| !line.is_empty())
                    .map(|line| [b"data: ", line, b"\n\n"].concat().into())
                    .chain((format == ApiFormat::OpenAiChat).then(|| Bytes::from_static(b"data: [DONE]\n\n")))
                    .collect();
                app.provider().always(Reply::raw_stream(events.clone()));
                let call = app.ask(format, MODEL).streamed();
                let call = call.with("stream_options", json!({ "include_usage": true }));
                let seen = call.send().await.bytes().await.expect("a stream");
                assert_eq!(seen, events.concat(), "{name}");
            }
            count += 1;
        }
        app.settled().await;
    }
    let app = TestApp::spawn().await;
    for path in files(&folder.join("embeddings")) {
        let recording = std::fs::read(&path).expect("readable");
        app.provider().always(Reply::raw_json(recording.clone()));
        assert_eq!(app.embeddings(EMBEDDING_MODEL).send().await.bytes().await.expect("a body"), recording);
        count += 1;
    }
    assert!(count >= 35, "{count} recordings were replayed");
}

/// The hand-written requests of `tests/golden` reach a provider of their own format unchanged.
#[tokio::test]
async fn requests_arrive_as_they_are() {
    for (kind, format) in KINDS {
        let app = behind(kind).await;
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/requests").join(format.as_str());
        for case in files(&golden) {
            let text = std::fs::read_to_string(case.join("request.json")).expect("a request");
            let mut request: Value = serde_json::from_str(&text).expect("JSON");
            request["model"] = MODEL.into();
            let mut call = app.ask(format, MODEL);
            call.body = request.clone();
            assert_eq!(call.send().await.status(), 200, "{}", case.display());
            request["model"] = format!("remote-{MODEL}").into();
            leave_others_reasoning_out(&mut request);
            if format == ApiFormat::OpenAiChat && request["stream"] == true {
                request["stream_options"] = json!({ "include_usage": true });
            }
            assert_eq!(app.provider().last_call().expect("a call").json(), request, "{}", case.display());
        }
        app.settled().await;
    }
}

/// A provider gets no reasoning that was sealed by one of another format.
fn leave_others_reasoning_out(request: &mut Value) {
    match request {
        Value::Array(items) => {
            items.retain(|item| {
                let is_reasoning =
                    matches!(item["type"].as_str(), Some("reasoning" | "thinking" | "redacted_thinking"));
                let text = item.to_string();
                !(is_reasoning && (text.contains("\"nxg1.") || text.contains("\"rs_nxg_")))
            });
            items.iter_mut().for_each(leave_others_reasoning_out);
        }
        Value::Object(fields) => fields.values_mut().for_each(leave_others_reasoning_out),
        _ => {}
    }
}

/// The path and the credentials for each kind of provider.
#[tokio::test]
async fn each_kind_is_called_in_its_own_way() {
    for (kind, path, query, credential) in [
        (ProviderKind::OpenAi, "/v1/chat/completions", None, ("authorization", "Bearer upstream-secret")),
        (ProviderKind::OpenAiResponses, "/v1/responses", None, ("authorization", "Bearer upstream-secret")),
        (ProviderKind::Anthropic, "/v1/messages", None, ("x-api-key", "upstream-secret")),
        (ProviderKind::Ollama, "/v1/chat/completions", None, ("authorization", "Bearer upstream-secret")),
        (
            ProviderKind::Azure,
            "/openai/deployments/remote-gpt-4o/chat/completions",
            Some("api-version=2025-01-01-preview"),
            ("api-key", "upstream-secret"),
        ),
    ] {
        let app = TestApp::builder()
            .targets(vec![("alpha", kind, None)])
            .adjust(move |settings| {
                if kind == ProviderKind::Azure {
                    settings.declared.providers[0].api_version = Some("2025-01-01-preview".into());
                }
            })
            .spawn()
            .await;
        for format in ApiFormat::ALL.iter().copied() {
            for stream in [false, true] {
                let call = (app.ask(format, MODEL))
                    .header("x-api-key", &app.key)
                    .header("anthropic-beta", "tools-2025")
                    .header("openai-beta", "responses=v1")
                    .header("x-request-id", "kept")
                    .header("te", "trailers")
                    .header("x-nexusgate-reqid", &format!("{}-{stream}", format.as_str()));
                let response = if stream { call.streamed() } else { call }.send().await;
                assert_eq!(response.status(), 200, "{kind:?}");
                response.bytes().await.expect("a body");
                if format != ApiFormat::OpenAiChat || stream {
                    continue;
                }
                let call = app.provider().last_call().expect("a call");
                assert_eq!((call.path.as_str(), call.query.as_deref()), (path, query), "{kind:?}");
                assert_eq!(call.header(credential.0), Some(credential.1), "{kind:?}");
                for other in
                    ["authorization", "x-api-key", "api-key"].into_iter().filter(|name| *name != credential.0)
                {
                    assert_eq!(call.header(other), None, "{kind:?}: {other}");
                }
                let anthropic = kind == ProviderKind::Anthropic;
                assert_eq!(call.header("anthropic-beta").is_some(), anthropic);
                assert_eq!(call.header("anthropic-version"), anthropic.then_some("2023-06-01"));
                assert_eq!(call.header("openai-beta").is_some(), !anthropic);
                assert_eq!(call.header("x-request-id"), Some("kept"));
                assert_eq!((call.header("te"), call.header("x-nexusgate-reqid")), (None, None));
                assert_eq!(call.header("accept-encoding"), Some("identity"));
            }
        }
        app.settled().await;
    }
}

#[tokio::test]
async fn embeddings_arrive_as_they_are() {
    let app = TestApp::spawn().await;
    let inputs = [json!("text"), json!(["two", "texts"]), json!([1, 2, 3]), json!([[1, 2], [3]])];
    for (input, encoding) in inputs.iter().flat_map(|input| [(input, "float"), (input, "base64")]) {
        let call = app.embeddings(EMBEDDING_MODEL).with("input", input.clone());
        let response =
            call.with("encoding_format", encoding.into()).with("dimensions", 8.into()).send().await;
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["data"][0]["embedding"].is_string(), encoding == "base64", "{answer}");
        let call = app.provider().last_call().expect("a call");
        assert_eq!(call.endpoint, Endpoint::Embeddings);
        let sent = json!({
            "model": format!("remote-{EMBEDDING_MODEL}"), "input": input, "encoding_format": encoding, "dimensions": 8,
        });
        assert_eq!(call.json(), sent);
    }
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_embeddings_total").label("status", "completed").is(8.0));
    let told = app.provider().totals().tokens.prompt as f64;
    assert!(scrape.metric("nexusgate_tokens_embedding_total").is(told));
}

/// Token counts go to a provider that can count; for the others they are refused.
#[tokio::test]
async fn tokens_are_counted_by_anthropic_alone() {
    let app = behind(ProviderKind::Anthropic).await;
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "How many?" }] });
    let count = |app: &TestApp| {
        let call = app.http.post(app.url("/v1/messages/count_tokens")).header("x-api-key", &app.key);
        call.header("anthropic-version", "2023-06-01").header("anthropic-beta", "b1").json(&body).send()
    };
    let response = count(&app).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.json::<Value>().await.expect("JSON")["input_tokens"].is_u64());
    let call = app.provider().last_call().expect("a call");
    assert_eq!((call.endpoint, call.header("anthropic-beta")), (Endpoint::CountTokens, Some("b1")));
    assert_eq!(call.json()["model"], format!("remote-{MODEL}"));
    let echo =
        r#"{"type":"error","error":{"type":"authentication_error","message":"upstream-secret is wrong"}}"#;
    app.provider().always(Reply::raw_json(echo).with_status(StatusCode::UNAUTHORIZED));
    let told: Value = count(&app).await.expect("an answer").json().await.expect("JSON");
    assert_eq!(told["error"]["message"], "*** is wrong", "the provider's key is its own");

    let app = TestApp::spawn().await;
    let response = count(&app).await.expect("an answer");
    assert_eq!(response.status(), 404);
    let told: Value = response.json().await.expect("JSON");
    assert_eq!(told["error"]["type"], "not_found_error");
    assert_eq!(told["error"]["message"], "No provider of this model counts tokens.");
    assert!(app.provider().calls().is_empty());
}

/// A provider's key may be an ordinary word. Only errors are searched for it, wherever a stream is cut.
#[tokio::test]
async fn what_a_model_says_is_left_as_it_is() {
    let app = behind(ProviderKind::Anthropic).await;
    let event = |data: Value| format!("event: {}\ndata: {data}\n\n", data["type"].as_str().expect("a type"));
    let says = |text: &str| {
        let delta = json!({ "type": "text_delta", "text": text });
        event(json!({ "type": "content_block_delta", "index": 0, "delta": delta }))
    };
    let stream = [
        event(json!({ "type": "message_start", "message": { "usage": { "input_tokens": 3, "output_tokens": 1 } } })),
        event(json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } })),
        says("an error: upstream-secret"),
        says("upstream-secret, and more"),
        event(json!({ "type": "content_block_stop", "index": 0 })),
        event(json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": 9 } })),
        event(json!({ "type": "message_stop" })),
    ]
    .concat();
    // In the middle of the second piece of text, behind the word.
    let (begun, rest) = stream.split_at(stream.find(", and more").expect("it is there"));
    app.provider().always(Reply::raw_stream([begun.to_owned(), rest.to_owned()]));
    let answer = app.ask(ApiFormat::Anthropic, MODEL).streamed().send().await;
    assert_eq!(answer.text().await.expect("a stream"), stream);
}

/// A provider's key is taken out of an error that comes in pieces, as soon as it says that it is one.
#[tokio::test]
async fn an_error_in_pieces_keeps_the_key() {
    let app = behind(ProviderKind::OpenAi).await;
    let begun = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    for (says_so, end) in
        [("data: {\"error\":{\"message\":\"", "wrong\"}}\n\n"), ("error: {\"message\":\"", "wrong\"}\n\n")]
    {
        let pieces = [format!("{begun}{says_so}"), "upstream-secret is ".to_owned(), end.to_owned()];
        let told = pieces.concat().replace("upstream-secret", "***");
        let (first, second) = (Gate::new(), Gate::new());
        app.provider().always(Reply::raw_stream(pieces).stalled_after(1, &first).stalled_after(2, &second));
        let with_usage = json!({ "include_usage": true });
        let response = app.chat(MODEL).streamed().with("stream_options", with_usage).send().await;
        let mut chunks = response.bytes_stream();
        let mut heard = String::new();
        for (until, gate) in [(says_so, &first), (" is ", &second)] {
            while !heard.ends_with(until) {
                let chunk = chunks.next().await.expect("there is more").expect("bytes");
                heard.push_str(std::str::from_utf8(&chunk).expect("text"));
            }
            gate.open();
        }
        while let Some(chunk) = chunks.next().await {
            heard.push_str(std::str::from_utf8(&chunk.expect("bytes")).expect("text"));
        }
        assert!(heard.starts_with(&told) && !heard.contains("upstream-secret"), "{heard}");
    }
}

/// However many other providers the model has.
#[tokio::test]
async fn the_one_provider_that_counts_tokens_is_found() {
    let others = ["a", "b", "c", "d", "e"].map(|name| (name, ProviderKind::OpenAi, None));
    let targets = others.into_iter().chain([("f", ProviderKind::Anthropic, None)]).collect();
    let app = TestApp::builder()
        .targets(targets)
        .adjust(|settings| settings.declared.models.iter_mut().for_each(|model| model.weight = 1))
        .spawn()
        .await;
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "How many?" }] });
    for turn in 0..20 {
        let call = app.http.post(app.url("/v1/messages/count_tokens")).header("x-api-key", &app.key);
        assert_eq!(call.json(&body).send().await.expect("an answer").status(), 200, "{turn}");
    }
}

/// A token count is no inference, but takes a slot like one.
#[tokio::test]
async fn token_counts_take_room() {
    let app = TestApp::builder()
        .targets(vec![("alpha", ProviderKind::Anthropic, None)])
        .setting("MAX_IN_FLIGHT", "1")
        .spawn()
        .await;
    let gate = Gate::new();
    app.provider().always(Reply::text("slow").held_by(&gate));
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "How many?" }] });
    let call = app.http.post(app.url("/v1/messages/count_tokens")).header("x-api-key", &app.key).json(&body);
    let counting = call.try_clone().expect("a whole body").send();
    let asking = tokio::spawn(app.ask(ApiFormat::Anthropic, MODEL).build().send());
    gate.reached(1).await;
    let refused = counting.await.expect("an answer");
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    gate.open();
    assert_eq!(asking.await.expect("no panic").expect("an answer").status(), 200);
    app.provider().always(Reply::text("fast"));
    assert_eq!(call.send().await.expect("an answer").status(), 200);
}

/// A count goes to a provider with a free slot, and does not affect the health of one without.
#[tokio::test]
async fn token_counts_go_where_there_is_room() {
    let targets = ["alpha", "beta"].map(|name| (name, ProviderKind::Anthropic, None)).to_vec();
    let app = TestApp::builder()
        .targets(targets)
        .adjust(|settings| settings.declared.providers[0].max_concurrency = Some(1))
        .spawn()
        .await;
    let gate = Gate::new();
    app.providers[0].always(Reply::text("slow").held_by(&gate));
    let asking = tokio::spawn(app.ask(ApiFormat::Anthropic, MODEL).build().send());
    gate.reached(1).await;
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "How many?" }] });
    let call = app.http.post(app.url("/v1/messages/count_tokens")).header("x-api-key", &app.key).json(&body);
    assert_eq!(call.send().await.expect("an answer").status(), 200);
    assert_eq!(app.providers[1].last_call().expect("a call").endpoint, Endpoint::CountTokens);
    gate.open();
    assert_eq!(asking.await.expect("no panic").expect("an answer").status(), 200);
}

/// Ids that carry data for a provider of another format are too long for one of the client's own format.
#[tokio::test]
async fn signatures_stay_behind_when_the_provider_changes() {
    let app = behind(ProviderKind::OpenAiResponses).await;
    let input = json!([
        { "role": "user", "content": "Hello" },
        { "type": "function_call", "call_id": "call_1__thought__U0lH", "name": "f", "arguments": "{}" },
        { "type": "function_call_output", "call_id": "call_1__thought__U0lH", "output": "1" },
    ]);
    let response = app.ask(ApiFormat::OpenAiResponses, MODEL).with("input", input).send().await;
    assert_eq!(response.status(), 200);
    let sent = app.provider().last_call().expect("a call").json();
    assert_eq!(
        (&sent["input"][1]["call_id"], &sent["input"][2]["call_id"]),
        (&json!("call_1"), &json!("call_1"))
    );
    assert_eq!(sent["model"], format!("remote-{MODEL}"));
}

/// The surface besides inference.
#[tokio::test]
async fn models_and_unknown_paths() {
    let app = TestApp::builder()
        .adjust(|settings| {
            let mut model = settings.declared.models[0].clone();
            model.name = "meta-llama/Llama-3.1 8B/é".into();
            assert_eq!(model.model_type, ModelType::Chat);
            settings.declared.models.push(model);
        })
        .spawn()
        .await;
    let found: Value =
        app.get("/v1/models/meta-llama/Llama-3.1%208B/%C3%A9").await.json().await.expect("JSON");
    assert_eq!(found["id"], "meta-llama/Llama-3.1 8B/é");
    let encoded: Value =
        app.get("/v1/models/meta-llama%2FLlama-3.1%208B%2F%C3%A9").await.json().await.expect("JSON");
    assert_eq!(encoded, found);
    assert_eq!(app.get("/v1/models/none/such").await.status(), 404);
    for (method, path, status, code) in [
        (reqwest::Method::GET, "/v1/nothing", 404, "not_found"),
        (reqwest::Method::POST, "/v1/completions", 404, "not_found"),
        (reqwest::Method::GET, "/v1/chat/completions", 405, "method_not_allowed"),
        (reqwest::Method::DELETE, "/v1/models", 405, "method_not_allowed"),
    ] {
        let response =
            app.http.request(method, app.url(path)).bearer_auth(&app.key).send().await.expect("an answer");
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.json::<Value>().await.expect("JSON")["error"]["code"], code, "{path}");
    }
    let missing = app.http.get(app.url("/v1/messages/batches")).send().await.expect("an answer");
    assert_eq!(missing.json::<Value>().await.expect("JSON")["type"], "error", "in Anthropic's shape");
    let scrape = app.scrape().await;
    assert!(scrape.metric("nexusgate_http_requests_total").label("route", "unmatched").is(3.0));
    assert!(scrape.metric("nexusgate_completions_total").is(0.0));
}

/// Bodies that no SDK sends.
#[tokio::test]
async fn odd_bodies() {
    let app = TestApp::spawn().await;
    let post = |body: Vec<u8>| {
        app.http.post(app.url("/v1/chat/completions")).bearer_auth(&app.key).body(body).send()
    };
    let squeezed = app
        .http
        .post(app.url("/v1/chat/completions"))
        .bearer_auth(&app.key)
        .header("content-encoding", "gzip")
        .body("\u{1f}\u{8b}")
        .send()
        .await
        .expect("an answer");
    assert_eq!(squeezed.status(), 415);
    assert_eq!(squeezed.headers()["accept-encoding"], "identity");
    // The gateway does not parse bodies that it passes through, and does not recurse into those that it converts.
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let deep = format!("{{\"model\":\"{MODEL}\",\"messages\":{open}{close}}}").into_bytes();
    let converted = app.http.post(app.url("/v1/messages")).bearer_auth(&app.key).body(deep.clone());
    assert_eq!(converted.send().await.expect("an answer").status(), 400);
    assert_eq!(post(deep).await.expect("an answer").status(), 200);
    for (body, status) in [
        (Vec::new(), 400),
        (b"null".to_vec(), 400),
        (b"[]".to_vec(), 400),
        (b"{\"model\":\"\xff\"}".to_vec(), 400),
        (b"\xef\xbb\xbf{}".to_vec(), 400),
        (format!("{{\"model\":\"{MODEL}\"}} trailing").into_bytes(), 400),
        (format!("{{\"model\":\"{MODEL}\",\"model\":\"other\"}}").into_bytes(), 400),
        (b"{\"model\":7}".to_vec(), 400),
    ] {
        let text = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let response = post(body).await.expect("an answer");
        assert_eq!(response.status(), status, "{text}");
        let told: Value = response.json().await.expect("JSON");
        assert!(told["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{told}");
    }
    let huge = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "x".repeat(8 << 20) }] });
    let response = post(huge.to_string().into_bytes()).await.expect("an answer");
    assert_eq!(response.status(), 200, "eight megabytes of images are nothing unusual");
    let scrape = app.settled().await;
    assert!(scrape.metric("nexusgate_requests_rejected_total").label("reason", "invalid_request").is(9.0));
    assert!(scrape.metric("nexusgate_completions_total").label("status", "completed").is(2.0));
    assert!(scrape.metric("nexusgate_completions_total").label("status", "failed").is(1.0));
    assert_eq!(app.provider().calls().len(), 2);
}

/// A page on another origin can read the gateway's own headers.
#[tokio::test]
async fn browsers_see_the_gateways_headers() {
    let app = TestApp::builder().setting("ALLOWED_ORIGINS", "https://app.example").spawn().await;
    let answer = app.chat(MODEL).header("origin", "https://app.example").send().await;
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
    let exposed = answer.headers()["access-control-expose-headers"].to_str().expect("text");
    for name in ["x-nexusgate-id", "x-nexusgate-provider", "retry-after", "x-ratelimit-remaining-tokens"] {
        assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{name}: {exposed}");
    }
}
