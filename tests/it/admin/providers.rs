//! Providers over HTTP.

use http::StatusCode;
use nexusgate::demo::provider::Reply;
use serde_json::{Value, json};

use super::Administrator;
use crate::support::TestApp;
use crate::support::app::MODEL;
use crate::support::scrape::Scrape;

const KEY: &str = "sk-upstream-0123456789-tail";

#[tokio::test]
async fn a_provider_is_used_from_the_next_request_on() {
    let app = TestApp::builder().setting("SNAPSHOT_REFRESH_INTERVAL", "1h").spawn().await;
    let admin = Administrator(&app);
    let body = json!({ "name": "beta", "baseUrl": app.provider().base_url(), "apiKey": KEY });
    let made = admin.post("/providers", body).await.ok();
    assert_eq!((&made["type"], &made["apiKey"]), (&json!("openai"), &json!("sk-…tail")));
    assert_eq!((&made["askStreamUsage"], &made["proxyEnabled"]), (&json!(true), &json!(false)));
    let proxied =
        admin.put(&format!("/providers/{}", made["id"]), json!({ "proxyUrl": "http://proxy:1" })).await.ok();
    assert_eq!(proxied["proxyEnabled"], true, "as when it is made with a proxy");
    let direct = json!({ "proxyUrl": null, "proxyEnabled": false });
    admin.put(&format!("/providers/{}", made["id"]), direct).await.ok();
    let id = &made["id"];
    let model = admin
        .post("/models", json!({ "providerId": id, "systemName": "fresh", "inputPrice": 1.5 }))
        .await
        .ok();
    assert_eq!(
        (&model["modelType"], &model["weight"], &model["remoteId"]),
        (&json!("chat"), &json!(1), &Value::Null)
    );
    assert_eq!(app.chat("fresh").send().await.status(), 200);
    let calls = app.provider().calls();
    assert_eq!(calls.last().expect("a call").header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    let listed = admin.get(&format!("/providers/{id}/models")).await.ok();
    assert_eq!(listed, json!([model]));

    // The masked key keeps the key; another replaces it; null removes it.
    for (given, sent) in [
        (json!({ "apiKey": "sk-…tail", "comment": "changed" }), Some(KEY)),
        (json!({ "comment": null }), Some(KEY)),
        (json!({ "apiKey": "another" }), Some("another")),
        (json!({ "apiKey": "" }), None),
    ] {
        let changed = admin.put(&format!("/providers/{id}"), given.clone()).await.ok();
        assert_eq!(changed["apiKey"].is_null(), sent.is_none(), "{given}");
        assert_eq!(app.chat("fresh").send().await.status(), 200);
        let calls = app.provider().calls();
        let sent = sent.map(|sent| format!("Bearer {sent}"));
        assert_eq!(calls.last().expect("a call").header("authorization"), sent.as_deref(), "{given}");
    }
    assert_eq!(admin.get(&format!("/providers/{id}")).await.ok()["name"], "beta");

    assert_eq!(admin.delete(&format!("/providers/{id}")).await.ok(), json!({ "success": true }));
    assert_eq!(app.chat("fresh").send().await.status(), 404, "its models went with it");
    admin.get(&format!("/providers/{id}")).await.refused(404, "not_found", None);
    admin.get(&format!("/models/{}", model["id"])).await.refused(404, "not_found", None);
    admin.delete(&format!("/providers/{id}")).await.refused(404, "not_found", None);
    assert_eq!(app.chat(MODEL).send().await.status(), 200);
}

#[tokio::test]
async fn proxies_are_shown_without_their_password() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let body = json!({ "name": "beta", "baseUrl": "http://h/v1", "proxyUrl": "http://me:hush@proxy:3128" });
    let made = admin.post("/providers", body).await.ok();
    assert_eq!(
        (&made["proxyUrl"], &made["proxyEnabled"]),
        (&json!("http://me:***@proxy:3128/"), &json!(true))
    );
    let path = format!("/providers/{}", made["id"]);
    let proxy = || async {
        use nexusgate::store::crypt::EncryptionKey;
        use nexusgate::store::{Cipher, providers};
        let key = EncryptionKey::parse("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
            .expect("the key of the tests");
        let cipher = Cipher::new(&key);
        let id = made["id"].as_i64().expect("an id");
        let stored = providers::get(app.running().database(), id).await.expect("stored");
        stored.proxy_url(&cipher).expect("readable").map(|url| url.expose().to_owned())
    };
    admin.put(&path, json!({ "proxyUrl": made["proxyUrl"], "proxyEnabled": false })).await.ok();
    assert_eq!(proxy().await.as_deref(), Some("http://me:hush@proxy:3128"));
    // The shown URL with another port: the placeholder stands for the stored password.
    admin.put(&path, json!({ "proxyUrl": "http://me:***@proxy:3129/" })).await.ok();
    assert_eq!(proxy().await.as_deref(), Some("http://me:hush@proxy:3129/"));
    for stranger in ["http://you:***@proxy:3129/", "http://me:***@prox:3129/", "https://me:***@proxy:3129/"] {
        let body = json!({ "proxyUrl": stranger });
        admin.put(&path, body).await.refused(400, "invalid_request", Some("proxyUrl"));
    }
    admin.put(&path, json!({ "proxyUrl": null })).await.ok();
    assert_eq!(proxy().await, None);
    // What is shown can be sent back as it is.
    let shown = admin.get(&path).await.ok();
    assert_eq!((&shown["proxyUrl"], &shown["proxyEnabled"]), (&Value::Null, &json!(false)));
    assert_eq!(admin.put(&path, shown).await.ok()["proxyEnabled"], false);
    let unknown =
        json!({ "name": "gamma", "baseUrl": "http://h/v1", "proxyUrl": "http://me:***@proxy:3128" });
    admin.post("/providers", unknown).await.refused(400, "invalid_request", Some("proxyUrl"));
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let good = json!({ "name": "beta", "baseUrl": "https://api.example.com/v1" });
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("a\\b")),
        ("name", json!(" a")),
        ("name", json!("x".repeat(129))),
        ("name", json!(null)),
        ("type", json!("nonsense")),
        ("baseUrl", json!("nonsense")),
        ("baseUrl", json!("ftp://h")),
        ("baseUrl", json!("https://user:hush@h/v1")),
        ("baseUrl", json!(5)),
        ("baseUrl", json!("https://h/v1\u{0}")),
        ("baseUrl", json!(" https://h/v1")),
        ("baseUrl", json!(format!("https://h/{}", "x".repeat(2000)))),
        ("apiKey", json!("x".repeat(4001))),
        ("apiVersion", json!("x".repeat(129))),
        ("comment", json!("x".repeat(1001))),
        ("proxyUrl", json!(format!("http://h/{}", "x".repeat(2000)))),
        ("apiKey", json!("two\nlines")),
        ("apiKey", json!(["list"])),
        ("apiVersion", json!("ключ")),
        ("comment", json!("\u{0}")),
        ("proxyUrl", json!("socks5://proxy")),
        ("proxyUrl", json!("proxy:3128")),
        ("proxyEnabled", json!("yes")),
        ("proxyEnabled", json!(true)),
        ("maxConcurrency", json!(0)),
        ("maxConcurrency", json!(1.5)),
    ] {
        let mut body = good.clone();
        body[field] = value.clone();
        let said = admin.post("/providers", body.clone()).await.refused(400, "invalid_request", Some(field));
        assert!(!said.contains("hush"), "{said}");
        if !value.is_null() {
            let id = admin.get("/providers").await.ok()[0]["id"].clone();
            admin.put(&format!("/providers/{id}"), json!({ field: value })).await.refused(
                400,
                "invalid_request",
                Some(field),
            );
        }
    }
    for missing in ["name", "baseUrl"] {
        let mut body = good.clone();
        body.as_object_mut().expect("an object").remove(missing);
        admin.post("/providers", body).await.refused(400, "invalid_request", Some(missing));
    }
    admin.post("/providers", json!(["name"])).await.refused(400, "invalid_request", None);
    admin.post("/providers", json!({ "name": "alpha", "baseUrl": "http://h" })).await.refused(
        409,
        "already_exists",
        Some("name"),
    );
    let beta = admin.post("/providers", good).await.ok();
    admin.put(&format!("/providers/{}", beta["id"]), json!({ "name": "alpha" })).await.refused(
        409,
        "already_exists",
        Some("name"),
    );
    admin.put("/providers/999", json!({ "name": "x" })).await.refused(404, "not_found", None);
}

