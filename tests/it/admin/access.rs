//! Access to the admin API.

use reqwest::Method;
use serde_json::json;

use super::{Administrator, Answer};
use crate::support::TestApp;

async fn with_secret(app: &TestApp, secret: Option<&str>) -> reqwest::Response {
    let mut request = app.http.get(app.url("/api/admin/apiKey"));
    if let Some(secret) = secret {
        request = request.bearer_auth(secret);
    }
    request.send().await.expect("an answer")
}

#[tokio::test]
async fn the_secret_opens_every_door_and_nothing_else_does() {
    let app = TestApp::builder().setting("COMMIT_SHA", "0123456789abcdef").spawn().await;
    let admin = Administrator(&app);
    assert_eq!(admin.get("").await.ok(), true);
    assert_eq!(admin.get("/").await.ok(), true);
    assert_eq!(admin.get("/rev").await.ok()["commit"], "0123456789abcdef");
    for given in [None, Some(app.key.as_str()), Some("wrong")] {
        let response = with_secret(&app, given).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        Answer::read(response).await.refused(401, "unauthorized", None);
    }
    // The secret is not an API key either.
    let secret = app.running().admin_secret().expose();
    let response = app.http.get(app.url("/v1/models")).bearer_auth(secret).send().await.expect("an answer");
    assert_eq!(response.status(), 401);
}

#[tokio::test]
async fn every_route_asks_for_the_secret() {
    let app = TestApp::spawn().await;
    let spec: serde_json::Value = app
        .http
        .get(app.url("/api/openapi.json"))
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    let mut asked = 0;
    for (path, item) in spec["paths"].as_object().expect("paths") {
        if !path.starts_with("/api/admin") {
            continue;
        }
        for method in item.as_object().expect("operations").keys() {
            let method: Method = method.to_ascii_uppercase().parse().expect("a method");
            let response = app.http.request(method, app.url(path)).send().await.expect("an answer");
            Answer::read(response).await.refused(401, "unauthorized", None);
            asked += 1;
        }
    }
    assert!(asked >= 25, "{asked} operations were asked");
}

#[tokio::test]
async fn guesses_are_slowed_down_and_the_right_secret_is_not() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let mut refused = 0;
    for guess in 0..30 {
        let response = with_secret(&app, Some(&format!("guess-{guess}"))).await;
        if response.status() == 429 {
            let wait: u64 =
                response.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
            assert!((1..=60).contains(&wait), "{wait}");
            Answer::read(response).await.refused(429, "too_many_attempts", None);
            refused += 1;
        } else {
            Answer::read(response).await.refused(401, "unauthorized", None);
        }
        admin.get("").await.ok();
    }
    assert!((19..=20).contains(&refused), "{refused} of 30 were refused");
    let scrape = app.scrape().await;
    let counted = |code| {
        scrape
            .metric("nexusgate_http_requests_total")
            .label("route", "/api/admin/apiKey")
            .label("code", code)
            .value()
    };
    assert_eq!((counted("429"), counted("401")), (f64::from(refused), f64::from(30 - refused)));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_same_shape() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let response = admin.request(Method::GET, "/nonsense").send().await.expect("an answer");
    assert_eq!(response.status(), 404);
    let body: serde_json::Value = response.json().await.expect("JSON");
    assert_eq!(body["code"], "not_found");
    let response = admin.request(Method::PATCH, "/providers").send().await.expect("an answer");
    assert_eq!(response.status(), 405);
    assert!(response.headers()["allow"].to_str().expect("text").contains("POST"));
    for path in ["/providers/nonsense", "/models/9223372036854775808", "/providers/0", "/apiKey/%FF"] {
        admin.get(path).await.refused(404, "not_found", None);
    }
}

#[tokio::test]
async fn bodies_are_json_and_of_bounded_size() {
    let app = TestApp::spawn().await;
    let admin = Administrator(&app);
    let post = |content_type: &'static str, body: Vec<u8>| {
        let mut request = admin.request(Method::POST, "/apiKey").body(body);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        async { Answer::read(request.send().await.expect("an answer")).await }
    };
    post("text/plain", b"{}".to_vec()).await.refused(415, "unsupported_media_type", None);
    post("application/x-www-form-urlencoded", b"comment=x".to_vec()).await.refused(
        415,
        "unsupported_media_type",
        None,
    );
    for body in ["", "{", "{}{}", "nonsense", "{\"comment\": \"\u{1}\"}"] {
        let text =
            post("application/json", body.as_bytes().to_vec()).await.refused(400, "invalid_request", None);
        assert!(text.contains("JSON"), "{body}: {text}");
    }
    post("application/json", b"{\"comment\": \"\xff\"}".to_vec()).await.refused(400, "invalid_request", None);
    post("", b"{}".to_vec()).await.ok();
    post("application/json; charset=utf-8", b"{}".to_vec()).await.ok();
    post("application/json", format!("{{\"comment\": \"{}\"}}", "x".repeat(2 << 20)).into_bytes())
        .await
        .refused(413, "body_too_large", None);
    // Clients of the reference system may send more fields than we know.
    admin.post("/apiKey", json!({ "comment": "x", "unknownField": [1] })).await.ok();
}
