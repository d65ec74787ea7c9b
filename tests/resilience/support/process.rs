//! Processes that a test starts, signals and stops.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::PATIENCE;

/// A child process, killed when dropped. Its output goes to a file, which a failing test shows.
pub struct Process {
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command`; its output is appended to `output`.
    pub fn spawn(command: &mut Command, output: &Path) -> Self {
        let file = File::options().create(true).append(true).open(output).expect("a file for the output");
        let errors = file.try_clone().expect("the same file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{} is installed: {error}", command.get_program().display()));
        Self { child, output: output.to_owned() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends a signal by name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// SIGKILL, then waits for the end.
    pub fn kill(&mut self) {
        // It may have exited by itself.
        let _ = self.child.kill();
        self.child.wait().expect("a child");
    }

    /// Waits until it has exited.
    pub async fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end:\n{}", self.output());
            tokio::time::sleep(super::PAUSE).await;
        }
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that may have exited meanwhile.
pub fn signal(id: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).stderr(Stdio::null()).status();
}

/// A process and all its descendants, parents first.
pub fn family(id: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .expect("Linux")
        .filter_map(|entry| {
            let child: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
            // The name is in parentheses and may contain anything; the state and the parent follow it.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((child, parent))
        })
        .collect();
    let mut family = vec![id];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    family
}

/// A port that was free just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}
