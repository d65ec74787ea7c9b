//! Real Redis servers, and a proxy that makes them slow.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{Client, Connection, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::task::AbortOnDropHandle;

use crate::domain::key::Secret;

/// A `redis-server` on a free port, in a folder of its own, without persistence; stopped when dropped.
pub(super) struct RedisServer {
    child: Option<Child>,
    arguments: Vec<String>,
    pub(super) port: u16,
    folder: TempDir,
}

impl RedisServer {
    pub(super) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further command-line arguments.
    pub(super) fn start_with(arguments: &[&str]) -> Self {
        for _ in 0..5 {
            let mut server = Self {
                child: None,
                arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
                port: free_port(),
                folder: tempfile::tempdir().unwrap(),
            };
            if server.spawn() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// Starts the process; false if it exited at once, because the port was taken.
    fn spawn(&mut self) -> bool {
        let port = self.port.to_string();
        let folder = self.folder.path().to_str().unwrap();
        let mut child = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--dir", folder])
            .args(["--save", "", "--appendonly", "no"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed (Debian: redis-server)");
        let start = Instant::now();
        loop {
            if self.answers() && child.try_wait().unwrap().is_none() {
                self.child = Some(child);
                return true;
            }
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(start.elapsed() < super::PATIENCE, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn url(&self) -> Secret {
        Secret::new(format!("redis://127.0.0.1:{}", self.port))
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether it accepts commands; it does not while loading its log.
    fn answers(&self) -> bool {
        let client = Client::open(self.url().expose()).unwrap();
        let connection = client.get_connection_with_timeout(Duration::from_secs(1));
        connection.is_ok_and(|mut connection| redis::cmd("PING").exec(&mut connection).is_ok())
    }

    fn connection(&self) -> RedisResult<Connection> {
        let connection = Client::open(self.url().expose())?.get_connection_with_timeout(super::PATIENCE)?;
        connection.set_read_timeout(Some(super::PATIENCE))?;
        Ok(connection)
    }

    /// Runs one command, given as words. Waits while the server is still loading, and retries when a sentinel that
    /// promotes it has disconnected its clients, even those still connecting.
    pub(super) fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        let start = Instant::now();
        loop {
            match self.connection().and_then(|mut connection| command.query(&mut connection)) {
                Ok(answer) => return answer,
                Err(error) => {
                    let loading = error.kind() == ErrorKind::Server(ServerErrorKind::BusyLoading);
                    let again = loading || error.is_connection_dropped();
                    assert!(again && start.elapsed() < super::PATIENCE, "{words:?}: {error}");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// How often a command was called, by clients and by scripts.
    pub(super) fn calls(&self, command: &str) -> u64 {
        let stats: String = self.run(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("the server runs").id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// SIGSTOP: connections stay open, and nothing is answered.
    pub(super) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(super) fn resume(&self) {
        self.signal("-CONT");
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts again on the same port, with nothing in memory.
    pub(super) fn restart_empty(&mut self) {
        self.kill();
        let start = Instant::now();
        while !self.spawn() {
            assert!(start.elapsed() < super::PATIENCE, "the port stays taken");
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that was free just now.
pub(super) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Forwards bytes with a configurable delay.
pub(super) struct SlowProxy {
    pub(super) port: u16,
    delay_ms: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl SlowProxy {
    pub(super) async fn before(server: &RedisServer) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (delay_ms, target) = (Arc::new(AtomicU64::new(0)), server.port);
        let delay = Arc::clone(&delay_ms);
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let Ok(far) = tokio::net::TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                tasks.spawn(copy(near_read, far_write, Arc::clone(&delay)));
                tasks.spawn(copy(far_read, near_write, Arc::new(AtomicU64::new(0))));
            }
        });
        Self { port, delay_ms, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn url(&self) -> Secret {
        Secret::new(format!("redis://127.0.0.1:{}", self.port))
    }

    /// The delay of every chunk on its way to the server.
    pub(super) fn delay(&self, delay: Duration) {
        self.delay_ms.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay_ms: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
