//! Every kind of URL, against a matching server.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::server::{RedisServer, free_port};
use super::{eventually, limits};
use crate::domain::key::Secret;
use crate::domain::label::{LabelValue, LimitType, LogTable};
use crate::limit::{Burst, Coordination, LimitServices, Limiter, Lock, Observer, RedisLink, Settings};

/// Checks that every Redis operation works with this URL.
async fn works_with(url: String) -> LimitServices {
    let settings = Settings {
        burst: Burst::default(),
        redis_url: Some(Secret::new(url)),
        redis_timeout: Duration::from_secs(2),
        instance_id: "a".into(),
    };
    let services = LimitServices::start(&settings, Observer::default()).await.unwrap();
    let Limiter::Redis(limiter) = &services.limiter else { panic!("not in Redis") };
    eventually("Redis decides", async || {
        let before = limiter.usage(1, limits(100, 1000)).await.rpm.unwrap().current;
        limiter.admit(1, limits(100, 1000)).await;
        let coordination = services.coordination.as_ref().unwrap();
        matches!(
            coordination.lock(LogTable::Completions, 1, &uuid::Uuid::now_v7().to_string()).await,
            Lock::Held(_)
        ) && limiter.usage(1, limits(100, 1000)).await.rpm.unwrap().current > before
    })
    .await;
    limiter.charge(1, limits(100, 1000), 10);
    services.rejections.rejected(LimitType::Rpm, &LabelValue::new("k"));
    services.flush().await;
    assert!(limiter.usage(1, limits(100, 1000)).await.tpm.unwrap().current > 0);
    services
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acl_user_and_database() {
    let rights = ["~nexusgate:*", "~{nexusgate:*", "&nexusgate:*", "+@all"];
    let server = RedisServer::start_with(&[&["--user", "gate", "on", ">p@ss:word"], &rights[..]].concat());
    let services = works_with(format!("redis://gate:p%40ss%3Aword@127.0.0.1:{}/3", server.port)).await;
    assert!(server.run::<Vec<String>>(&["KEYS", "*"]).is_empty(), "nothing in database 0");
    drop(services);
    assert!(!connects(format!("redis://gate:wrong@127.0.0.1:{}", server.port)).await);
}

/// Whether a link with this URL comes up.
async fn connects(url: String) -> bool {
    RedisLink::start(&Secret::new(url), Duration::from_secs(2), Observer::default()).await.unwrap().is_up()
}

/// An unknown authority, and its certificate for `localhost`: paths of CA, certificate and key.
fn private_authority(folder: &Path) -> [String; 3] {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_cert = authority.self_signed(&key).unwrap();
    let issuer = Issuer::new(authority, key);
    let server_key = KeyPair::generate().unwrap();
    let server =
        CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&server_key, &issuer).unwrap();
    [("ca.pem", authority_cert.pem()), ("cert.pem", server.pem()), ("key.pem", server_key.serialize_pem())]
        .map(|(name, pem)| {
            let path = folder.join(name);
            std::fs::write(&path, pem).unwrap();
            path.to_str().unwrap().to_owned()
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_private_authority() {
    let folder = tempfile::tempdir().unwrap();
    let [authority, cert, key] = private_authority(folder.path());
    let tls_port = free_port();
    let _server = RedisServer::start_with(&[
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &authority,
        "--tls-auth-clients",
        "no",
    ]);
    drop(works_with(format!("rediss://localhost:{tls_port}/?ca_file={authority}")).await);
    assert!(
        !connects(format!("rediss://localhost:{tls_port}/")).await,
        "the public authorities do not vouch for it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster() {
    let server = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"]);
    let () = server.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    eventually("the cluster is up", async || {
        server.run::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
    })
    .await;
    let url = format!("redis+cluster://127.0.0.1:{0},127.0.0.1:{0}", server.port);
    let services = works_with(url.clone()).await;
    assert_eq!(server.run::<u64>(&["HGET", "nexusgate:metrics:rate_limit_rejections:a", "rpm:k"]), 1);
    let link =
        RedisLink::start(&Secret::new(url), Duration::from_secs(2), Observer::default()).await.unwrap();
    let (sender, mut heard) = tokio::sync::watch::channel(0);
    let _subscription =
        Coordination::new(link).on_announcement(move || sender.send_modify(|count: &mut i32| *count += 1));
    heard.wait_for(|count| *count == 1).await.unwrap();
    assert!(services.coordination.as_ref().unwrap().announce().await);
    tokio::time::timeout(super::PATIENCE, heard.wait_for(|count| *count == 2)).await.unwrap().unwrap();
}

/// `redis-server --sentinel`, stopped when dropped.
struct SentinelServer {
    child: Child,
    port: u16,
}

impl SentinelServer {
    fn start(primary: &RedisServer) -> Self {
        let port = free_port();
        let file = primary.folder().join("sentinel.conf");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n",
            primary.port
        );
        std::fs::write(&file, settings).unwrap();
        let child = Command::new("redis-server")
            .args([file.to_str().unwrap(), "--sentinel"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port }
    }
}

impl Drop for SentinelServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_finds_the_new_primary_after_a_failover() {
    let mut primary = RedisServer::start();
    let replica = RedisServer::start_with(&["--replicaof", &format!("127.0.0.1 {}", primary.port)]);
    eventually("the replica follows", async || {
        replica.run::<String>(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    let sentinel = SentinelServer::start(&primary);
    let url = format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{}/mymaster", sentinel.port);
    let services = works_with(url).await;
    // The sentinel learns of the replica from the primary, which it asks every ten seconds.
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", sentinel.port)).unwrap();
    let mut connection = client.get_connection().unwrap();
    eventually("the sentinel knows the replica", async || {
        let known: Vec<redis::Value> =
            redis::cmd("SENTINEL").arg("replicas").arg("mymaster").query(&mut connection).unwrap();
        !known.is_empty()
    })
    .await;
    primary.kill();
    eventually("the replica is the primary", async || {
        replica.run::<String>(&["INFO", "replication"]).contains("role:master")
    })
    .await;
    let Limiter::Redis(limiter) = &services.limiter else { panic!("not in Redis") };
    eventually("the new primary decides", async || {
        limiter.admit(77, limits(100, None)).await;
        replica.run::<u64>(&["EXISTS", "nexusgate:limit:{77}:rpm"]) == 1
    })
    .await;
}
