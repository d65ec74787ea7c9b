//! A Redis server of the test's own.

use std::process::Command;
use std::time::Instant;

use redis::{Client, Connection, ErrorKind, FromRedisValue, ServerErrorKind};
use tempfile::TempDir;

use super::process::{Process, free_port};
use super::{PATIENCE, PAUSE};

/// The key of rejection counts, before the instance's name.
pub const REJECTIONS: &str = "nexusgate:metrics:rate_limit_rejections";

/// A `redis-server` on a free port, in a folder of its own, without persistence unless it saves explicitly.
pub struct RedisServer {
    process: Option<Process>,
    pub port: u16,
    folder: TempDir,
}

impl RedisServer {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self { process: None, port: free_port(), folder };
        server.resume_from_disk();
        server
    }

    /// Starts it; it loads its saved data.
    pub fn resume_from_disk(&mut self) {
        let start = Instant::now();
        loop {
            let mut command = Command::new("redis-server");
            command
                .args([
                    "--port",
                    &self.port.to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .arg("--dir")
                .arg(self.folder.path());
            let mut process = Process::spawn(&mut command, &self.folder.path().join("log"));
            while process.is_running() {
                if self.answers() {
                    self.process = Some(process);
                    return;
                }
                assert!(start.elapsed() < PATIENCE, "redis-server does not answer:\n{}", process.output());
                std::thread::sleep(PAUSE);
            }
            // The port is taken: by the server that has just stopped, or, at the first start, by another process.
            assert!(start.elapsed() < PATIENCE, "redis-server does not start:\n{}", process.output());
            std::thread::sleep(PAUSE);
        }
    }

    fn answers(&self) -> bool {
        let client = Client::open(self.url()).expect("a URL");
        let connection = client.get_connection_with_timeout(std::time::Duration::from_secs(1));
        connection.is_ok_and(|mut connection| redis::cmd("PING").exec(&mut connection).is_ok())
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn connection(&self) -> Connection {
        let client = Client::open(self.url()).expect("a URL");
        let connection = client.get_connection_with_timeout(PATIENCE).expect("a connection");
        connection.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        connection
    }

    /// Runs one command, given as words; waits while the server is still loading.
    pub fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        let start = Instant::now();
        loop {
            match command.query(&mut self.connection()) {
                Ok(answer) => return answer,
                Err(error) => {
                    let loading = error.kind() == ErrorKind::Server(ServerErrorKind::BusyLoading);
                    assert!(loading && start.elapsed() < PATIENCE, "{words:?}: {error}");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// The server's clock, in seconds.
    pub fn clock(&self) -> f64 {
        let (seconds, micros): (f64, f64) = self.run(&["TIME"]);
        seconds + micros / 1e6
    }

    /// The sum of an instance's stored rejections.
    pub fn stored_rejections(&self, instance: &str) -> u64 {
        self.run::<Vec<u64>>(&["HVALS", &format!("{REJECTIONS}:{instance}")]).iter().sum()
    }

    /// SIGSTOP: connections stay open, and nothing is answered.
    pub fn pause(&self) {
        self.process.as_ref().expect("it runs").signal("STOP");
    }

    pub fn resume(&self) {
        self.process.as_ref().expect("it runs").signal("CONT");
    }

    /// Stops it after it has saved its data.
    pub fn save_and_stop(&mut self) {
        let () = self.run(&["SAVE"]);
        self.kill();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGKILL, and a start with empty memory.
    pub fn restart_empty(&mut self) {
        self.kill();
        // The file of an earlier save.
        let _ = std::fs::remove_file(self.folder.path().join("dump.rdb"));
        self.resume_from_disk();
    }
}
