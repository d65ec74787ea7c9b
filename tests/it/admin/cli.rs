//! The command line that speaks to the admin API.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::TestApp;
use crate::support::app::MODEL;

const SECRET: &str = "the-admin-secret-of-the-tests";

/// Runs the command against the app without blocking it.
async fn run(app: &TestApp, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexusgate"));
    command
        .args(arguments)
        .env_clear()
        .env("NEXUSGATE_URL", app.url(""))
        .env("ADMIN_SUPER_SECRET", SECRET)
        .env("PROVIDER_API_KEY", "sk-from-the-environment");
    tokio::task::spawn_blocking(move || command.output().expect("the command runs")).await.expect("it ended")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).expect("JSON")
}

#[tokio::test]
async fn a_gateway_is_set_up_by_commands() {
    let app = TestApp::builder().setting("ADMIN_SUPER_SECRET", SECRET).spawn().await;
    let base_url = app.provider().base_url();
    let added = run(&app, &["providers", "add", "beta", "--base-url", &base_url]).await;
    assert!(text(&added).contains("beta") && !text(&added).contains("sk-from-the-environment"));
    run(&app, &["models", "add", "fresh", "--provider", "beta", "--input-price", "1.5", "--json"]).await;
    let listed = json(&run(&app, &["models", "list", "--json"]).await);
    let fresh = listed.as_array().expect("a list").iter().find(|model| model["systemName"] == "fresh");
    assert_eq!(fresh.expect("it is listed")["inputPrice"], 1.5);
    let tested = run(&app, &["providers", "test", "beta"]).await;
    assert!(text(&tested).contains("completion"), "{}", text(&tested));
    let made = run(
        &app,
        &["keys", "create", "--comment", "cli", "--rpm", "unlimited", "--model", "fresh", "--json"],
    )
    .await;
    let made = json(&made);
    assert!(made["rpmLimit"].is_null() && made["tpmLimit"] == 50_000);
    let key = made["key"].as_str().expect("a key");
    assert_eq!(app.chat("fresh").key(key).send().await.status(), 200);
    assert_eq!(app.chat(MODEL).key(key).send().await.status(), 404);
    let listed = text(&run(&app, &["keys", "list"]).await);
    assert!(listed.contains("cli") && !listed.contains(key), "{listed}");
    run(&app, &["keys", "revoke", key]).await;
    assert_eq!(app.chat("fresh").key(key).send().await.status(), 401);
    assert!(text(&run(&app, &["keys", "list", "--all"]).await).contains("cli"));
    assert!(!text(&run(&app, &["keys", "list"]).await).contains("cli"));
}

#[tokio::test]
async fn what_goes_wrong_is_one_line() {
    let app = TestApp::builder().setting("ADMIN_SUPER_SECRET", SECRET).spawn().await;
    for (arguments, part) in [
        (vec!["keys", "list", "--admin-secret", "wrong"], "admin secret"),
        (vec!["keys", "list", "--url", "http://127.0.0.1:1"], "does not answer"),
        (vec!["keys", "revoke", "sk-unknown"], "no such API key"),
        (vec!["keys", "create", "--rpm", "0"], "rpmLimit"),
        (vec!["providers", "add", "alpha", "--base-url", "http://h"], "another provider"),
        (vec!["providers", "add", "x", "--type", "nonsense", "--base-url", "http://h"], "type"),
        (vec!["providers", "test", "nobody"], "nobody"),
        (vec!["models", "add", "x", "--provider", "nobody"], "nobody"),
    ] {
        let output = run(&app, &arguments).await;
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(
            (output.status.code(), said.trim_end().lines().count()),
            (Some(1), 1),
            "{arguments:?}: {said}"
        );
        assert!(said.contains(part) && !said.contains(SECRET), "{arguments:?}: {said}");
    }
    app.provider().always(nexusgate::demo::provider::Reply::status(reqwest::StatusCode::UNAUTHORIZED));
    let failed = run(&app, &["providers", "test", "alpha"]).await;
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stdout).contains("401"));
}
