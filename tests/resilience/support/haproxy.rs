//! haproxy in front of the replicas, as users run it.

use std::process::Command;

use tempfile::TempDir;

use super::eventually;
use super::gateway::Replica;
use super::process::{Process, free_port};

/// The header in which haproxy names the server that answered.
pub const SERVED_BY: &str = "x-served-by";

/// A running haproxy that asks `/readyz` of its servers five times a second.
pub struct Haproxy {
    process: Process,
    pub port: u16,
    stats: u16,
    http: reqwest::Client,
    _folder: TempDir,
}

impl Haproxy {
    pub async fn before(replicas: &[Replica]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (port, stats) = (free_port(), free_port());
        let servers: String = (replicas.iter())
            .map(|replica| {
                format!(
                    "    server {} 127.0.0.1:{} check inter 200ms fall 1 rise 1\n",
                    replica.name, replica.port
                )
            })
            .collect();
        let config = format!(
            "\
global
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 2s
    option http-keep-alive
frontend clients
    bind 127.0.0.1:{port}
    default_backend replicas
frontend stats
    bind 127.0.0.1:{stats}
    stats enable
    stats uri /stats
backend replicas
    balance random
    option httpchk GET /readyz
    http-check expect status 200
    option redispatch
    retries 3
    http-response set-header {SERVED_BY} %s
{servers}"
        );
        let path = folder.path().join("haproxy.cfg");
        std::fs::write(&path, config).expect("the settings file");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&path);
        let process = Process::spawn(&mut command, &folder.path().join("log"));
        let mut haproxy = Self { process, port, stats, http: reqwest::Client::new(), _folder: folder };
        haproxy.sees(replicas.len()).await;
        haproxy
    }

    /// Waits until this many servers are up.
    pub async fn sees(&mut self, up: usize) {
        let Self { process, http, stats, .. } = self;
        eventually("haproxy sees the replicas", async || {
            assert!(process.is_running(), "haproxy ended:\n{}", process.output());
            let Ok(response) = http.get(format!("http://127.0.0.1:{stats}/stats;csv")).send().await else {
                return false;
            };
            let table = response.text().await.unwrap_or_default();
            let servers = table
                .lines()
                .filter(|line| line.starts_with("replicas,") && !line.starts_with("replicas,BACKEND"));
            // Before the first check a server is up on trust (`no check` or a bare `UP` without a check's word).
            servers.filter(|line| line.contains(",UP,") && line.contains(",L7OK,")).count() == up
        })
        .await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}
