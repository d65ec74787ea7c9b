//! Secrets stay secret: everything the gateway answers, logs, exposes or stores is searched for them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nexusgate::demo::provider::{RefusedPort, Reply, ScriptedProvider};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A text that must not be found, and its description.
const SECRETS: &[(&str, &str)] = &[
    ("admin secret", "admin-9f2c71d0aa41"),
    ("encryption key", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"),
    ("metrics token", "metrics-5b7e3c1a99d2"),
    ("provider's key", "sk-upstream-4c1d88e7f0b3"),
    ("changed provider's key", "sk-changed-77ab10fe25c9"),
    ("proxy's password", "proxy-pass-31f6aa90"),
    ("Redis password", "redis-pass-86ce02bd"),
    ("caller's key", "sk-team-aa07d3e9c15f4b28"),
    ("guessed key", "sk-guess-e2b9f7041c6d"),
    ("guessed admin secret", "guess-admin-60d1c4"),
];

fn secret(what: &str) -> &'static str {
    SECRETS.iter().find(|(name, _)| *name == what).expect("a secret of that name").1
}

/// Prompts and answers must not be in the logs either.
const PROMPT: &str = "prompt-of-a-patient-5521";

const FILE: &str = r#"
[[providers]]
name = "alpha"
type = "openai"
base_url = "${ALPHA_URL}"
api_key = "${PROVIDER_KEY}"

[[providers]]
name = "proxied"
type = "openai"
base_url = "http://upstream.invalid/v1"
api_key = "${PROVIDER_KEY}"
proxy_url = "http://somebody:${PROXY_PASSWORD}@127.0.0.1:${REFUSED_PORT}"

[[models]]
name = "good"
provider = "alpha"

[[models]]
name = "behind-proxy"
provider = "proxied"

[[api_keys]]
key = "${TEAM_KEY}"
comment = "team"
rpm_limit = 1000
"#;

struct Gateway {
    child: Child,
    base: String,
    http: reqwest::Client,
    /// All answers that must not hold a secret.
    heard: String,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // A test that fails half-way leaves nothing running.
        let _ = self.child.kill();
    }
}

