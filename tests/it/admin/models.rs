//! Models over HTTP.

use serde_json::{Value, json};

use super::Administrator;
use crate::support::TestApp;
use crate::support::app::{EMBEDDING_MODEL, MODEL};

#[tokio::test]
async fn weights_and_changes_take_effect_at_once() {
    let app = TestApp::builder()
        .setting("SNAPSHOT_REFRESH_INTERVAL", "1h")
        .providers(&["alpha", "beta"])
        .spawn()
        .await;
    let admin = Administrator(&app);
    assert_eq!(admin.get("/models/system-names").await.ok(), json!([EMBEDDING_MODEL, MODEL]));
    assert_eq!(admin.get("/models/system-names?modelType=chat").await.ok(), json!([MODEL]));
    let offers = admin.get(&format!("/models/by-system-name/{MODEL}")).await.ok();
    assert_eq!(
        (&offers[0]["provider"]["name"], &offers[1]["provider"]["name"]),
        (&json!("alpha"), &json!("beta"))
    );
    assert_eq!(offers[0]["model"]["source"], "config");

    let served_by = |offers: &Value, n: usize| offers[n]["model"]["id"].clone();
    for chosen in [0, 1] {
        let (chosen_id, other_id) = (served_by(&offers, chosen), served_by(&offers, 1 - chosen));
        let body = json!({ "weights": [{ "modelId": chosen_id, "weight": 5 }, { "modelId": other_id, "weight": 0 }] });
        let changed = admin.put(&format!("/models/by-system-name/{MODEL}/weights"), body).await.ok();
        assert_eq!(
            (&changed[chosen]["model"]["weight"], &changed[1 - chosen]["model"]["weight"]),
            (&json!(5), &json!(0))
        );
        let before: Vec<usize> = app.providers.iter().map(|provider| provider.calls().len()).collect();
        for _ in 0..10 {
            assert_eq!(app.chat(MODEL).send().await.status(), 200);
        }
        assert_eq!(app.providers[chosen].calls().len(), before[chosen] + 10);
        assert_eq!(app.providers[1 - chosen].calls().len(), before[1 - chosen]);
    }

    let id = served_by(&offers, 1);
    let changed = admin
        .put(
            &format!("/models/{id}"),
            json!({ "remoteId": "renamed", "inputPrice": null, "sloTtftMs": 12.5 }),
        )
        .await
        .ok();
    assert_eq!(
        (&changed["remoteId"], &changed["inputPrice"], &changed["outputPrice"]),
        (&json!("renamed"), &Value::Null, &json!(8.0))
    );
    assert_eq!((&changed["sloTtftMs"], &changed["sloTpotMs"]), (&json!(12.5), &Value::Null));
    app.chat(MODEL).send().await.bytes().await.expect("an answer");
    assert_eq!(app.providers[1].calls().last().expect("a call").json()["model"], "renamed");
    assert_eq!(admin.get(&format!("/models/{id}")).await.ok(), changed);

    assert_eq!(admin.delete(&format!("/models/{id}")).await.ok(), json!({ "success": true }));
    let offers = admin.get(&format!("/models/by-system-name/{MODEL}?modelType=chat")).await.ok();
    assert_eq!(offers.as_array().expect("a list").len(), 1);
    assert_eq!(
        admin.get(&format!("/models/by-system-name/{MODEL}?modelType=embedding")).await.ok(),
        json!([])
    );
    let listed = admin.get("/models?modelType=embedding").await.ok();
    assert!(listed.as_array().expect("a list").iter().all(|model| model["systemName"] == EMBEDDING_MODEL));
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let provider = admin.get("/providers").await.ok()[0]["id"].clone();
    let good = json!({ "providerId": provider, "systemName": "new" });
    let listed = admin.get("/models").await.ok();
    let path = format!("/models/{}", listed[0]["id"]);
    for (field, value) in [
        ("systemName", json!("")),
        ("systemName", json!("a\\b")),
        ("systemName", json!(5)),
        ("remoteId", json!("x".repeat(501))),
        ("remoteId", json!("\u{0}")),
        ("modelType", json!("image")),
        ("contextLength", json!(-1)),
        ("inputPrice", json!(-0.5)),
        ("outputPrice", json!("free")),
        ("outputPrice", json!(1e7)),
        ("cachedInputPrice", json!(-1)),
        ("cacheWritePrice", json!(1e7)),
        ("weight", json!(-1)),
        ("weight", json!(0.5)),
        ("weight", json!(1_000_001)),
        ("comment", json!("x".repeat(1001))),
        ("sloTtftMs", json!(-1)),
        ("sloTtftMs", json!(0)),
        ("sloTpotMs", json!(1e12)),
        ("providerId", json!("one")),
    ] {
        let mut body = good.clone();
        body[field] = value.clone();
        admin.post("/models", body).await.refused(400, "invalid_request", Some(field));
        admin.put(&path, json!({ field: value })).await.refused(400, "invalid_request", Some(field));
    }
    admin.post("/models", json!({ "systemName": "x" })).await.refused(
        400,
        "invalid_request",
        Some("providerId"),
    );
    admin.get("/models?modelType=image").await.refused(400, "invalid_request", Some("modelType"));
    let anthropic = json!({ "name": "claude", "type": "anthropic", "baseUrl": "https://h" });
    let anthropic = admin.post("/providers", anthropic).await.ok()["id"].clone();
    let vectors = json!({ "providerId": anthropic, "systemName": "v", "modelType": "embedding" });
    admin.post("/models", vectors).await.refused(400, "invalid_request", Some("modelType"));
    let vectors = admin.get("/models?modelType=embedding").await.ok()[0]["id"].clone();
    let said = admin.put(&format!("/providers/{provider}"), json!({ "type": "anthropic" })).await;
    said.refused(400, "invalid_request", Some("type"));
    let moved = json!({ "providerId": anthropic });
    let said = admin.put(&format!("/models/{vectors}"), moved).await;
    said.refused(400, "invalid_request", Some("modelType"));
    let claude = json!({ "providerId": anthropic, "systemName": "claude" });
    let claude = admin.post("/models", claude).await.ok()["id"].clone();
    let changed = json!({ "modelType": "embedding" });
    let said = admin.put(&format!("/models/{claude}"), changed).await;
    said.refused(400, "invalid_request", Some("modelType"));
    let nowhere = json!({ "providerId": 999, "systemName": "x" });
    admin.post("/models", nowhere).await.refused(404, "not_found", Some("providerId"));
    admin.put(&path, json!({ "providerId": 999 })).await.refused(404, "not_found", Some("providerId"));
    let taken = json!({ "providerId": provider, "systemName": MODEL });
    admin.post("/models", taken).await.refused(409, "already_exists", Some("systemName"));
    admin.put("/models/999", json!({ "weight": 1 })).await.refused(404, "not_found", None);
    admin.delete("/models/999").await.refused(404, "not_found", None);

    let weights = format!("/models/by-system-name/{MODEL}/weights");
    for (body, field) in [
        (json!({}), "weights"),
        (json!({ "weights": 5 }), "weights"),
        (json!({ "weights": [{ "modelId": 1 }] }), "weights[0].weight"),
        (json!({ "weights": [{ "modelId": 1, "weight": -1 }] }), "weights[0].weight"),
        (json!({ "weights": [{ "modelId": 1, "weight": 2_000_000 }] }), "weight"),
    ] {
        admin.put(&weights, body).await.refused(400, "invalid_request", Some(field));
    }
    let before = admin.get("/models").await.ok();
    let chat = before
        .as_array()
        .expect("a list")
        .iter()
        .find(|model| model["systemName"] == MODEL)
        .expect("it")["id"]
        .clone();
    let body = json!({ "weights": [{ "modelId": chat, "weight": 9 }, { "modelId": 999, "weight": 9 }] });
    admin.put(&weights, body).await.refused(404, "not_found", None);
    assert_eq!(admin.get("/models").await.ok(), before, "all or none");
    assert_eq!(admin.get("/models/by-system-name/unknown").await.ok(), json!([]));
}
