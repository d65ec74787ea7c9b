//! The Redis target: the forms of `REDIS_URL`, and how to connect to each.
//!
//! | URL | meaning |
//! |---|---|
//! | `redis://[user[:password]@]host[:port][/db]` | one server; `valkey://` and `unix:///path` work too |
//! | `rediss://…` | the same over TLS |
//! | `redis+cluster://…@host:port,host:port` | Redis Cluster; any of its nodes to begin with; `rediss+cluster://` for TLS |
//! | `redis+sentinel://…@host:port,host:port/service[/db]` | the sentinels that know the primary of `service`; `rediss+sentinel://` for TLS |
//!
//! With TLS, `?ca_file=`, `?cert_file=` and `?key_file=` name PEM files: a private authority (instead of the public ones)
//! and a client certificate. Sentinels that ask for credentials of their own take `?sentinel_user=` and
//! `?sentinel_password=`. User, password and query values are percent-encoded, as in any URL. An ACL user needs the keys
//! `~nexusgate:* ~{nexusgate:*` and the channels `&nexusgate:*`.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    Pipeline, RedisError, RedisFuture, TlsCertificates, TlsMode, Value,
};
use url::Url;

use super::InvalidRedisUrl;

/// Time for TCP, TLS and the handshake. Connecting happens in the background, so this may be longer than the timeout of
/// a command; it only bounds the time lost on a dead address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Commands that may wait for the socket. The crate's 50 would make requests queue behind each other in a burst.
const PIPELINE_BUFFER: usize = 4096;

/// How to reach Redis.
#[derive(Debug)]
pub(super) enum Target {
    /// One server.
    Single(Box<Client>),
    /// Redis Cluster. The second client is for subscriptions, which any node serves.
    Cluster(Box<ClusterClient>, Vec<Client>),
    /// The primary that the sentinels name, asked again at every connection.
    Sentinel(Box<Sentinel>),
}

/// How to ask the sentinels.
#[derive(Debug)]
pub(super) struct Sentinel {
    addresses: Vec<ConnectionAddr>,
    service: String,
    redis: ConnectionInfo,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
    certificates: Option<TlsCertificates>,
}

