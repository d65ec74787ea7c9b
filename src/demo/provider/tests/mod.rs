//! Every kind of reply, as a real HTTP client receives it.

mod control;
mod faults;
mod formats;
mod recorded;

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use super::*;

/// Long enough for a loaded machine; a passing test never waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

fn chat(provider: &ScriptedProvider, body: &Value) -> RequestBuilder {
    post(provider, "/v1/chat/completions", body)
}

fn post(provider: &ScriptedProvider, path: &str, body: &Value) -> RequestBuilder {
    Client::new().post(format!("{}{path}", provider.root_url())).json(body)
}

fn messages(provider: &ScriptedProvider, body: &Value) -> RequestBuilder {
    post(provider, "/v1/messages", body)
        .header("anthropic-version", "2023-06-01")
        .header("x-api-key", "sk-ant")
}

fn hello() -> Value {
    json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]})
}

fn hello_streamed() -> Value {
    json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": true})
}

fn hello_counted() -> Value {
    let mut body = hello_streamed();
    body["stream_options"] = json!({"include_usage": true});
    body
}

async fn json_of(request: RequestBuilder) -> Value {
    soon(async { request.send().await.expect("an answer").json().await.expect("JSON") }).await
}

/// The whole body, and whether it ended as the protocol requires.
async fn read(response: Response) -> (Vec<u8>, bool) {
    soon(async {
        let (mut bytes, mut complete) = (Vec::new(), true);
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(_) => complete = false,
            }
        }
        (bytes, complete)
    })
    .await
}

async fn text_of(request: RequestBuilder) -> String {
    let response = soon(request.send()).await.expect("an answer");
    let (bytes, complete) = read(response).await;
    assert!(complete, "the body is complete");
    String::from_utf8(bytes).expect("UTF-8")
}

/// The JSON payloads of an event stream, without `[DONE]`.
fn payloads(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).expect("JSON in an event"))
        .collect()
}

/// All strings at this path in the payloads, joined.
fn joined(payloads: &[Value], pointer: &str) -> String {
    payloads.iter().filter_map(|payload| payload.pointer(pointer)?.as_str()).collect()
}
