//! Every setting: defaults ← file ← environment ← flags, validated at load.
//!
//! A setting is declared once, below: the doc comment is its help text, the type says what it takes. Its name in the
//! environment is given; in `nexusgate.toml` it is the same in lower case, as a flag in kebab case. A wrong value ends in
//! one line that names the setting, the value and what it takes.

mod declared;
pub mod docs;
mod file;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;

pub use declared::{Declared, DeclaredKey, DeclaredModel, DeclaredProvider};
pub use value::{ByteSize, Connections, LatencyBuckets, LogFormat, LogPayloads, Origins, Setting, Span};

use crate::domain::key::Secret;

/// A setting that cannot be used. Displays as one line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("{name}={value}: {takes}")]
    Value { name: String, value: String, takes: String },
    #[error("{path}: {message}")]
    File { path: String, message: String },
}

/// A setting's declaration.
#[derive(Debug, Clone, Copy)]
pub struct SettingInfo {
    /// The name in the environment.
    pub name: &'static str,
    pub default: Option<&'static str>,
    pub takes: &'static str,
    /// Its value must not be printed.
    pub secret: bool,
    help: &'static str,
}

impl SettingInfo {
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    /// The name in `nexusgate.toml`.
    pub fn file_key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// The name of the flag, without the dashes.
    pub fn flag(&self) -> String {
        self.file_key().replace('_', "-")
    }
}

