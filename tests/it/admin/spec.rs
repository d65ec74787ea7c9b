//! The OpenAPI document and Swagger UI.

use std::path::Path;

use crate::support::TestApp;

#[test]
fn the_document_is_checked_in() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let kept = std::fs::read_to_string(&path).expect("docs/openapi.json");
    let now = format!("{:#}\n", nexusgate::app::openapi());
    assert!(kept == now, "docs/openapi.json has drifted: nexusgate openapi > docs/openapi.json");
}

#[test]
fn everything_it_refers_to_is_there() {
    fn references(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(|to| to.as_str()).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = nexusgate::app::openapi();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50, "{}", found.len());
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("within the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn it_is_served_and_can_be_read() {
    let app = TestApp::spawn().await;
    let response = app.http.get(app.url("/api/openapi.json")).send().await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/json");
    let served: serde_json::Value = response.json().await.expect("JSON");
    assert_eq!(served, nexusgate::app::openapi());
    assert_eq!(served["openapi"], "3.1.0");
    for path in ["/v1/chat/completions", "/v1/models", "/metrics", "/api/admin/apiKey"] {
        assert!(served["paths"][path].is_object(), "{path}");
    }
    let page = app.http.get(app.url("/api/docs")).send().await.expect("an answer");
    assert!(page.status().is_success());
    assert!(page.text().await.expect("HTML").contains("swagger-ui"));
    let script = app.http.get(app.url("/api/docs/swagger-ui-bundle.js")).send().await.expect("an answer");
    assert!(script.status().is_success());
    assert!(script.bytes().await.expect("a script").len() > 100_000);
}