/// Deleting a provider that is down must not report that it is down.
#[tokio::test]
async fn what_is_shown_of_a_provider_goes_with_it() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let made =
        admin.post("/providers", json!({ "name": "beta", "baseUrl": app.provider().base_url() })).await.ok();
    let id = &made["id"];
    admin.post("/models", json!({ "providerId": id, "systemName": "fresh" })).await.ok();
    let up = |name: &'static str, value: f64| {
        move |scrape: &Scrape| scrape.metric("nexusgate_provider_up").label("provider", name).is(value)
    };
    let gone = |name: &str, scrape: &Scrape| {
        !scrape.text.contains(&format!("nexusgate_provider_up{{provider=\"{name}\"}}"))
    };
    app.provider().always(Reply::status(StatusCode::INTERNAL_SERVER_ERROR));
    while app.scrape().await.metric("nexusgate_provider_up").label("provider", "beta").is(1.0) {
        assert_eq!(app.chat("fresh").send().await.status(), 500);
    }
    admin.put(&format!("/providers/{id}"), json!({ "name": "gamma" })).await.ok();
    let scrape = app.eventually("the new name is shown", up("gamma", 1.0)).await;
    assert!(gone("beta", &scrape), "{}", scrape.text);
    admin.delete(&format!("/providers/{id}")).await.ok();
    app.eventually("nothing of it is shown", |scrape| gone("gamma", scrape)).await;
    assert!(up("alpha", 1.0)(&app.scrape().await));
}