/// A connection that any number of tasks may use at once.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Target {
    /// Reads `REDIS_URL`. Errors do not repeat the URL: it may hold a password.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidRedisUrl> {
        let (scheme, _) = text.split_once("://").ok_or_else(|| InvalidRedisUrl::new("it has no scheme"))?;
        match scheme.split_once('+') {
            Some((base @ ("redis" | "rediss"), "cluster")) => Self::cluster(&Nodes::parse(base, text)?),
            Some((base @ ("redis" | "rediss"), "sentinel")) => Self::sentinel(&Nodes::parse(base, text)?),
            _ => Self::single(text),
        }
    }

    fn single(text: &str) -> Result<Self, InvalidRedisUrl> {
        let url = redis::parse_redis_url(text).ok_or_else(|| {
            InvalidRedisUrl::new(
                "it takes redis://, rediss://, unix://, redis+cluster:// or redis+sentinel:// URLs",
            )
        })?;
        let certificates = certificates(&url)?;
        Ok(Self::Single(Box::new(client(url, certificates).map_err(invalid)?)))
    }

    fn cluster(nodes: &Nodes) -> Result<Self, InvalidRedisUrl> {
        let mut builder = ClusterClient::builder(nodes.urls.iter().cloned())
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(CONNECT_TIMEOUT)
            .tcp_settings(tcp())
            // A redirection or two while slots move; beyond that the breaker decides.
            .retries(3);
        if let Some(certificates) = nodes.certificates.clone() {
            builder = builder.certs(certificates);
        }
        let subscribers = nodes.urls.iter().map(|url| client(url.clone(), nodes.certificates.clone()));
        let subscribers = subscribers.collect::<Result<_, _>>().map_err(invalid)?;
        Ok(Self::Cluster(Box::new(builder.build().map_err(invalid)?), subscribers))
    }

    fn sentinel(nodes: &Nodes) -> Result<Self, InvalidRedisUrl> {
        let mut segments = nodes.first().path_segments().into_iter().flatten();
        let service = segments.next().filter(|name| !name.is_empty()).map(str::to_owned);
        let service =
            service.ok_or_else(|| InvalidRedisUrl::new("a sentinel URL names its service: …/mymaster"))?;
        let db = segments.next().unwrap_or_default().to_owned();
        let bare = |url: &Url, path: &str| {
            let mut url = url.clone();
            url.set_path(path);
            url.into_connection_info().map_err(invalid)
        };
        let addresses = nodes
            .urls
            .iter()
            .map(|url| bare(url, "").map(|info| info.addr().clone()))
            .collect::<Result<_, _>>();
        let query =
            |name: &str| nodes.first().query_pairs().find(|(key, _)| key == name).map(|(_, v)| v.into());
        Ok(Self::Sentinel(Box::new(Sentinel {
            addresses: addresses?,
            service,
            redis: bare(nodes.first(), &db)?,
            sentinel_user: query("sentinel_user"),
            sentinel_password: query("sentinel_password"),
            certificates: nodes.certificates.clone(),
        })))
    }

    /// Whether keys live on several servers, so that a script may only touch keys of one hash tag.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(..))
    }

    /// A fresh connection. The caller bounds the time.
    pub(super) async fn connect(&self) -> Result<Connection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // The link applies a timeout to each command, depending on its purpose.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        match self {
            Self::Single(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
            }
            Self::Cluster(client, _) => client.get_async_connection().await.map(Connection::Cluster),
            Self::Sentinel(sentinel) => {
                let client = sentinel.primary().await?;
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
            }
        }
    }

    /// A fresh connection for subscriptions.
    pub(super) async fn subscriber(&self) -> Result<PubSub, RedisError> {
        match self {
            Self::Single(client) => client.get_async_pubsub().await,
            Self::Sentinel(sentinel) => sentinel.primary().await?.get_async_pubsub().await,
            Self::Cluster(_, clients) => {
                let mut last = None;
                for client in clients {
                    match client.get_async_pubsub().await {
                        Ok(subscriber) => return Ok(subscriber),
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.unwrap_or_else(|| {
                    RedisError::from((redis::ErrorKind::InvalidClientConfig, "no cluster nodes"))
                }))
            }
        }
    }
}

impl Sentinel {
    /// The client for the current primary, according to the first sentinel that answers.
    async fn primary(&self) -> Result<Client, RedisError> {
        self.builder()?.build()?.async_get_client().await
    }

    fn builder(&self) -> Result<SentinelClientBuilder, RedisError> {
        let settings = self.redis.redis_settings();
        let mut builder =
            SentinelClientBuilder::new(self.addresses.clone(), &self.service, SentinelServerType::Master)?
                .set_client_to_redis_db(settings.db())
                .set_client_to_redis_tcp_settings(tcp())
                .set_client_to_sentinel_tcp_settings(tcp());
        if let Some(user) = settings.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = settings.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(user) = &self.sentinel_user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &self.sentinel_password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if matches!(self.redis.addr(), ConnectionAddr::TcpTls { .. }) {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = &self.certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        Ok(builder)
    }
}

/// The nodes of a `redis+…://` URL, each as a URL of its own with the shared credentials, path and query.
struct Nodes {
    urls: Vec<Url>,
    certificates: Option<TlsCertificates>,
}

impl Nodes {
    fn parse(base: &str, text: &str) -> Result<Self, InvalidRedisUrl> {
        let (_, rest) = text.split_once("://").ok_or_else(|| InvalidRedisUrl::new("it has no scheme"))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        // An @ in a password should be percent-encoded; accept one that is not.
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let urls: Vec<Url> = hosts
            .split(',')
            .map(|host| Url::parse(&format!("{base}://{user}{host}{tail}")))
            .collect::<Result<_, _>>()
            .map_err(|error| InvalidRedisUrl::new(error.to_string()))?;
        let first = urls.first().ok_or_else(|| InvalidRedisUrl::new("it names no host"))?;
        let certificates = certificates(first)?;
        Ok(Self { urls, certificates })
    }

