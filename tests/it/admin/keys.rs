//! API keys over HTTP.

use serde_json::{Value, json};

use super::Administrator;
use crate::support::TestApp;
use crate::support::app::MODEL;

async fn call(app: &TestApp, key: &str) -> u16 {
    app.chat(MODEL).key(key).send().await.status().as_u16()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

#[tokio::test]
async fn a_key_works_from_the_next_request_on_and_stops_with_the_next() {
    let app = TestApp::builder().setting("SNAPSHOT_REFRESH_INTERVAL", "1h").spawn().await;
    let admin = Administrator(&app);
    let made = admin.post("/apiKey", json!({ "comment": "a team" })).await.ok();
    assert_eq!(
        (&made["rpmLimit"], &made["tpmLimit"]),
        (&json!(50), &json!(50_000)),
        "the reference's defaults"
    );
    assert_eq!((text(&made["comment"]), text(&made["source"])), ("a team", "manual"));
    let (key, id) = (text(&made["key"]), &made["id"]);
    assert!(key.starts_with("sk-") && key.len() == 35);
    assert_eq!(call(&app, key).await, 200);

    for name in [key, &id.to_string()] {
        let shown = admin.get(&format!("/apiKey/{name}")).await.ok();
        assert_eq!((text(&shown["key"]), &shown["id"]), (key, id));
    }
    let listed = admin.get("/apiKey").await.ok();
    let listed =
        listed.as_array().expect("a list").iter().find(|key| key["id"] == *id).expect("it is listed");
    assert_eq!(text(&listed["key"]), format!("{}…", &key[..7]));

    let revoked = admin.delete(&format!("/apiKey/{key}")).await.ok();
    assert_eq!((text(&revoked["key"]), &revoked["revoked"]), (key, &json!(true)));
    assert_eq!(call(&app, key).await, 401);
    let listed = admin.get("/apiKey").await.ok();
    assert!(listed.as_array().expect("a list").iter().all(|key| key["id"] != *id));
    let listed = admin.get("/apiKey?includeRevoked=true").await.ok();
    assert!(listed.as_array().expect("a list").iter().any(|key| key["id"] == *id));

    let back = admin.put(&format!("/apiKey/{id}"), json!({ "revoked": false, "comment": null })).await.ok();
    assert_eq!((&back["comment"], &back["revoked"]), (&Value::Null, &json!(false)));
    assert_eq!(text(&back["key"]), format!("{}…", &key[..7]), "masked, as it was addressed by its id");
    assert_eq!(call(&app, key).await, 200);
}

#[tokio::test]
async fn limits_expiry_and_models_hold_at_once() {
    let app = TestApp::builder()
        .setting("SNAPSHOT_REFRESH_INTERVAL", "1h")
        .setting("RATE_LIMIT_BURST", "1")
        .spawn()
        .await;
    let admin = Administrator(&app);
    let made = admin
        .post("/apiKey", json!({ "rpmLimit": null, "tpmLimit": null, "key": "sk-brought-0123456789" }))
        .await
        .ok();
    assert_eq!((text(&made["key"]), &made["rpmLimit"]), ("sk-brought-0123456789", &Value::Null));
    let key = "sk-brought-0123456789";
    let usage = admin.get(&format!("/apiKey/{key}/usage")).await.ok();
    assert_eq!(
        usage,
        json!({ "key": key, "limits": { "rpm": null, "tpm": null }, "usage": { "rpm": null, "tpm": null } })
    );

    let limited =
        admin.put(&format!("/apiKey/{key}/ratelimit"), json!({ "rpmLimit": 2, "tpmLimit": 600 })).await.ok();
    assert_eq!((&limited["rpmLimit"], &limited["tpmLimit"]), (&json!(2), &json!(600)));
    assert_eq!([call(&app, key).await, call(&app, key).await, call(&app, key).await], [200, 200, 429]);
    app.settled().await;
    let usage = admin.get(&format!("/apiKey/{key}/usage")).await.ok();
    assert_eq!((text(&usage["key"]), &usage["limits"]), (key, &json!({ "rpm": 2, "tpm": 600 })));
    assert_eq!(
        (&usage["usage"]["rpm"]["limit"], &usage["usage"]["rpm"]["remaining"]),
        (&json!(2), &json!(0))
    );
    assert!(usage["usage"]["tpm"]["current"].as_u64().expect("a count") > 0);
    let raised = admin.put(&format!("/apiKey/{key}/ratelimit"), json!({ "rpmLimit": null })).await.ok();
    assert_eq!(
        (&raised["rpmLimit"], &raised["tpmLimit"]),
        (&Value::Null, &json!(600)),
        "what is left out stays"
    );
    assert_eq!(call(&app, key).await, 200);

    let change = |body: Value| admin.put("/apiKey/sk-brought-0123456789", body);
    change(json!({ "allowedModels": ["another"] })).await.ok();
    assert_eq!(call(&app, key).await, 404);
    change(json!({ "allowedModels": [MODEL] })).await.ok();
    assert_eq!(call(&app, key).await, 200);
    let expired = change(json!({ "expiresAt": "2020-01-01" })).await.ok();
    assert_eq!(text(&expired["expiresAt"]), "2020-01-01T00:00:00Z");
    assert_eq!(call(&app, key).await, 401);
    change(json!({ "expiresAt": "2199-01-01T00:00:00+01:00" })).await.ok();
    assert_eq!(call(&app, key).await, 200);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    for (body, field) in [
        (json!({ "rpmLimit": 0 }), "rpmLimit"),
        (json!({ "rpmLimit": -1 }), "rpmLimit"),
        (json!({ "rpmLimit": "many" }), "rpmLimit"),
        (json!({ "tpmLimit": 1.5 }), "tpmLimit"),
        (json!({ "tpmLimit": 4_294_967_296_u64 }), "tpmLimit"),
        (json!({ "comment": 5 }), "comment"),
        (json!({ "comment": "a\u{0}b" }), "comment"),
        (json!({ "comment": "x".repeat(1001) }), "comment"),
        (json!({ "expiresAt": "soon" }), "expiresAt"),
        (json!({ "expiresAt": 5 }), "expiresAt"),
        (json!({ "allowedModels": "gpt" }), "allowedModels"),
        (json!({ "allowedModels": [MODEL, 5] }), "allowedModels[1]"),
        (json!({ "allowedModels": [""] }), "allowedModels"),
        (json!({ "key": "short" }), "key"),
        (json!({ "key": "with spaces in it 0123456789" }), "key"),
        (json!({ "externalId": "" }), "externalId"),
        (json!({ "externalId": "x".repeat(256) }), "externalId"),
    ] {
        let said = admin.post("/apiKey", body.clone()).await.refused(400, "invalid_request", Some(field));
        assert!(said.starts_with(&format!("{field}: ")), "{body}: {said}");
    }
    let key = app.key.clone();
    for (path, body, field) in [
        (format!("/apiKey/{key}/ratelimit"), json!({ "rpmLimit": 0 }), "rpmLimit"),
        (format!("/apiKey/{key}/ratelimit"), json!({ "tpmLimit": [] }), "tpmLimit"),
        (format!("/apiKey/{key}"), json!({ "revoked": "yes" }), "revoked"),
        (format!("/apiKey/{key}"), json!({ "comment": "\u{0}" }), "comment"),
        (format!("/apiKey/{key}"), json!({ "comment": "x".repeat(1001) }), "comment"),
        (format!("/apiKey/{key}"), json!({ "rpmLimit": 0 }), "rpmLimit"),
        (format!("/apiKey/{key}"), json!({ "tpmLimit": 0 }), "tpmLimit"),
        (format!("/apiKey/{key}"), json!({ "allowedModels": [""] }), "allowedModels"),
    ] {
        admin.put(&path, body).await.refused(400, "invalid_request", Some(field));
    }
    for (query, field) in [
        ("includeRevoked=maybe", "includeRevoked"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("offset=-1", "offset"),
        ("offset=99999999999", "offset"),
        ("limit=1&limit=2", "limit"),
    ] {
        admin.get(&format!("/apiKey?{query}")).await.refused(400, "invalid_request", Some(field));
    }
    admin.post("/apiKey", json!({ "key": key })).await.refused(409, "already_exists", Some("key"));
    admin.post("/apiKey", json!({ "externalId": "one" })).await.ok();
    admin.post("/apiKey", json!({ "externalId": "one" })).await.refused(
        409,
        "already_exists",
        Some("externalId"),
    );
    for path in ["/apiKey/sk-unknown-0123456789", "/apiKey/999999", "/apiKey/sk-unknown/usage"] {
        admin.get(path).await.refused(404, "not_found", None);
    }
    admin.delete("/apiKey/999999").await.refused(404, "not_found", None);
    admin.put("/apiKey/999999/ratelimit", json!({})).await.refused(404, "not_found", None);
}

#[tokio::test]
async fn lists_have_pages() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    for n in 0..5 {
        admin.post("/apiKey", json!({ "comment": format!("key {n}") })).await.ok();
    }
    let page = admin.get("/apiKey?offset=2&limit=2").await.ok();
    let comments: Vec<&str> =
        page.as_array().expect("a list").iter().map(|key| text(&key["comment"])).collect();
    assert_eq!(comments, ["key 1", "key 2"], "after the key of the tests");
    assert_eq!(admin.get("/apiKey?offset=100").await.ok(), json!([]));
}
