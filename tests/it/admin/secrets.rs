//! No plaintext secret in the exposition, nor in any answer that is not meant to hand it out.

use serde_json::{Value, json};

use super::Administrator;
use crate::support::TestApp;
use crate::support::app::MODEL;

const PROVIDER_KEY: &str = "sk-provider-0123456789-hidden";
const PROXY_PASSWORD: &str = "proxy-password-hidden";

#[tokio::test]
async fn secrets_stay_where_they_are() {
    let app =
        TestApp::builder().setting("ADMIN_SUPER_SECRET", "admin-secret-hidden-0123456789").spawn().await;
    let admin = Administrator(&app);
    let proxy = format!("http://me:{PROXY_PASSWORD}@127.0.0.1:1");
    let body = json!({ "name": "beta", "baseUrl": "http://127.0.0.1:1/v1", "apiKey": PROVIDER_KEY, "proxyUrl": proxy });
    let provider = admin.post("/providers", body).await;
    let id = provider.body["id"].clone();
    let made = admin.post("/apiKey", json!({ "comment": "secret bearer", "externalId": "app" })).await.ok();
    let (key, key_id) = (made["key"].as_str().expect("a key").to_owned(), made["id"].clone());
    app.chat(MODEL).key(&key).send().await.bytes().await.expect("an answer");
    app.settled().await;
    let record = admin.get("/completions").await.ok()["data"][0]["id"].as_str().expect("a record").to_owned();

    let mut answers = vec![("POST /providers".to_owned(), provider.body)];
    for path in [
        "/apiKey".to_owned(),
        "/apiKey?includeRevoked=true".to_owned(),
        "/apiKey/managed".to_owned(),
        format!("/apiKey/{key_id}/usage"),
        "/providers".to_owned(),
        format!("/providers/{id}"),
        format!("/providers/{id}/models"),
        format!("/providers/{id}/remote-models"),
        "/models".to_owned(),
        format!("/models/by-system-name/{MODEL}"),
        "/completions".to_owned(),
        format!("/completions/{record}"),
        "/embeddings".to_owned(),
        "/usage".to_owned(),
        "/stats/overview".to_owned(),
        "/rev".to_owned(),
    ] {
        answers.push((format!("GET {path}"), admin.get(&path).await.body));
    }
    for (path, body) in [
        (format!("/apiKey/{key_id}"), json!({ "comment": "changed" })),
        (format!("/apiKey/{key_id}/ratelimit"), json!({ "rpmLimit": 5 })),
        (format!("/providers/{id}"), json!({ "comment": "changed" })),
    ] {
        answers.push((format!("PUT {path}"), admin.put(&path, body).await.body));
    }
    answers
        .push(("POST test".to_owned(), admin.post(&format!("/providers/{id}/test"), json!({})).await.body));
    answers.push(("DELETE key".to_owned(), admin.delete(&format!("/apiKey/{key_id}")).await.body));
    answers.push(("DELETE provider".to_owned(), admin.delete(&format!("/providers/{id}")).await.body));
    answers.push(("/metrics".to_owned(), Value::String(app.scrape().await.text)));
    for (what, answer) in answers {
        for secret in
            [&key, PROVIDER_KEY, PROXY_PASSWORD, "upstream-secret", "admin-secret-hidden-0123456789"]
        {
            assert!(!answer.to_string().contains(secret), "{what} shows a secret: {answer}");
        }
    }
    // Answers that are meant to.
    for path in [format!("/apiKey/{key_id}"), "/apiKey/by-external-id/app".to_owned()] {
        assert_eq!(admin.get(&path).await.ok()["key"], key);
    }
}
