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

/// What is known of a setting before it has a value.
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
            /// Builds the settings from whatever `lookup` finds; what it does not find has its default.
            fn build(lookup: impl Fn(&SettingInfo) -> Option<String>, declared: Declared) -> Result<Self, ConfigError> {
                let mut infos = ALL.iter();
                Ok(Self {
                    $($field: parse::<$type>(infos.next(), &lookup)?,)+
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
    /// Where things are kept: `sqlite://PATH` or `postgres://…`.
    database_url: Secret = "DATABASE_URL", "sqlite://nexusgate.db";
    /// Connections to the database at one time.
    database_max_connections: Connections = "DATABASE_MAX_CONNECTIONS", "10";
    /// Directory of the request log's journal; made when it is missing.
    data_dir: PathBuf = "DATA_DIR", "nexusgate-data";
    /// Size of the journal past which payloads are dropped, then rows.
    journal_max_size: ByteSize = "JOURNAL_MAX_SIZE", "1GiB";
    /// Redis for limits shared by replicas and counts that outlive the process; without it both are in memory.
    redis_url: Option<Secret> = "REDIS_URL";
    /// How long one Redis answer may take before the limits fall back to memory.
    redis_timeout: Span = "REDIS_TIMEOUT", "50ms";
    /// Bearer secret of the admin API; without it a random one is made and printed once.
    admin_super_secret: Option<Secret> = "ADMIN_SUPER_SECRET";
    /// Key for the secrets in the database: 32 bytes in base64 or hex. PostgreSQL needs it; with SQLite a key file is made when it is missing.
    encryption_key: Option<Secret> = "ENCRYPTION_KEY";
    /// Origins that browsers may call from, separated by commas; `*` for all.
    allowed_origins: Origins = "ALLOWED_ORIGINS", "";
    /// Commit the binary was built from, for `nexusgate_info` and `/api/admin/rev`.
    commit_sha: Option<String> = "COMMIT_SHA";
    /// Name of this instance among its replicas; the host name when not set.
    instance_id: Option<String> = "INSTANCE_ID";
    /// Serve `/metrics` on this address and port alone, instead of the main listener.
    metrics_addr: Option<SocketAddr> = "METRICS_ADDR";
    /// Bearer token that `/metrics` asks for; without it anybody who reaches it may read it.
    metrics_bearer_token: Option<Secret> = "METRICS_BEARER_TOKEN";
    /// Series past this number are counted under `_overflow`.
    metrics_max_series: usize = "METRICS_MAX_SERIES", "50000";
    /// Upper bounds of the latency histograms in seconds, ascending, separated by commas; the defaults stand in docs/METRICS.md.
    metrics_latency_buckets: Option<LatencyBuckets> = "METRICS_LATENCY_BUCKETS";
    /// How often the gauges of keys, providers and models are refreshed.
    gauge_refresh_interval: Span = "GAUGE_REFRESH_INTERVAL", "15s";
    /// How often keys and routes are read again from the database.
    snapshot_refresh_interval: Span = "SNAPSHOT_REFRESH_INTERVAL", "30s";
    /// How long a provider may take: to the first bytes of a stream, to the end of any other answer.
    upstream_timeout: Span = "UPSTREAM_TIMEOUT", "10m";
    /// How long a connection to a provider may take: name, TCP, a proxy's tunnel and TLS together.
    upstream_connect_timeout: Span = "UPSTREAM_CONNECT_TIMEOUT", "5s";
    /// PEM file of authorities that may vouch for providers besides Mozilla's, which are built in.
    upstream_ca_file: Option<PathBuf> = "UPSTREAM_CA_FILE";
    /// How long a provider may stay silent in the middle of a stream.
    stream_idle_timeout: Span = "STREAM_IDLE_TIMEOUT", "2m";
    /// How long a client may pause while it sends a request's body, or take nothing of its answer.
    client_timeout: Span = "CLIENT_TIMEOUT", "60s";
    /// How long to go on reading an answer whose client has left, to learn its usage; `0s` cancels at once.
    drain_on_disconnect: Duration = "DRAIN_ON_DISCONNECT", "30s";
    /// How long running requests may take to finish after SIGTERM.
    shutdown_grace: Duration = "SHUTDOWN_GRACE", "30s";
    /// Largest request body.
    max_body_size: ByteSize = "MAX_BODY_SIZE", "32MiB";
    /// Inference requests and token counts at one time; more are answered 503.
    max_in_flight: usize = "MAX_IN_FLIGHT", "10000";
    /// How long the listener stays open after SIGTERM, with `/readyz` at 503, so that load balancers notice first.
    shutdown_delay: Duration = "SHUTDOWN_DELAY", "0s";
    /// How many minutes' worth of a key's limit may be used at once.
    rate_limit_burst: f64 = "RATE_LIMIT_BURST", "3";
    /// What the request log keeps of requests and answers: `full` (the bodies too, as they came) or `metadata`. Only what is kept whole, up to 4 MiB, can be given again for an `X-NexusGate-ReqId`.
    log_payloads: LogPayloads = "LOG_PAYLOADS", "full";
    /// Age at which rows of the request log are deleted; `0s` keeps them for ever.
    request_log_retention: Duration = "REQUEST_LOG_RETENTION", "30d";
    /// Log lines for people (`text`) or for collectors (`json`).
    log_format: LogFormat = "LOG_FORMAT", "text";
}

fn parse<T: Setting>(
    info: Option<&SettingInfo>,
    lookup: impl Fn(&SettingInfo) -> Option<String>,
) -> Result<T, ConfigError> {
    // The table and the fields come from one list, so there is always a next one.
    let Some(info) = info else { return T::missing().ok_or_else(|| wrong("?", "", T::TAKES, false)) };
    // What a file of a secret holds often ends with a line feed, and may be nothing else.
    let given = lookup(info).filter(|text| !text.trim().is_empty() || T::EMPTY_IS_A_VALUE);
    match given.as_deref().or(info.default) {
        Some(text) => T::parse(text.trim()).ok_or_else(|| wrong(info.name, text, T::TAKES, T::SECRET)),
        None => T::missing().ok_or_else(|| wrong(info.name, "", T::TAKES, T::SECRET)),
    }
}

fn wrong(name: &str, value: &str, takes: &str, secret: bool) -> ConfigError {
    let value = if secret { "***".to_owned() } else { format!("{value:?}") };
    ConfigError::Value { name: name.to_owned(), value, takes: format!("expected {takes}") }
}

impl Settings {
    /// Reads the file, if any, and lays `overrides` (environment and flags, by environment name) over it.
    ///
    /// # Errors
    /// The first setting that is wrong, or the file that cannot be read.
    pub fn load(
        file: Option<&std::path::Path>,
        overrides: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let file = file.map(file::ConfigFile::read).transpose()?.unwrap_or_default();
        Self::build(|info| overrides(info.name).or_else(|| file.get(&info.file_key())), file.declared.clone())
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

    /// The settings a command line asks for; flags win over the environment, both over the file.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_matches(matches: &ArgMatches) -> Result<Self, ConfigError> {
        let file = matches.get_one::<PathBuf>("config").cloned();
        Self::load(file.as_deref(), |name| matches.get_one::<String>(name).cloned())
    }

    /// Adds a flag for each setting, and `--config`.
    pub fn add_flags(command: clap::Command) -> clap::Command {
        let config = clap::Arg::new("config")
            .long("config")
            .env("NEXUSGATE_CONFIG")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Settings, providers, models and keys in TOML");
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
    fn flags_are_kebab_case() {
        assert_eq!(ALL[0].flag(), "port");
        assert!(ALL.iter().any(|info| info.flag() == "upstream-connect-timeout"));
    }
}
