//! nexusgate as a process of its own: the binary that users run.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use nexusgate::demo::provider::ScriptedProvider;
use tempfile::TempDir;

use super::process::{Process, free_port};
use super::scrape::Scrape;
use super::{PATIENCE, database, eventually};

/// The models every site offers.
pub const MODEL: &str = "gpt-4o";
pub const EMBEDDING_MODEL: &str = "embed-small";

/// A key without limits, called `tests`.
pub const KEY: &str = "sk-test-0123456789abcdef";

/// The replicas' shared parts: the provider, the database and the settings file.
pub struct Site {
    pub folder: TempDir,
    pub provider: ScriptedProvider,
    pub database_url: String,
    pub http: reqwest::Client,
}

/// A key that a site declares.
pub struct Key<'a> {
    pub key: &'a str,
    pub comment: &'a str,
    pub rpm: Option<u32>,
    pub tpm: Option<u32>,
}

impl Site {
    /// With a database of its own: PostgreSQL when a server is configured, else a SQLite file.
    pub async fn new(keys: &[Key<'_>]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database_url = database::fresh(folder.path()).await;
        Self::over(folder, database_url, keys).await
    }

    /// Over a database that the test manages.
    pub async fn over(folder: TempDir, database_url: String, keys: &[Key<'_>]) -> Self {
        // The clients put a marker into every call, so the provider need not record any.
        let provider = ScriptedProvider::builder().remember(0).spawn().await.expect("a scripted provider");
        let site = Self { folder, provider, database_url, http: reqwest::Client::new() };
        site.declare(keys);
        site
    }

    fn declare(&self, keys: &[Key<'_>]) {
        let mut text = format!(
            "[[providers]]\nname = \"alpha\"\ntype = \"openai\"\nbase_url = \"{}\"\napi_key = \"upstream-secret\"\n",
            self.provider.base_url()
        );
        for (name, kind) in [(MODEL, "chat"), (EMBEDDING_MODEL, "embedding")] {
            let _ = write!(
                text,
                "[[models]]\nname = \"{name}\"\nprovider = \"alpha\"\ntype = \"{kind}\"\ninput_price = 2.0\noutput_price = 8.0\n"
            );
        }
        let tests = Key { key: KEY, comment: "tests", rpm: None, tpm: None };
        for key in std::iter::once(&tests).chain(keys) {
            let _ = write!(text, "[[api_keys]]\nkey = \"{}\"\ncomment = \"{}\"\n", key.key, key.comment);
            for (name, limit) in [("rpm_limit", key.rpm), ("tpm_limit", key.tpm)] {
                if let Some(limit) = limit {
                    let _ = writeln!(text, "{name} = {limit}");
                }
            }
        }
        std::fs::write(self.config(), text).expect("the settings file");
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("nexusgate.toml")
    }

    /// A replica that is not running yet.
    pub fn replica(&self, name: &str) -> Replica {
        let data_dir = self.folder.path().join(name).display().to_string();
        let settings = [
            ("LISTEN_ADDR", "127.0.0.1"),
            ("DATABASE_URL", &self.database_url),
            ("DATA_DIR", &data_dir),
            ("INSTANCE_ID", name),
            ("ENCRYPTION_KEY", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
            ("ADMIN_SUPER_SECRET", ADMIN_SECRET),
            ("SHUTDOWN_GRACE", "20s"),
        ];
        Replica {
            name: name.to_owned(),
            config: self.config(),
            output: self.folder.path().join(format!("{name}.log")),
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            port: free_port(),
            http: self.http.clone(),
            process: None,
        }
    }

    /// Replicas `a`, `b`, `c` on one Redis, started at once.
    pub async fn three_replicas(&self, redis_url: &str, settings: &[(&str, &str)]) -> [Replica; 3] {
        let mut replicas = ["a", "b", "c"].map(|name| {
            let replica = self.replica(name).setting("REDIS_URL", redis_url);
            settings.iter().fold(replica, |replica, (name, value)| replica.setting(name, value))
        });
        for replica in &mut replicas {
            replica.launch();
        }
        for replica in &mut replicas {
            replica.is_ready().await;
        }
        replicas
    }
}

/// The admin API's bearer secret.
pub const ADMIN_SECRET: &str = "an-admin-secret-for-the-tests";

/// One gateway process, which may be down. It keeps its port and its data folder across restarts.
pub struct Replica {
    pub name: String,
    pub port: u16,
    config: PathBuf,
    output: PathBuf,
    settings: Vec<(String, String)>,
    http: reqwest::Client,
    process: Option<Process>,
}

impl Replica {
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    pub async fn started(mut self) -> Self {
        self.start().await;
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) {
        self.launch();
        self.is_ready().await;
    }

    /// Starts it.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        // Beyond the limit of a file's size (`setrlimit`) a write is refused only if its signal is ignored.
        let mut command = Command::new("/usr/bin/env");
        command
            .args(["--ignore-signal=XFSZ", env!("CARGO_BIN_EXE_nexusgate"), "serve"])
            .arg("--config")
            .arg(&self.config)
            // None of the machine's own settings.
            .env_clear()
            .env("PORT", self.port.to_string())
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::spawn(&mut command, &self.output));
    }

    /// Waits until it accepts traffic.
    pub async fn is_ready(&mut self) {
        let start = std::time::Instant::now();
        while !self.answers("/readyz").await {
            let output = self.process().output();
            assert!(self.process().is_running(), "{} ended:\n{output}", self.name);
            assert!(start.elapsed() < PATIENCE, "{} does not become ready:\n{output}", self.name);
            tokio::time::sleep(super::PAUSE).await;
        }
    }

    async fn answers(&self, path: &str) -> bool {
        self.http.get(self.url(path)).send().await.is_ok_and(|response| response.status() == 200)
    }

    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGTERM; returns whether everything was finished and written.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        process.signal("TERM");
        process.ended().await
    }

    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn scrape(&self) -> Scrape {
        let response = self.http.get(self.url("/metrics")).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        Scrape::new(response.text().await.expect("text"))
    }

    /// Scrapes until `condition` holds.
    pub async fn eventually(&self, what: &str, condition: impl Fn(&Scrape) -> bool) -> Scrape {
        let mut scrape = self.scrape().await;
        eventually(&format!("{}: {what}", self.name), async || {
            scrape = self.scrape().await;
            condition(&scrape)
        })
        .await;
        scrape
    }

    /// Waits until every finished request is in the database and everything adds up.
    pub async fn settled(&self) -> Scrape {
        self.eventually("nothing is pending", |scrape| {
            scrape.metric("nexusgate_requests_in_flight").is(0.0)
                && scrape.metric("nexusgate_request_log_pending").is(0.0)
                && scrape.metric("nexusgate_audit_mismatch").is(0.0)
        })
        .await
    }

    /// A request to the admin API.
    pub fn admin(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(ADMIN_SECRET)
    }

    /// One chat request with this key.
    pub fn chat(&self, key: &str) -> reqwest::RequestBuilder {
        let body = serde_json::json!({ "model": MODEL, "messages": [{ "role": "user", "content": "Say something." }] });
        self.http.post(self.url("/v1/chat/completions")).bearer_auth(key).json(&body)
    }
}