    /// `split` always yields at least one.
    fn first(&self) -> &Url {
        &self.urls[0]
    }
}

/// The PEM files that the query names.
fn certificates(url: &Url) -> Result<Option<TlsCertificates>, InvalidRedisUrl> {
    let read = |name: &str| match url.query_pairs().find(|(key, _)| key == name) {
        Some((_, path)) => std::fs::read(path.as_ref())
            .map(Some)
            .map_err(|error| InvalidRedisUrl::new(format!("its {name} {path} cannot be read: {error}"))),
        None => Ok(None),
    };
    let client_tls = match (read("cert_file")?, read("key_file")?) {
        (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
        (None, None) => None,
        _ => return Err(InvalidRedisUrl::new("cert_file and key_file come together")),
    };
    let root_cert = read("ca_file")?;
    let any = client_tls.is_some() || root_cert.is_some();
    Ok(any.then_some(TlsCertificates { client_tls, root_cert }))
}

/// A client for one server.
fn client(url: Url, certificates: Option<TlsCertificates>) -> Result<Client, RedisError> {
    let info = url.into_connection_info()?.set_tcp_settings(tcp());
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

/// How sockets are set up. A command goes out at once: Nagle's algorithm, which the crate leaves on, would hold back
/// the next one of a busy connection until Redis has acknowledged the last, for 40 ms at worst.
fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn invalid(error: RedisError) -> InvalidRedisUrl {
    InvalidRedisUrl::new(error.to_string())
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart() {
        let single = |text: &str| matches!(Target::parse(text), Ok(Target::Single(_)));
        assert!(single("redis://127.0.0.1:6379/2"));
        assert!(single("rediss://user:p%40ss@redis.example"));
        assert!(single("unix:///run/redis.sock"));
        let Ok(Target::Cluster(_, subscribers)) = Target::parse("redis+cluster://:pw@a:7000,b:7001") else {
            panic!("not a cluster");
        };
        assert_eq!(subscribers.len(), 2);
        assert_eq!(subscribers[1].get_connection_info().redis_settings().password(), Some("pw"));
        let url = "rediss+sentinel://u:p@s1:26379,s2/mymaster/3?sentinel_password=x%26y";
        let Ok(Target::Sentinel(sentinel)) = Target::parse(url) else {
            panic!("not a sentinel");
        };
        assert_eq!(sentinel.service, "mymaster");
        assert_eq!(sentinel.redis.redis_settings().db(), 3);
        assert_eq!(sentinel.sentinel_password.as_deref(), Some("x&y"));
        assert_eq!(sentinel.addresses.len(), 2);
    }

    /// The settings of a cluster or a sentinel client can only be seen in its `Debug`.
    #[test]
    fn no_command_waits_for_the_acknowledgement_of_another() {
        let at_once = |client: &Client| client.get_connection_info().tcp_settings().nodelay();
        for url in ["redis://127.0.0.1", "rediss://127.0.0.1"] {
            let Ok(Target::Single(client)) = Target::parse(url) else { panic!("not a server") };
            assert!(at_once(&client), "{url}");
        }
        let Ok(Target::Cluster(client, subscribers)) = Target::parse("redis+cluster://a,b") else {
            panic!("not a cluster");
        };
        assert!(subscribers.iter().all(at_once));
        assert!(format!("{client:?}").contains("nodelay: true"));
        let Ok(Target::Sentinel(sentinel)) = Target::parse("redis+sentinel://s/mymaster") else {
            panic!("not a sentinel");
        };
        // To the sentinels, and to the primary.
        assert_eq!(format!("{:?}", sentinel.builder()).matches("nodelay: true").count(), 2);
    }

    #[test]
    fn wrong_urls_are_refused_without_repeating_the_password() {
        for text in [
            "localhost:6379",
            "http://user:secret@localhost",
            "redis://user:secret@localhost/notanumber",
            "redis+sentinel://user:secret@localhost",
            "rediss://user:secret@localhost?ca_file=/nowhere",
            "rediss://user:secret@localhost?cert_file=/dev/null",
            "redis+cluster://user:secret@",
        ] {
            let error = Target::parse(text).err().unwrap_or_else(|| panic!("{text} was taken")).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
