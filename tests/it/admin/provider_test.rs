//! Testing a provider, and listing its models.

use nexusgate::config::DeclaredProvider;
use nexusgate::demo::provider::{Reply, ScriptedProvider};
use nexusgate::domain::key::Secret;
use nexusgate::domain::provider::ProviderKind;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::Administrator;
use crate::support::TestApp;

const KEY: &str = "sk-upstream-0123456789-tail";

async fn add(admin: &Administrator<'_>, kind: ProviderKind, provider: &ScriptedProvider) -> Value {
    let base = if kind == ProviderKind::Azure { provider.root_url() } else { provider.base_url() };
    let body = json!({ "name": kind.as_str(), "type": kind.as_str(), "baseUrl": base, "apiKey": KEY });
    admin.post("/providers", body).await.ok()["id"].clone()
}

#[tokio::test]
async fn each_kind_is_called_as_it_would_be() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    for (kind, path, header) in [
        (ProviderKind::OpenAi, "/v1/chat/completions", "authorization"),
        (ProviderKind::OpenAiResponses, "/v1/responses", "authorization"),
        (ProviderKind::Anthropic, "/v1/messages", "x-api-key"),
        (ProviderKind::Azure, "/openai/deployments/remote/chat/completions", "api-key"),
        (ProviderKind::Ollama, "/v1/chat/completions", "authorization"),
    ] {
        let provider = ScriptedProvider::spawn().await.expect("a scripted provider");
        let id = add(&admin, kind, &provider).await;
        // The scripted provider lists its models at OpenAI's path; Azure has another.
        let lists = kind != ProviderKind::Azure;
        let listed = admin.post(&format!("/providers/{id}/test"), json!({})).await;
        assert_eq!(
            (listed.status, &listed.body["tested"]),
            (if lists { 200 } else { 502 }, &json!("models"))
        );
        admin
            .post("/models", json!({ "providerId": id, "systemName": "local", "remoteId": "remote" }))
            .await
            .ok();
        let response = admin.request(reqwest::Method::POST, &format!("/providers/{id}/test")).send().await;
        let report = super::Answer::read(response.expect("an answer")).await.ok();
        assert_eq!(
            (&report["success"], &report["status"]),
            (&json!(true), &json!(200)),
            "{kind:?}: {report}"
        );
        assert_eq!(
            (&report["tested"], &report["model"]),
            (&json!("completion"), &json!("remote")),
            "{kind:?}"
        );
        assert!(report["latencyMs"].as_f64().expect("a time") > 0.0);
        let calls = provider.calls();
        let call = calls.iter().rfind(|call| call.method == "POST").expect("a call");
        assert_eq!(call.path, path, "{kind:?}");
        assert!(call.header(header).expect("the key").contains(KEY), "{kind:?}");
        if !lists {
            continue;
        }
        let models = admin.get(&format!("/providers/{id}/remote-models")).await.ok();
        assert!(!models["models"].as_array().expect("a list").is_empty(), "{kind:?}");
        assert_eq!(models["models"].as_array().map(Vec::len), report["models"].as_array().map(Vec::len));
    }
    assert_eq!(app.log_rows().await.len(), 0, "a test is no request of a key");
}

#[tokio::test]
async fn a_failure_is_reported_without_the_secret() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let provider = ScriptedProvider::spawn().await.expect("a scripted provider");
    let id = add(&admin, ProviderKind::OpenAi, &provider).await;
    admin.post("/models", json!({ "providerId": id, "systemName": "local" })).await.ok();
    let test = format!("/providers/{id}/test");

    let told = json!({ "error": { "message": format!("Incorrect API key provided: {KEY}."), "code": "invalid_api_key" } });
    provider.always(Reply::raw_json(told.to_string()).with_status(StatusCode::UNAUTHORIZED));
    let report = admin.post(&test, json!({})).await;
    assert_eq!((report.status, &report.body["success"]), (502, &json!(false)));
    assert_eq!(report.body["status"], 401);
    let said = report.body["error"].as_str().expect("an error");
    assert!(said.contains("401") && said.contains("Incorrect API key provided: ***."), "{said}");
    assert!(!report.body.to_string().contains(KEY));

    provider.stop().await;
    let report = admin.post(&test, json!({ "model": "another" })).await;
    assert_eq!(
        (report.status, &report.body["success"], &report.body["model"]),
        (502, &json!(false), &json!("another"))
    );
    assert!(
        report.body["status"].is_null()
            && report.body["error"].as_str().expect("text").contains("cannot connect")
    );
    admin.get(&format!("/providers/{id}/remote-models")).await.refused(502, "upstream_failed", None);
    admin.post(&test, json!({ "model": 5 })).await.refused(400, "invalid_request", Some("model"));
    admin.post("/providers/999/test", json!({})).await.refused(404, "not_found", None);
    admin.get("/providers/999/remote-models").await.refused(404, "not_found", None);
}

#[tokio::test]
async fn the_proxy_is_used() {
    // The scripted provider stands in for an HTTP proxy: plain HTTP requests reach a proxy in absolute form.
    let proxy = ScriptedProvider::spawn().await.expect("a scripted provider");
    let proxy_url = format!("http://me:hush@{}", proxy.addr());
    let app = TestApp::builder()
        .adjust(move |settings| {
            settings.declared.providers.push(DeclaredProvider {
                name: "far".to_owned(),
                base_url: "http://no-such-host.invalid/v1".to_owned(),
                proxy_url: Some(Secret::new(proxy_url)),
                ..settings.declared.providers[0].clone()
            });
        })
        .spawn()
        .await;
    let admin = Administrator(&app);
    let listed = admin.get("/providers").await.ok();
    let far =
        listed.as_array().expect("a list").iter().find(|provider| provider["name"] == "far").expect("it");
    let report = admin.post(&format!("/providers/{}/test", far["id"]), json!({})).await.ok();
    assert_eq!(report["success"], true, "{report}");
    let call = proxy.last_call().expect("the proxy was asked");
    assert_eq!(call.header("host"), Some("no-such-host.invalid"));
    assert!(call.header("proxy-authorization").is_some());
}
