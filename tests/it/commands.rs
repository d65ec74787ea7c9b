//! The administration commands, against a running gateway.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use nexusgate::demo::provider::{Reply, ScriptedProvider};
use serde_json::Value;

use crate::support::TestApp;

const PROVIDER_KEY: &str = "sk-upstream-secret-0123456789";

/// Runs `nexusgate` with the gateway's address and secret in its environment.
async fn run(app: &TestApp, arguments: &[&str], input: &str) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let (url, secret) = (app.url(""), app.running().admin_secret().expose().to_owned());
    let input = input.to_owned();
    let run = move || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
            .args(arguments)
            .env_clear()
            .env("NEXUSGATE_URL", url)
            .env("ADMIN_SUPER_SECRET", secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
        child.wait_with_output().expect("it ends")
    };
    // Off this thread: the gateway runs on it.
    tokio::task::spawn_blocking(run).await.expect("it ran")
}

async fn said(app: &TestApp, arguments: &[&str]) -> String {
    let output = run(app, arguments, "").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[tokio::test]
async fn from_a_provider_to_a_call() {
    let app = TestApp::spawn().await;
    let upstream = ScriptedProvider::spawn().await.expect("a provider");
    let base_url = upstream.base_url();
    let added = run(
        &app,
        &["providers", "add", "--name", "beta", "--base-url", &base_url, "--api-key-stdin"],
        PROVIDER_KEY,
    )
    .await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let listed = said(&app, &["providers", "list"]).await;
    assert!(listed.contains("beta") && listed.contains(&base_url));
    assert!(!listed.contains(PROVIDER_KEY), "masked");

    let prices = ["--input-price", "2.5", "--output-price", "10", "--cached-input-price", "0.25"];
    let model = ["models", "add", "--provider", "beta", "--name", "new-model", "--remote-id", "remote-model"];
    said(&app, &[&model[..], &prices[..]].concat()).await;
    let models: Value = serde_json::from_str(&said(&app, &["models", "list", "--json"]).await).expect("JSON");
    let model = models
        .as_array()
        .expect("a list")
        .iter()
        .find(|model| model["systemName"] == "new-model")
        .expect("the model");
    assert_eq!((model["inputPrice"].as_f64(), model["outputPrice"].as_f64()), (Some(2.5), Some(10.0)));
    assert_eq!((model["cachedInputPrice"].as_f64(), model["cacheWritePrice"].as_f64()), (Some(0.25), None));

    let priceless = ["models", "add", "--provider", "beta", "--name", "other", "--input-price", "nan"];
    let refused = run(&app, &priceless, "").await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("at least 0"));

    let create = ["keys", "create", "--comment", "by-hand", "--rpm", "60", "--tpm", "unlimited"];
    let key = said(&app, &[&create[..], &["--expires", "90d", "--model", "new-model"]].concat()).await;
    let key = key.trim();
    let answer = app.chat("new-model").key(key).send().await;
    assert_eq!(answer.status(), 200, "it takes effect at once");
    let call = upstream.calls().pop().expect("a call");
    assert_eq!(call.json()["model"], "remote-model");
    assert_eq!(call.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));

    let keys: Value = serde_json::from_str(&said(&app, &["keys", "list", "--json"]).await).expect("JSON");
    let listed =
        keys.as_array().expect("a list").iter().find(|key| key["comment"] == "by-hand").expect("the key");
    assert_eq!(listed["rpmLimit"], 60);
    assert_eq!(listed["tpmLimit"], Value::Null);
    assert_ne!(listed["key"], key, "masked");
    said(&app, &["keys", "revoke", &listed["id"].to_string()]).await;
    assert_eq!(app.chat("new-model").key(key).send().await.status(), 401);
}

#[tokio::test]
async fn a_provider_is_tested() {
    let app = TestApp::spawn().await;
    assert!(said(&app, &["providers", "test", "alpha"]).await.contains("answered well"));
    app.provider().always(Reply::status(http::StatusCode::INTERNAL_SERVER_ERROR));
    let output = run(&app, &["providers", "test", "alpha"], "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("500"), "{output:?}");
}

#[tokio::test]
async fn mistakes_are_one_line() {
    let app = TestApp::spawn().await;
    for (arguments, part) in [
        (vec!["providers", "test", "nobody"], "no provider \"nobody\""),
        (vec!["keys", "revoke", "999999"], "404"),
        (vec!["models", "add", "--provider", "alpha", "--name", "gpt-4o"], "409"),
        (vec!["keys", "create", "--url", "ftp://x"], "NEXUSGATE_URL"),
        (vec!["keys", "list", "--admin-super-secret", "wrong"], "401"),
        (vec!["keys", "list", "--url", "http://127.0.0.1:1"], "refused"),
    ] {
        let output = run(&app, &arguments, "").await;
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(complaint.contains(part) && complaint.trim_end().lines().count() == 1, "{complaint}");
    }
}

#[tokio::test]
async fn a_container_asks_whether_the_gateway_is_ready() {
    let app = TestApp::spawn().await;
    assert!(run(&app, &["healthcheck"], "").await.status.success());
    // Without an address it is asked where its settings say that it listens.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("nexusgate.toml");
    std::fs::write(&file, format!("port = {}\n", app.running().address().port())).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexusgate"));
    command.args(["healthcheck", "--config"]).arg(&file).env_clear();
    let asked = tokio::task::spawn_blocking(move || command.output()).await.expect("it ran");
    let asked = asked.expect("it starts");
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    // A file that needs what only the gateway's process has.
    std::fs::write(&file, "instance_id = \"${ABSENT}\"\n").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexusgate"));
    let port = app.running().address().port().to_string();
    command.args(["healthcheck", "--config"]).arg(&file).env_clear().env("PORT", port);
    let asked = tokio::task::spawn_blocking(move || command.output()).await.expect("it ran");
    assert!(asked.expect("it starts").status.success());
    let away = run(&app, &["healthcheck", "--url", "http://127.0.0.1:1"], "").await;
    assert_eq!(away.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&away.stderr);
    assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
}

/// Variables that are set to nothing, as Compose and Helm leave them, count as unset.
#[test]
fn empty_variables_stop_no_command() {
    const EMPTY: [&str; 4] = ["PORT", "NEXUSGATE_URL", "NEXUSGATE_CONFIG", "NEW_ENCRYPTION_KEY"];
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, code) in [(["check-config"].as_slice(), 0), (&["healthcheck", "--port", "1"], 1)] {
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_nexusgate"))
            .args(arguments)
            .envs(EMPTY.map(|name| (name, "")))
            .current_dir(&folder)
            .output()
            .expect("it runs");
        assert_eq!(
            done.status.code(),
            Some(code),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
