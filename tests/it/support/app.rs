//! The gateway under test.

use std::time::{Duration, Instant};

use entity::{completions, embeddings};
use nexusgate::app::RunningApp;
use nexusgate::config::{DeclaredKey, DeclaredModel, DeclaredProvider, Settings};
use nexusgate::demo::provider::ScriptedProvider;
use nexusgate::domain::key::Secret;
use nexusgate::domain::label::{ApiFormat, ModelType};
use nexusgate::domain::provider::ProviderKind;
use nexusgate::gateway::Hooks;
use sea_orm::EntityTrait;
use tempfile::TempDir;

use super::database;
use super::request::Call;
use super::scrape::Scrape;

/// How long a condition may take to come true. Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The model that every test app offers, and the embedding model, which Anthropic does not.
pub const MODEL: &str = "gpt-4o";
pub const EMBEDDING_MODEL: &str = "embed-small";

/// A gateway on a free port, in front of scripted providers.
pub struct TestApp {
    app: Option<RunningApp>,
    pub providers: Vec<ScriptedProvider>,
    /// An API key without limits, called `tests`.
    pub key: String,
    pub http: reqwest::Client,
    base: String,
    settings: Settings,
    _folder: TempDir,
}

/// A final change to the settings.
type Adjustment = Box<dyn FnOnce(&mut Settings)>;

/// The configuration of a test app.
pub struct Builder {
    settings: Vec<(String, String)>,
    providers: Vec<(String, ProviderKind, Option<String>)>,
    keys: Vec<DeclaredKey>,
    hooks: Hooks,
    adjust: Vec<Adjustment>,
}

impl Builder {
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Offers the models through these providers instead of one called `alpha`.
    pub fn providers(mut self, names: &[&str]) -> Self {
        self.providers = names.iter().map(|name| ((*name).to_owned(), ProviderKind::OpenAi, None)).collect();
        self
    }

    /// Offers the models through these providers, in this order of preference: by name, kind and, when it is not a
    /// scripted one, its URL.
    pub fn targets(mut self, targets: Vec<(&str, ProviderKind, Option<String>)>) -> Self {
        let first = targets[0].0.to_owned();
        self.providers =
            (targets.into_iter()).map(|(name, kind, url)| (name.to_owned(), kind, url)).collect();
        self.adjust(move |settings| {
            // Weight 0 ranks last.
            for model in settings.declared.models.iter_mut().filter(|model| model.provider != first) {
                model.weight = 0;
            }
        })
    }

    /// The only provider is at this URL, whatever server that is.
    pub fn upstream(mut self, base_url: String) -> Self {
        self.providers = vec![("alpha".to_owned(), ProviderKind::OpenAi, Some(base_url))];
        self
    }

    pub fn key(mut self, key: &str, comment: &str, rpm: Option<u32>, tpm: Option<u32>) -> Self {
        self.keys.push(declared_key(key, Some(comment), rpm, tpm));
        self
    }

    pub fn hooks(mut self, hooks: Hooks) -> Self {
        self.hooks = hooks;
        self
    }

    /// Changes the settings last.
    pub fn adjust(mut self, adjust: impl FnOnce(&mut Settings) + 'static) -> Self {
        self.adjust.push(Box::new(adjust));
        self
    }

    pub async fn spawn(self) -> TestApp {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database_url = database::fresh(folder.path()).await;
        let data_dir = folder.path().join("data").display().to_string();
        let mut pairs = vec![
            ("PORT", "0"),
            ("LISTEN_ADDR", "127.0.0.1"),
            ("DATABASE_URL", &database_url),
            ("DATA_DIR", &data_dir),
            ("ENCRYPTION_KEY", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
            ("SHUTDOWN_GRACE", "10s"),
        ];
        pairs.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut settings = Settings::with(&pairs).expect("valid settings");

        let mut providers = Vec::new();
        for (name, kind, elsewhere) in self.providers {
            let base_url = match elsewhere {
                Some(base_url) => base_url,
                None => {
                    let provider = ScriptedProvider::spawn().await.expect("a scripted provider");
                    let base_url =
                        if kind == ProviderKind::Azure { provider.root_url() } else { provider.base_url() };
                    providers.push(provider);
                    base_url
                }
            };
            let models = &mut settings.declared.models;
            models.push(declared_model(MODEL, &name, ModelType::Chat));
            if kind != ProviderKind::Anthropic {
                models.push(declared_model(EMBEDDING_MODEL, &name, ModelType::Embedding));
            }
            settings.declared.providers.push(declared_provider(&name, kind, base_url));
        }
        let key = "sk-test-0123456789abcdef".to_owned();
        settings.declared.api_keys.push(declared_key(&key, Some("tests"), None, None));
        settings.declared.api_keys.extend(self.keys);
        for adjust in self.adjust {
            adjust(&mut settings);
        }

        let app = RunningApp::start(&settings, self.hooks).await.expect("the gateway starts");
        let base = format!("http://{}", app.address());
        TestApp {
            app: Some(app),
            providers,
            key,
            http: reqwest::Client::new(),
            base,
            settings,
            _folder: folder,
        }
    }
}

impl TestApp {
    /// The usual app: one provider, `alpha`.
    pub async fn spawn() -> Self {
        Self::builder().spawn().await
    }