macro_rules! settings {
    ($(
        $(#[doc = $help:literal])+
        $field:ident: $type:ty = $name:literal $(, $default:literal)?;
    )+) => {
        /// The settings of one gateway.
        #[derive(Debug, Clone)]
        pub struct Settings {
            $($(#[doc = $help])+ pub $field: $type,)+
            /// Providers, models and keys that the file declares.
            pub declared: Declared,
        }

        /// Every setting, in the order of the docs.
        pub const ALL: &[SettingInfo] = &[$(SettingInfo {
            name: $name,
            default: settings!(@default $($default)?),
            takes: <$type as Setting>::TAKES,
            secret: <$type as Setting>::SECRET,
            help: concat!($($help),+),
        }),+];

        impl Settings {
            /// Builds each setting from the first of `sources` that has a value, else from its default.
            fn build(sources: &[&Source<'_>], declared: Declared) -> Result<Self, ConfigError> {
                let mut infos = ALL.iter();
                Ok(Self {
                    $($field: parse::<$type>(infos.next(), sources)?,)+
                    declared,
                })
            }
        }
    };
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
}

settings! {
    /// TCP port to listen on; 0 takes a free one.
    port: u16 = "PORT", "3000";
    /// IP address to listen on.
    listen_addr: IpAddr = "LISTEN_ADDR", "0.0.0.0";
    /// URL of the database: `sqlite://PATH` or `postgres://…`.
    database_url: Secret = "DATABASE_URL", "sqlite://nexusgate.db";
    /// Maximum number of connections to the database.
    database_max_connections: Connections = "DATABASE_MAX_CONNECTIONS", "10";
    /// Directory of the request log's journal; created when missing.
    data_dir: PathBuf = "DATA_DIR", "nexusgate-data";
    /// Size of the journal past which payloads are dropped, then rows.
    journal_max_size: ByteSize = "JOURNAL_MAX_SIZE", "1GiB";
    /// Redis for limits shared by replicas and counts that outlive the process; without it both are in memory.
    redis_url: Option<Secret> = "REDIS_URL";
    /// How long one Redis answer may take before the limits fall back to memory.
    redis_timeout: Span = "REDIS_TIMEOUT", "50ms";
    /// Bearer secret of the admin API; without it a random one is generated and printed once.
    admin_super_secret: Option<Secret> = "ADMIN_SUPER_SECRET";
    /// Key for the secrets in the database: 32 bytes in base64 or hex. Required with PostgreSQL; without it SQLite uses a key file, created when missing.
    encryption_key: Option<Secret> = "ENCRYPTION_KEY";
    /// Origins that browsers may call from, separated by commas; `*` for all.
    allowed_origins: Origins = "ALLOWED_ORIGINS", "";
    /// Commit the binary was built from, for `nexusgate_info` and `/api/admin/rev`.
    commit_sha: Option<String> = "COMMIT_SHA";
    /// Name of this instance among its replicas; the host name by default.
    instance_id: Option<String> = "INSTANCE_ID";
    /// Serve `/metrics` on this address and port instead of the main listener.
    metrics_addr: Option<SocketAddr> = "METRICS_ADDR";
    /// Bearer token that `/metrics` requires; without it anybody who reaches `/metrics` may read it.
    metrics_bearer_token: Option<Secret> = "METRICS_BEARER_TOKEN";
    /// Maximum number of series; further ones are counted under `_overflow`, or left out if they are gauges.
    metrics_max_series: usize = "METRICS_MAX_SERIES", "50000";
    /// Upper bounds of the latency histograms in seconds, ascending, separated by commas; docs/METRICS.md lists the defaults.
    metrics_latency_buckets: Option<LatencyBuckets> = "METRICS_LATENCY_BUCKETS";
    /// How often the gauges of keys, providers and models are refreshed.
    gauge_refresh_interval: Span = "GAUGE_REFRESH_INTERVAL", "15s";
    /// How often keys and routes are re-read from the database.
    snapshot_refresh_interval: Span = "SNAPSHOT_REFRESH_INTERVAL", "30s";
    /// How long a provider may take to the first event of a stream, or to the end of any other answer.
    upstream_timeout: Span = "UPSTREAM_TIMEOUT", "10m";
    /// How long connecting to a provider may take: DNS, TCP, a proxy's tunnel and TLS together.
    upstream_connect_timeout: Span = "UPSTREAM_CONNECT_TIMEOUT", "5s";
    /// PEM file of certificate authorities to trust for providers, in addition to Mozilla's, which are built in.
    upstream_ca_file: Option<PathBuf> = "UPSTREAM_CA_FILE";
    /// How long a provider may stay silent in the middle of a stream.
    stream_idle_timeout: Span = "STREAM_IDLE_TIMEOUT", "2m";
    /// How long a client may pause while sending a request's body, or while receiving the answer.
    client_timeout: Span = "CLIENT_TIMEOUT", "60s";
    /// How long to go on reading an answer after its client has disconnected, to learn its usage; `0s` cancels at once.
    drain_on_disconnect: Duration = "DRAIN_ON_DISCONNECT", "30s";
    /// How long running requests may take to finish after SIGTERM and `SHUTDOWN_DELAY`.
    shutdown_grace: Duration = "SHUTDOWN_GRACE", "30s";
    /// Maximum size of a request body.
    max_body_size: ByteSize = "MAX_BODY_SIZE", "32MiB";
    /// Maximum number of concurrent inference requests and token counts; further ones are answered 503.
    max_in_flight: usize = "MAX_IN_FLIGHT", "10000";
    /// How long the listener stays open after SIGTERM, with `/readyz` at 503, so that load balancers notice first.
    shutdown_delay: Duration = "SHUTDOWN_DELAY", "0s";
    /// How many minutes' worth of a key's limit may be used at once.
    rate_limit_burst: f64 = "RATE_LIMIT_BURST", "3";
    /// Whether the request log keeps the bodies of requests and answers, unmodified (`full`), or not (`metadata`). Only an answer kept whole, up to 4 MiB, can be replayed for an `X-NexusGate-ReqId`.
    log_payloads: LogPayloads = "LOG_PAYLOADS", "full";
    /// Age at which rows of the request log are deleted; `0s` keeps them forever.
    request_log_retention: Duration = "REQUEST_LOG_RETENTION", "30d";
    /// Log lines for people (`text`) or for collectors (`json`).
    log_format: LogFormat = "LOG_FORMAT", "text";
}

/// A place that may have a value for a setting: the environment and flags, or the file.
type Source<'a> = dyn Fn(&SettingInfo) -> Option<String> + 'a;

fn parse<T: Setting>(info: Option<&SettingInfo>, sources: &[&Source<'_>]) -> Result<T, ConfigError> {
    // The table and the fields come from one list, so there is always a next one.
    let Some(info) = info else { return T::missing().ok_or_else(|| wrong("?", "", T::TAKES, false)) };
    // A variable that is set but empty, as Compose and Helm leave them, counts as unset, so the file's value applies. A
    // secret's file often ends with a line feed.
    let has_value = |text: &String| !text.trim().is_empty();
    let given = sources.iter().find_map(|source| source(info).filter(has_value));
    match given.as_deref().or(info.default) {
        Some(text) => T::parse(text.trim()).ok_or_else(|| wrong(info.name, text, T::TAKES, T::SECRET)),
        None => T::missing().ok_or_else(|| wrong(info.name, "", T::TAKES, T::SECRET)),
    }
}

fn wrong(name: &str, value: &str, takes: &str, secret: bool) -> ConfigError {
    let value = if secret { "***".to_owned() } else { format!("{value:?}") };
    ConfigError::Value { name: name.to_owned(), value, takes: format!("expected {takes}") }
}

/// Lets an environment variable stand for a flag. An empty one, as Compose and Helm leave them, counts as unset.
pub fn variable(flag: clap::Arg, name: &'static str) -> clap::Arg {
    match std::env::var_os(name) {
        Some(value) if value.is_empty() => flag,
        _ => flag.env(name),
    }
}

impl Settings {
    /// Reads the file, if any, and lays `overrides` (environment and flags, by environment name) over it.
    ///
    /// # Errors
    /// The first invalid setting, or an unreadable file.
    pub fn load(
        file: Option<&std::path::Path>,
        overrides: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let file = file.map(file::ConfigFile::read).transpose()?.unwrap_or_default();
        Self::build(
            &[&|info| overrides(info.name), &|info| file.get(&info.file_key())],
            file.declared.clone(),
        )
    }

    /// The defaults, with some settings replaced: for tests and the demo.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn with(pairs: &[(&str, &str)]) -> Result<Self, ConfigError> {
        Self::load(None, |name| {
            pairs.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    /// The settings of a command line; flags win over the environment, both over the file.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_matches(matches: &ArgMatches) -> Result<Self, ConfigError> {
        let file = matches.get_one::<PathBuf>("config").cloned();
        Self::load(file.as_deref(), |name| matches.get_one::<String>(name).cloned())
    }

    /// As [`Settings::from_matches`], without the file.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_matches_alone(matches: &ArgMatches) -> Result<Self, ConfigError> {
        Self::load(None, |name| matches.get_one::<String>(name).cloned())
    }

    /// Adds a flag for each setting, and `--config`.
    pub fn add_flags(command: clap::Command) -> clap::Command {
        let config = clap::Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Settings, providers, models and keys in TOML");
        let config = variable(config, "NEXUSGATE_CONFIG");
        ALL.iter().fold(command.arg(config), |command, info| {
            let help = match info.default {
                Some(default) if !default.is_empty() => format!("{} [default: {default}]", info.help()),
                _ => info.help().to_owned(),
            };
            command.arg(
                clap::Arg::new(info.name)
                    .long(info.flag())
                    .env(info.name)
                    .hide_env_values(info.secret)
                    .value_name("VALUE")
                    .help(help),
            )
        })
    }

    /// The name of this instance among its replicas.
    pub fn instance(&self) -> String {
        self.instance_id.clone().unwrap_or_else(|| gethostname::gethostname().to_string_lossy().into_owned())
    }

    /// The version and, when it is known, the commit.
    pub fn version(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        match &self.commit_sha {
            Some(commit) => format!("{version}+{}", commit.chars().take(12).collect::<String>()),
            None => version.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        let settings = Settings::with(&[]).expect("defaults");
        assert_eq!(settings.port, 3000);
        assert_eq!(settings.max_body_size.bytes(), 32 << 20);
        assert_eq!(settings.drain_on_disconnect, Duration::from_secs(30));
        assert!(settings.redis_url.is_none());
    }

    #[test]
    fn a_wrong_value_is_named_with_what_the_setting_takes() {
        for (name, value, part) in [
            ("PORT", "abc", "PORT=\"abc\": expected a port number"),
            ("GAUGE_REFRESH_INTERVAL", "15", "expected a duration"),
            ("GAUGE_REFRESH_INTERVAL", "0s", "expected a duration"),
            ("UPSTREAM_TIMEOUT", "300000000000y", "100 years"),
            ("SHUTDOWN_GRACE", "101y", "100 years"),
            ("METRICS_LATENCY_BUCKETS", "1,0.5", "ascending"),
            ("METRICS_LATENCY_BUCKETS", "1,inf", "ascending"),
            ("MAX_BODY_SIZE", "lots", "expected a size"),
            ("LOG_PAYLOADS", "some", "`full` or `metadata`"),
            ("METRICS_ADDR", "9090", "address and port"),
            ("ALLOWED_ORIGINS", "https://App.example", "origins like"),
            ("ALLOWED_ORIGINS", "https://app.example:443", "origins like"),
        ] {
            let error = Settings::with(&[(name, value)]).expect_err(name).to_string();
            assert!(error.contains(part) && error.contains(name), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut settings = Settings::with(&[("ADMIN_SUPER_SECRET", "hush")]).expect("valid");
        let provider = r#"{ "name": "p", "type": "openai", "base_url": "https://h/v1", "api_key": "hush",
                            "proxy_url": "http://user:hush@proxy:1" }"#;
        settings.declared.providers.push(serde_json::from_str(provider).expect("a provider"));
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn a_blank_secret_is_none() {
        let settings =
            Settings::with(&[("METRICS_BEARER_TOKEN", "\n"), ("ADMIN_SUPER_SECRET", " ")]).expect("valid");
        assert!(settings.metrics_bearer_token.is_none() && settings.admin_super_secret.is_none());
    }

    #[test]
    fn an_empty_variable_hides_nothing_in_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "port = 4000\nallowed_origins = \"https://a.example\"\n";
        std::fs::write(file.path(), text).expect("written");
        let settings = Settings::load(Some(file.path()), |_| Some(String::new())).expect("valid");
        assert_eq!(settings.port, 4000);
        assert_eq!(settings.allowed_origins, Origins::List(vec!["https://a.example".to_owned()]));
    }

    #[test]
    fn flags_are_kebab_case() {
        assert_eq!(ALL[0].flag(), "port");
        assert!(ALL.iter().any(|info| info.flag() == "upstream-connect-timeout"));
    }
}
