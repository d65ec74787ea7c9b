//! A PostgreSQL server of the test's own, which it may stop and kill.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use tempfile::TempDir;

use super::eventually;
use super::process::{Process, family, free_port, signal};

/// A server on a free port, with its data in a temporary folder.
pub struct PostgresServer {
    process: Option<Process>,
    port: u16,
    programs: PathBuf,
    folder: TempDir,
}

impl PostgresServer {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self { process: None, port: free_port(), programs: programs(), folder };
        // PostgreSQL refuses to run as root.
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(server.folder.path()));
        }
        let mut initdb = server.command("initdb");
        run(initdb.args([
            "-D",
            &server.data(),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]));
        server.resume_from_disk().await;
        server
    }

    /// A command that runs as a user PostgreSQL accepts.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path());
        command
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    /// Starts it on its data on disk, after a crash too.
    pub async fn resume_from_disk(&mut self) {
        let mut command = self.command("postgres");
        command.args(["-D", &self.data(), "-p", &self.port.to_string()]).args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
        ]);
        self.process = Some(Process::spawn(&mut command, &self.folder.path().join("log")));
        let process = self.process.as_mut().expect("just started");
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        eventually("PostgreSQL answers", async || {
            assert!(process.is_running(), "PostgreSQL does not start:\n{}", process.output());
            let mut options = ConnectOptions::new(&url);
            options.connect_timeout(Duration::from_secs(1)).sqlx_logging(false);
            match Database::connect(options).await {
                Ok(database) => database.execute_unprepared("SELECT 1").await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }

    /// The URL of its one database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn family(&self) -> Vec<u32> {
        family(self.process.as_ref().expect("it runs").id())
    }

    /// SIGSTOP to all of its processes: connections stay open, and nothing is answered. Returns the processes to wake.
    pub fn pause(&self) -> Vec<u32> {
        let family = self.family();
        for id in &family {
            signal(*id, "STOP");
        }
        family
    }

    pub fn resume(&self, family: &[u32]) {
        for id in family.iter().rev() {
            signal(*id, "CONT");
        }
    }

    /// SIGKILL to all of its processes.
    pub fn kill(&mut self) {
        // The parent first, so that it starts no others.
        for id in self.family() {
            signal(id, "KILL");
        }
        self.process.take().expect("it runs").kill();
        // The next start fails while children of the old server are still exiting.
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("PG_BIN") {
        return folder.into();
    }
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed (Debian: postgresql)");
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .expect("a version of PostgreSQL");
    format!("/usr/lib/postgresql/{newest}/bin").into()
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").expect("Linux").uid() == 0
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