    pub fn builder() -> Builder {
        Builder {
            settings: Vec::new(),
            providers: vec![("alpha".to_owned(), ProviderKind::OpenAi, None)],
            keys: Vec::new(),
            hooks: Hooks::default(),
            adjust: Vec::new(),
        }
    }

    /// The first provider.
    pub fn provider(&self) -> &ScriptedProvider {
        &self.providers[0]
    }

    pub fn running(&self) -> &RunningApp {
        self.app.as_ref().expect("running")
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub fn chat(&self, model: &str) -> Call<'_> {
        Call::chat(self, model)
    }

    pub fn embeddings(&self, model: &str) -> Call<'_> {
        Call::embeddings(self, model)
    }

    /// A completion request in any format.
    pub fn ask(&self, format: ApiFormat, model: &str) -> Call<'_> {
        Call::completion(self, format, model)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(self.url(path)).bearer_auth(&self.key).send().await.expect("an answer")
    }

    pub async fn scrape(&self) -> Scrape {
        let response = self.http.get(self.url("/metrics")).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        Scrape::new(response.text().await.expect("text"))
    }

    /// Scrapes until `condition` holds.
    pub async fn eventually(&self, what: &str, condition: impl Fn(&Scrape) -> bool) -> Scrape {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let scrape = self.scrape().await;
            if condition(&scrape) {
                return scrape;
            }
            assert!(Instant::now() < deadline, "never came true: {what}\n{}", scrape.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until nothing is in flight and every finished request is in the log.
    pub async fn settled(&self) -> Scrape {
        let quiet = |scrape: &Scrape| {
            scrape.metric("nexusgate_requests_in_flight").is(0.0)
                && counted(scrape) == scrape.metric("nexusgate_request_log_rows_total").value()
        };
        // A scrape reads one series after the other, so a single one may miss changes meanwhile.
        let first = self.eventually("settled", quiet).await;
        self.eventually("still settled", |scrape| quiet(scrape) && counted(scrape) >= counted(&first)).await
    }

    pub async fn log_rows(&self) -> Vec<completions::Model> {
        completions::Entity::find().all(self.running().database()).await.expect("rows")
    }

    pub async fn embedding_rows(&self) -> Vec<embeddings::Model> {
        embeddings::Entity::find().all(self.running().database()).await.expect("rows")
    }

    /// Drains, stops, and restarts on the same database, at another port.
    pub async fn restart(&mut self) {
        assert!(self.app.take().expect("running").shutdown().await, "everything was finished and written");
        let app = RunningApp::start(&self.settings, Hooks::default()).await.expect("the gateway starts");
        self.base = format!("http://{}", app.address());
        self.app = Some(app);
    }

    /// Drains and stops; returns whether everything was finished and written.
    pub async fn shutdown(mut self) -> bool {
        self.app.take().expect("running").shutdown().await
    }
}

fn counted(scrape: &Scrape) -> f64 {
    scrape.metric("nexusgate_completions_total").value() + scrape.metric("nexusgate_embeddings_total").value()
}

fn declared_provider(name: &str, kind: ProviderKind, base_url: String) -> DeclaredProvider {
    DeclaredProvider {
        name: name.to_owned(),
        kind,
        base_url,
        api_key: Some(Secret::new("upstream-secret")),
        api_version: None,
        comment: None,
        proxy_url: None,
        proxy_enabled: true,
        ask_stream_usage: true,
        max_concurrency: None,
    }
}

fn declared_model(name: &str, provider: &str, model_type: ModelType) -> DeclaredModel {
    DeclaredModel {
        name: name.to_owned(),
        provider: provider.to_owned(),
        remote_id: Some(format!("remote-{name}")),
        model_type,
        input_price: Some(2.0),
        output_price: Some(8.0),
        cached_input_price: None,
        cache_write_price: None,
        weight: 1,
        context_length: None,
        slo_ttft_ms: None,
        slo_tpot_ms: None,
        comment: None,
    }
}

pub fn declared_key(key: &str, comment: Option<&str>, rpm: Option<u32>, tpm: Option<u32>) -> DeclaredKey {
    DeclaredKey {
        key: Secret::new(key),
        comment: comment.map(str::to_owned),
        rpm_limit: rpm,
        tpm_limit: tpm,
        expires_at: None,
        allowed_models: None,
    }
}
