//! Keys that another system manages by its own names.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::Administrator;
use crate::support::TestApp;
use crate::support::app::MODEL;

/// As the operator writes it: `k8s/cluster/namespace/app`.
const PATH: &str = "/apiKey/by-external-id/k8s%2Fprod%2Fteam%2Fapp";

#[tokio::test]
async fn fifty_at_once_get_one_key_that_works() {
    let app = TestApp::builder().setting("SNAPSHOT_REFRESH_INTERVAL", "1h").spawn().await;
    let admin = Administrator(&app);
    for (turn, created) in [("made", 1), ("brought back", 0)] {
        let answers = join_all((0..50).map(|_| async {
            let answer = admin.put(PATH, json!({ "comment": "app" })).await.ok();
            // Usable as soon as any caller has received it.
            let status = app.chat(MODEL).key(answer["key"].as_str().expect("a key")).send().await.status();
            (answer, status)
        }))
        .await;
        let (first, _) = &answers[0];
        for (answer, status) in &answers {
            assert_eq!((&answer["key"], &answer["id"]), (&first["key"], &first["id"]), "{turn}");
            assert_eq!(*status, 200, "{turn}");
            assert_eq!(answer["externalId"], "k8s/prod/team/app");
            assert_eq!((&answer["source"], &answer["revoked"]), (&json!("operator"), &json!(false)));
        }
        assert_eq!(answers.iter().filter(|(answer, _)| answer["created"] == true).count(), created, "{turn}");
        admin.delete(&format!("/apiKey/{}", first["key"].as_str().expect("a key"))).await.ok();
    }
    let managed = admin.get("/apiKey/managed").await.ok();
    assert_eq!(managed, json!([]), "revoked");
    let managed = admin.get("/apiKey/managed?includeRevoked=true").await.ok();
    assert_eq!(managed.as_array().expect("a list").len(), 1, "one key was made");
}

#[tokio::test]
async fn a_key_that_comes_back_keeps_what_is_not_said_anew() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    admin.get(PATH).await.refused(404, "not_found", None);
    let made = admin.put(PATH, json!({ "comment": "first", "rpmLimit": 7 })).await.ok();
    assert_eq!((&made["rpmLimit"], &made["tpmLimit"]), (&json!(7), &json!(50_000)));
    for (wrong, field) in
        [(json!({ "rpmLimit": 0 }), "rpmLimit"), (json!({ "allowedModels": [""] }), "allowedModels")]
    {
        admin.put(PATH, wrong).await.refused(400, "invalid_request", Some(field));
    }
    let again = admin.put(PATH, json!({ "comment": "second", "rpmLimit": 9 })).await.ok();
    assert_eq!(
        (&again["rpmLimit"], &again["comment"], &again["created"]),
        (&json!(7), &json!("first"), &json!(false))
    );
    let shown = admin.get(PATH).await.ok();
    assert_eq!(shown["key"], made["key"]);

    admin.delete(&format!("/apiKey/{}", made["id"])).await.ok();
    assert_eq!(admin.get(PATH).await.ok()["revoked"], true);
    let back = admin.put(PATH, json!({ "tpmLimit": null })).await.ok();
    assert_eq!((&back["key"], &back["rpmLimit"], &back["tpmLimit"]), (&made["key"], &json!(7), &Value::Null));
    assert_eq!((&back["comment"], &back["revoked"]), (&json!("first"), &json!(false)));

    // A passed expiry does not keep the key dead.
    admin.put(&format!("/apiKey/{}", made["id"]), json!({ "expiresAt": "2020-01-01T00:00:00Z" })).await.ok();
    let back = admin.put(PATH, json!({})).await.ok();
    assert_eq!((&back["key"], &back["expiresAt"]), (&made["key"], &Value::Null));

    admin.put(PATH, json!({ "rpmLimit": 0 })).await.refused(400, "invalid_request", Some("rpmLimit"));
    admin.put("/apiKey/by-external-id/a%00b", json!({})).await.refused(
        400,
        "invalid_request",
        Some("externalId"),
    );
    admin.get("/apiKey/by-external-id/a%00b").await.refused(404, "not_found", None);
    let long = "x".repeat(256);
    let path = format!("/apiKey/by-external-id/{long}");
    admin.put(&path, json!({})).await.refused(400, "invalid_request", Some("externalId"));
}

/// A key that was revoked because it leaked must not come back into use with the operator's next call.
#[tokio::test]
async fn a_leaked_key_is_replaced() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let leaked = admin.put(PATH, json!({ "comment": "app" })).await.ok();
    let released = json!({ "revoked": true, "externalId": null });
    let revoked = admin.put(&format!("/apiKey/{}", leaked["id"]), released).await.ok();
    assert_eq!((&revoked["revoked"], &revoked["externalId"]), (&json!(true), &Value::Null));
    let replaced = admin.put(PATH, json!({ "comment": "app" })).await.ok();
    assert_eq!(replaced["created"], true);
    for (key, status) in [(&leaked, 401), (&replaced, 200)] {
        let key = key["key"].as_str().expect("a key");
        assert_eq!(app.chat(MODEL).key(key).send().await.status(), status);
    }
    // Revoked first, and released later.
    admin.delete(&format!("/apiKey/{}", replaced["id"])).await.ok();
    admin.put(&format!("/apiKey/{}", replaced["id"]), json!({ "externalId": null })).await.ok();
    let again = admin.put(PATH, json!({})).await.ok();
    assert_eq!(again["created"], true);
    assert!(again["key"] != replaced["key"] && again["key"] != leaked["key"]);
    let taken = json!({ "externalId": "k8s/prod/team/app" });
    let path = format!("/apiKey/{}", leaked["id"]);
    admin.put(&path, taken).await.refused(409, "already_exists", Some("externalId"));
    admin.put(&path, json!({ "externalId": "" })).await.refused(400, "invalid_request", Some("externalId"));
}
