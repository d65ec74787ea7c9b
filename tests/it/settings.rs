//! The command line: wrong settings stop it with one line, valid ones run it.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::Started;

fn nexusgate(arguments: &[&str], environment: &[(&str, &str)], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nexusgate"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(folder)
        .output()
        .expect("the command runs")
}

/// The one line on stderr.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(text.trim_end().lines().count(), 1, "one line: {text}");
    text
}

#[test]
fn a_wrong_setting_stops_start_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    std::fs::write(path.join("unknown.toml"), "prot = 1").expect("written");
    std::fs::write(path.join("key.toml"), "[[providers]]\nname = \"x\"\ntyp = \"openai\"").expect("written");
    std::fs::write(
        path.join("url.toml"),
        "[[providers]]\nname = \"x\"\ntype = \"openai\"\nbase_url = \"nonsense\"",
    )
    .expect("written");
    std::fs::write(path.join("model.toml"), "[[models]]\nname = \"m\"\nprovider = \"nobody\"")
        .expect("written");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let pg = ("DATABASE_URL", "postgres://user:hush@127.0.0.1:1/none");
    for (arguments, environment, parts) in [
        (vec!["serve"], vec![("PORT", "abc")], vec!["PORT", "abc", "port number"]),
        (
            vec!["serve"],
            vec![("GAUGE_REFRESH_INTERVAL", "5 parsecs")],
            vec!["GAUGE_REFRESH_INTERVAL", "duration"],
        ),
        (vec!["serve", "--port", "70000"], vec![], vec!["PORT", "70000"]),
        (vec!["serve", "--config", "unknown.toml"], vec![], vec!["unknown.toml", "prot", "port"]),
        (vec!["serve", "--config", "key.toml"], vec![], vec!["key.toml", "typ"]),
        (vec!["serve", "--config", "absent.toml"], vec![], vec!["absent.toml"]),
        (vec!["serve", "--config", "url.toml", "--port", "0"], vec![], vec!["\"x\"", "base"]),
        (vec!["serve", "--config", "model.toml", "--port", "0"], vec![], vec!["nobody"]),
        (vec!["serve", "--port", &port, "--listen-addr", "127.0.0.1"], vec![], vec!["cannot listen", &port]),
        (vec!["serve"], vec![("DATABASE_URL", "mysql://x")], vec!["sqlite://"]),
        (vec!["serve"], vec![("DATABASE_URL", "sqlite:///no/such/folder/x.db")], vec!["/no/such/folder"]),
        (vec!["serve"], vec![("ENCRYPTION_KEY", "short")], vec!["ENCRYPTION_KEY"]),
        (vec!["serve"], vec![("REDIS_URL", "http://x")], vec!["REDIS_URL"]),
        (vec!["serve"], vec![("UPSTREAM_CA_FILE", "absent.pem")], vec!["UPSTREAM_CA_FILE", "absent.pem"]),
        (vec!["serve"], vec![("UPSTREAM_CA_FILE", "key.toml")], vec!["UPSTREAM_CA_FILE", "no certificate"]),
        (vec!["migrate", "up"], vec![pg], vec!["127.0.0.1"]),
    ] {
        let output = nexusgate(&arguments, &environment, path);
        let text = complaint(&output);
        for part in parts {
            assert!(text.contains(part), "{arguments:?} {environment:?}: {text}");
        }
        assert!(!text.contains("hush"), "no password: {text}");
    }
}

