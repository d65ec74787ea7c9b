//! The command line.

mod admin;
mod catalog;
mod demo;
mod healthcheck;
mod http;
mod migrate;
mod openapi;
mod rotate;
mod serve;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Args as _, Command};

use crate::app::StartError;
use crate::config::{ConfigError, Settings, variable};
use crate::store::StoreError;

/// Why a command failed. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Other(String),
}

/// Runs the command that the arguments name; an error is one line on stderr.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // clap writes help to stdout and errors to stderr; a closed pipe is not an error.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match execute(&matches) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "nexusgate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    match matches.subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("demo", matches)) => demo::run(matches),
        Some((name @ ("keys" | "providers" | "models"), matches)) => admin::run(name, matches),
        Some(("migrate", matches)) => migrate::run(matches),
        Some(("check-config", matches)) => serve::check(matches),
        Some(("healthcheck", matches)) => healthcheck::run(matches),
        Some(("rotate-encryption-key", matches)) => rotate::run(matches),
        Some(("metrics-catalog", matches)) => catalog::metrics(matches),
        Some(("settings-reference", _)) => catalog::settings(),
        Some(("openapi", _)) => openapi::run(),
        _ => Err(CliError::Other("no such command".to_owned())),
    }
}

fn command() -> Command {
    let serve = Settings::add_flags(Command::new("serve")).about("Run the gateway");
    let demo = crate::demo::DemoArgs::augment_args(Command::new("demo"))
        .about("Run a gateway with scripted providers and steady traffic, and check its counters");
    let check = Settings::add_flags(Command::new("check-config"))
        .about("Check the settings without starting anything");
    let migrate = Settings::add_flags(
        Command::new("migrate")
            .about("Change the schema of the database, or show its state")
            .subcommand_required(true)
            .subcommand(Command::new("up").about("Apply the missing migrations"))
            .subcommand(
                Command::new("down")
                    .about("Revert migrations; tables that they created are lost with their rows")
                    .arg(
                        Arg::new("steps")
                            .long("steps")
                            .value_parser(clap::value_parser!(u32).range(1..))
                            .default_value("1")
                            .help("Number of migrations to revert"),
                    ),
            )
            .subcommand(Command::new("status").about("Show which migrations are applied")),
    )
    // Before the subcommand or behind it.
    .mut_args(|setting| setting.global(true));
    let healthcheck = Settings::add_flags(Command::new("healthcheck"))
        .about(
            "Ask a running gateway whether it takes requests, with or without its database; for containers",
        )
        .arg(variable(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .help("URL of the gateway [default: where one with these settings listens]"),
            "NEXUSGATE_URL",
        ));
    let rotate = Settings::add_flags(Command::new("rotate-encryption-key"))
        .about("Encrypt every stored secret under a new key; stop the gateway first")
        .arg(variable(
            Arg::new("new-key")
                .long("new-encryption-key")
                .hide_env_values(true)
                .value_name("VALUE")
                .help("The new key, like ENCRYPTION_KEY; without either, the key file is replaced"),
            "NEW_ENCRYPTION_KEY",
        ));
    let settings =
        Command::new("settings-reference").about("Print every setting: the source of docs/SETTINGS.md");
    let catalog = Command::new("metrics-catalog")
        .about("Print every metric: docs/METRICS.md, or JSON for tools")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"));
    let openapi = Command::new("openapi").about("Print the OpenAPI document: docs/openapi.json");
    Command::new("nexusgate")
        .version(env!("CARGO_PKG_VERSION"))
        .about("An LLM gateway whose metrics are live and right")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([serve, demo, migrate, check, healthcheck, rotate, catalog, settings, openapi])
        .subcommands(admin::commands())
}

/// A runtime with one worker for each core that the process may use (respecting affinity and cgroup quota). With one
/// core it needs no workers: tasks are then never handed from thread to thread.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = match cores {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    Ok(builder.enable_all().build()?)
}

/// Writes a line for the person at the terminal.
fn say(text: impl std::fmt::Display) -> Result<(), CliError> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// An error with its causes, which say what is wrong. hyper's errors name no URL, so none shows a key.
fn failed(error: &(dyn std::error::Error + 'static)) -> CliError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    CliError::Other(text)
}