impl Gateway {
    async fn start(folder: &Path, environment: &[(&str, String)]) -> Self {
        let log = folder.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
            .args(["serve", "--config", "nexusgate.toml", "--port", "0", "--listen-addr", "127.0.0.1"])
            .env_clear()
            .env("RUST_LOG", "debug,nexusgate=trace")
            .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
            .current_dir(folder)
            .stdout(File::create(folder.join("stdout")).expect("a file"))
            .stderr(File::create(&log).expect("a file"))
            .spawn()
            .expect("it starts");
        let mut gateway =
            Self { child, base: String::new(), http: reqwest::Client::new(), heard: String::new() };
        let begun = Instant::now();
        let address = loop {
            let text = fs::read_to_string(&log).expect("a log");
            let listening = text.lines().find(|line| line.contains("listening"));
            if let Some((_, rest)) = listening.and_then(|line| line.split_once("address=")) {
                break rest.split_whitespace().next().expect("an address").to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not start:\n{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        gateway.base = format!("http://{address}");
        gateway
    }

    /// Sends, and records the answer.
    async fn hear(&mut self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let headers = format!("{:?}", response.headers());
        let body = response.text().await.expect("text");
        self.heard.push_str(&headers);
        self.heard.push_str(&body);
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    fn admin(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.http
            .request(method, format!("{}/api/admin{path}", self.base))
            .bearer_auth(secret("admin secret"))
    }

    fn chat(&self, key: &str, model: &str, stream: bool) -> reqwest::RequestBuilder {
        let body =
            json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": PROMPT}]});
        self.http.post(format!("{}/v1/chat/completions", self.base)).bearer_auth(key).json(&body)
    }
}

#[tokio::test]
async fn no_secret_is_answered_logged_exposed_or_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("nexusgate.toml"), FILE).expect("written");
    let provider = ScriptedProvider::spawn().await.expect("a provider");
    let refused = RefusedPort::reserve().expect("a port");
    let environment = [
        ("ALPHA_URL", provider.base_url()),
        ("REFUSED_PORT", refused.addr().port().to_string()),
        ("PROVIDER_KEY", secret("provider's key").to_owned()),
        ("PROXY_PASSWORD", secret("proxy's password").to_owned()),
        ("TEAM_KEY", secret("caller's key").to_owned()),
        ("ADMIN_SUPER_SECRET", secret("admin secret").to_owned()),
        ("ENCRYPTION_KEY", secret("encryption key").to_owned()),
        ("METRICS_BEARER_TOKEN", secret("metrics token").to_owned()),
        ("REDIS_URL", format!("redis://:{}@127.0.0.1:{}", secret("Redis password"), refused.addr().port())),
    ];
    let mut gateway = Gateway::start(folder.path(), &environment).await;

    inference(&mut gateway, &provider).await;
    let made = administration(&mut gateway).await;
    let metrics = gateway.http.get(format!("{}/metrics", gateway.base));
    assert_eq!(gateway.hear(metrics.bearer_auth(secret("metrics token"))).await.0, 200);
    let metrics = gateway.http.get(format!("{}/metrics", gateway.base));
    assert_eq!(gateway.hear(metrics.bearer_auth("wrong")).await.0, 401);

    let help = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
        .args(["serve", "--help"])
        .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
        .output()
        .expect("it runs");
    search("the help text", &help.stdout, &made);
    search("an answer", gateway.heard.as_bytes(), &made);
    gateway.child.kill().expect("killed");
    gateway.child.wait().expect("ended");
    let mut searched = 0;
    for file in files(folder.path()) {
        if !file.ends_with("nexusgate.toml") {
            search(&file.display().to_string(), &fs::read(&file).expect("readable"), &made);
            searched += 1;
        }
    }
    assert!(searched >= 3, "log, database and journal were searched, not {searched} files");
    let log = fs::read_to_string(folder.path().join("log")).expect("a log");
    assert!(log.lines().count() > 20 && !log.contains(PROMPT), "prompts are not logged");
}

/// Calls of every kind and ending.
async fn inference(gateway: &mut Gateway, provider: &ScriptedProvider) {
    let (team, guess) = (secret("caller's key"), secret("guessed key"));
    for stream in [false, true] {
        assert_eq!(gateway.hear(gateway.chat(team, "good", stream)).await.0, 200);
        assert_eq!(gateway.hear(gateway.chat(team, "behind-proxy", stream)).await.0, 502);
        assert_eq!(gateway.hear(gateway.chat(team, "no-such-model", stream)).await.0, 404);
        assert_eq!(gateway.hear(gateway.chat(guess, "good", stream)).await.0, 401);
    }
    let broken = gateway.http.post(format!("{}/v1/chat/completions", gateway.base)).bearer_auth(team);
    assert_eq!(gateway.hear(broken.body("{\"model\": ")).await.0, 400);
    provider.always(Reply::status(http::StatusCode::UNAUTHORIZED));
    assert_eq!(gateway.hear(gateway.chat(team, "good", false)).await.0, 401);
    let echo =
        json!({"error": {"message": format!("Incorrect API key provided: {}.", secret("provider's key"))}});
    for status in [http::StatusCode::UNAUTHORIZED, http::StatusCode::OK] {
        provider.always(Reply::raw_json(echo.to_string()).with_status(status));
        let (_, told) = gateway.hear(gateway.chat(team, "good", false)).await;
        assert_eq!(told["error"]["message"], "Incorrect API key provided: ***.", "{told}");
    }
    let content = json!({"choices": [{"index": 0, "delta": {"content": "so far"}}]});
    // The second one is a whole event without its blank line, the third no JSON.
    let plain = format!("data: {} is wrong\n\n", secret("provider's key"));
    for error in [format!("data: {echo}\n\n"), format!("data: {echo}\n"), plain] {
        provider.always(Reply::raw_stream([format!("data: {content}\n\n"), error]));
        let body = json!({"model": "good", "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}]});
        let passed = gateway.http.post(format!("{}/v1/chat/completions", gateway.base)).bearer_auth(team);
        let converted = gateway.http.post(format!("{}/v1/messages", gateway.base)).header("x-api-key", team);
        let calls = [gateway.chat(team, "good", true), passed.json(&body), converted.json(&body)];
        for call in calls {
            let from = gateway.heard.len();
            assert_eq!(gateway.hear(call).await.0, 200);
            assert!(gateway.heard[from..].contains("so far"), "{}", &gateway.heard[from..]);
        }
    }
    let models = gateway.http.get(format!("{}/v1/models", gateway.base)).bearer_auth(team);
    assert_eq!(gateway.hear(models).await.0, 200);
}

/// Every route of the admin API. Returns the created keys, which its lists must not show.
async fn administration(gateway: &mut Gateway) -> Vec<String> {
    let mut made = Vec::new();
    // Only these three hand the key out: their answers are not searched.
    for (method, path, body) in [
        ("POST", "/apiKey", json!({"comment": "made"})),
        ("PUT", "/apiKey/by-external-id/operator-1", json!({"comment": "operated"})),
    ] {
        let response = gateway.admin(method, path).json(&body).send().await.expect("an answer");
        let answer: Value = response.json().await.expect("JSON");
        made.push(answer["key"].as_str().expect("a key").to_owned());
    }
    let list = gateway.admin("GET", "/providers");
    let (status, providers) = gateway.hear(list).await;
    assert_eq!(status, 200);
    for provider in providers.as_array().expect("a list") {
        let id = &provider["id"];
        for (method, path) in [("POST", "test"), ("GET", "remote-models")] {
            let request = gateway.admin(method, &format!("/providers/{id}/{path}"));
            gateway.hear(request).await;
        }
        let change = json!({"apiKey": secret("changed provider's key")});
        let request = gateway.admin("PUT", &format!("/providers/{id}")).json(&change);
        assert_eq!(gateway.hear(request).await.0, 200);
    }
    let limits = gateway.admin("PUT", &format!("/apiKey/{}/ratelimit", 1)).json(&json!({"rpmLimit": 900}));
    assert_eq!(gateway.hear(limits).await.0, 200);

    // All other readable routes, as listed in the OpenAPI document.
    let document = nexusgate::app::openapi();
    let readable = document["paths"].as_object().expect("paths").iter();
    let readable = readable.filter(|(path, item)| path.starts_with("/api/admin") && item["get"].is_object());
    let mut asked = 0;
    for (path, _) in readable {
        let path = path
            .trim_start_matches("/api/admin")
            .replace("{systemName}", "good")
            .replace("{id}", "1")
            .replace("{key}", "1");
        if path == "/apiKey/1" || path.contains("{externalId}") {
            continue;
        }
        let request = gateway.admin("GET", &path);
        gateway.hear(request).await;
        asked += 1;
    }
    assert!(asked >= 8, "only {asked} routes were asked");
    let wrong = gateway.http.get(format!("{}/api/admin", gateway.base));
    assert_eq!(gateway.hear(wrong.bearer_auth(secret("guessed admin secret"))).await.0, 401);
    made
}

fn search(place: &str, bytes: &[u8], made: &[String]) {
    let secrets = SECRETS.iter().copied().chain(made.iter().map(|key| ("key that was made", key.as_str())));
    for (what, secret) in secrets {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{place} shows the {what}");
    }
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}