#[test]
fn settings_are_checked_without_starting() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(
        folder.path().join("good.toml"),
        "port = 0\n[[providers]]\nname = \"x\"\ntype = \"openai\"\nbase_url = \"https://h/v1\"\napi_key = \"${KEY}\"\n",
    )
    .expect("written");
    let arguments = ["check-config", "--config", "good.toml"];
    let output = nexusgate(&arguments, &[("KEY", "secret")], folder.path());
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 providers"));
    let text = complaint(&nexusgate(&arguments, &[], folder.path()));
    assert!(text.contains("KEY"), "{text}");
    // As mounted secrets are.
    let from_file =
        "[[providers]]\nname = \"x\"\ntype = \"openai\"\nbase_url = \"${URL}\"\napi_key = \"${KEY}\"\n";
    std::fs::write(folder.path().join("good.toml"), from_file).expect("written");
    let given = [("URL", "https://h/v1\n"), ("KEY", "secret\n")];
    assert!(nexusgate(&arguments, &given, folder.path()).status.success());
    // Errors that otherwise only a start would find.
    let stored = "[[models]]\nname = \"m\"\nprovider = \"may be in the database\"\n";
    let twice = "[[providers]]\nname = \"x\"\ntype = \"openai\"\nbase_url = \"https://h/v1\"\n".repeat(2);
    let no_url = "[[providers]]\nname = \"x\"\ntype = \"openai\"\nbase_url = \"ftp://h\"\n";
    let no_embeddings = "[[providers]]\nname = \"x\"\ntype = \"anthropic\"\nbase_url = \"https://h\"\n\
         [[models]]\nname = \"m\"\nprovider = \"x\"\ntype = \"embedding\"\n";
    let heavy = format!("{stored}weight = 2_000_000\n");
    let dear = format!("{stored}input_price = 1e9\n");
    for (file, environment, complained) in [
        (stored, None, None),
        (&heavy, None, Some("weight: must be from 0 to 1000000")),
        (&dear, None, Some("input_price: must be from 0 to 1000000")),
        (&twice, None, Some("declared twice")),
        (no_url, None, Some("base_url")),
        (no_embeddings, None, Some("no embeddings")),
        ("\"änderung\" = 1\n", None, Some("änderung")),
        ("", Some(("DATABASE_URL", "mysql://u:hush@h/d")), Some("postgres://")),
        ("", Some(("DATABASE_URL", "postgres://u:hush@h/d")), Some("ENCRYPTION_KEY")),
        ("", Some(("ENCRYPTION_KEY", "hush")), Some("ENCRYPTION_KEY")),
        ("", Some(("REDIS_URL", "http://hush@h")), Some("REDIS_URL")),
        ("", Some(("UPSTREAM_CA_FILE", "absent.pem")), Some("absent.pem")),
    ] {
        std::fs::write(folder.path().join("good.toml"), file).expect("written");
        let output = nexusgate(&arguments, environment.as_slice(), folder.path());
        match complained {
            None => assert!(output.status.success(), "{file}"),
            Some(part) => {
                let text = complaint(&output);
                assert!(text.contains(part) && !text.contains("hush"), "{file} {environment:?}: {text}");
            }
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing was made");
}

#[test]
fn migrations_go_up_and_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |step: &str| {
        // A setting may stand on either side of the subcommand.
        let database = ["--database-url", "sqlite://other.db"];
        let arguments = match step {
            "up" => [&["migrate"], &database[..], &[step]].concat(),
            _ => [&["migrate", step], &database[..]].concat(),
        };
        let output = nexusgate(&arguments, &[("DATABASE_URL", "sqlite://not-this.db")], folder.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(!run("up").contains("pending"));
    assert!(run("down").contains("pending"));
    assert!(run("status").contains("pending"));
    assert!(!run("up").contains("pending"));
    assert!(folder.path().join("other.db").exists() && !folder.path().join("not-this.db").exists());
}

/// Otherwise a wrong folder would look like a database whose work is done.
#[test]
fn a_database_that_must_be_there_is_not_made() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, url) in [
        (&["rotate-encryption-key"][..], "sqlite://absent.db"),
        (&["migrate", "down"], "sqlite://absent.db"),
        (&["migrate", "status"], "sqlite://absent.db"),
        (&["migrate", "up"], "sqlite://absent.db?mode=rw"),
        (&["serve", "--port", "0"], "sqlite://absent.db?mode=rw"),
    ] {
        let text = complaint(&nexusgate(arguments, &[("DATABASE_URL", url)], folder.path()));
        assert!(text.contains("absent.db does not exist"), "{arguments:?}: {text}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0, "{arguments:?}");
    }
}

/// A start may take minutes, for example behind a replica that is migrating.
#[test]
fn a_start_can_be_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nexusgate.db");
    let busy = rusqlite::Connection::open(&path).expect("opened");
    busy.execute_batch("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE").expect("locked");
    let gateway = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
        .args(["serve", "--port", "0"])
        .env_clear()
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let mut gateway = Started(gateway);
    let files = format!("/proc/{}/fd", gateway.id());
    let deadline = Instant::now() + Duration::from_secs(30);
    let has_opened = || {
        let open = std::fs::read_dir(&files).expect("it runs");
        open.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path))
    };
    while !has_opened() {
        assert!(Instant::now() < deadline, "it does not open its database");
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = rustix::process::Pid::from_child(&gateway);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("signalled");
    // It would give up on the lock only after ten seconds, with an error.
    let ended = gateway.wait().expect("ended");
    assert!(ended.success(), "{ended}");
    drop(busy);
}

#[test]
fn a_secret_that_can_be_guessed_is_warned_of() {
    const SHORT: &str = "hush-hush";
    for (secret, warned) in [(SHORT, true), ("long enough not to be guessed", false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let gateway = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
            .args(["serve", "--port", "0"])
            .env_clear()
            .env("ADMIN_SUPER_SECRET", secret)
            .current_dir(folder.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut gateway = Started(gateway);
        let log = std::io::BufReader::new(gateway.stderr.take().expect("piped"));
        let lines: Vec<String> = std::io::BufRead::lines(log)
            .map(|line| line.expect("text"))
            .take_while(|line| !line.contains("listening"))
            .collect();
        assert_eq!(
            lines.iter().any(|line| line.contains("ADMIN_SUPER_SECRET can be guessed")),
            warned,
            "{lines:?}"
        );
        assert!(!lines.iter().any(|line| line.contains(SHORT)), "{lines:?}");
    }
}

#[test]
fn the_reference_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SETTINGS.md");
    let written = std::fs::read_to_string(path).expect("docs/SETTINGS.md");
    assert!(
        written == nexusgate::config::docs::markdown(),
        "run: cargo run -- settings-reference > docs/SETTINGS.md"
    );
}

/// A soft limit below the hard limit is raised.
#[test]
fn all_file_descriptors_are_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut gateway = Command::new("sh")
        .args(["-c", "ulimit -Sn 256 && exec \"$0\" serve --port 0", env!("CARGO_BIN_EXE_nexusgate")])
        .env_clear()
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let limits = first_line(&mut gateway)
        .and_then(|_| std::fs::read_to_string(format!("/proc/{}/limits", gateway.id())));
    gateway.kill().expect("killed");
    gateway.wait().expect("ended");
    let limits = limits.expect("readable");
    let files: Vec<&str> = (limits.lines().find_map(|line| line.strip_prefix("Max open files")))
        .expect("a limit")
        .split_whitespace()
        .collect();
    assert_eq!(files[0], files[1], "soft and hard");
}

/// The line printed when everything is ready.
fn first_line(gateway: &mut std::process::Child) -> std::io::Result<String> {
    let mut line = String::new();
    let output = gateway.stdout.as_mut().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
    Ok(line)
}

#[test]
fn the_encryption_key_is_rotated() {
    const OLD: &str = "0000000000000000000000000000000000000000000000000000000000000001";
    const NEW: &str = "0000000000000000000000000000000000000000000000000000000000000002";
    const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000003";
    let folder = tempfile::tempdir().expect("a folder");
    let file = "[[providers]]\nname = \"p\"\ntype = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
                api_key = \"sk-upstream-0123456789\"";
    std::fs::write(folder.path().join("nexusgate.toml"), file).expect("written");
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_nexusgate"))
        .args(["serve", "--config", "nexusgate.toml", "--port", "0"])
        .env_clear()
        .env("ENCRYPTION_KEY", OLD)
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    // The admin secret is printed when everything is ready; the declared entries are in the database by then.
    first_line(&mut gateway).expect("a line");
    gateway.kill().expect("killed");
    gateway.wait().expect("ended");

    let rotate =
        |environment: &[(&str, &str)]| nexusgate(&["rotate-encryption-key"], environment, folder.path());
    assert!(complaint(&rotate(&[("ENCRYPTION_KEY", OLD)])).contains("NEW_ENCRYPTION_KEY"));
    assert!(complaint(&rotate(&[("NEW_ENCRYPTION_KEY", NEW)])).contains("ENCRYPTION_KEY"));
    let wrong = rotate(&[("ENCRYPTION_KEY", OTHER), ("NEW_ENCRYPTION_KEY", NEW)]);
    assert!(!complaint(&wrong).contains(OTHER), "a key that opens nothing is refused, and not repeated");
    let both = [("ENCRYPTION_KEY", OLD), ("NEW_ENCRYPTION_KEY", NEW)];
    let said = String::from_utf8(rotate(&both).stdout).expect("UTF-8");
    assert!(said.starts_with("1 secrets"), "{said}");
    let again = String::from_utf8(rotate(&both).stdout).expect("UTF-8");
    assert!(again.starts_with("0 secrets"), "repeating it is harmless: {again}");
    let old = nexusgate(&["serve", "--port", "0"], &[("ENCRYPTION_KEY", OLD)], folder.path());
    assert!(complaint(&old).contains("ENCRYPTION_KEY"), "the old key opens nothing");
}
