//! `nexusgate keys | providers | models`: the admin API on the command line.

mod client;
mod keys;
mod models;
mod providers;
mod table;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

use super::{CliError, runtime, say};
use crate::config::variable;

use client::AdminClient;
use table::table;

/// The commands of this module.
pub(super) fn commands() -> [Command; 3] {
    [keys::command(), providers::command(), models::command()].map(with_connection)
}

/// Runs `name`, one of [`commands`].
pub(super) fn run(name: &str, matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let Some((action, arguments)) = matches.subcommand() else {
        return Err(CliError::Other("no such command".to_owned()));
    };
    let client = AdminClient::new(arguments)?;
    let answer = runtime()?.block_on(async {
        match name {
            "keys" => keys::run(action, arguments, &client).await,
            "providers" => providers::run(action, arguments, &client).await,
            _ => models::run(action, arguments, &client).await,
        }
    })?;
    if arguments.get_flag("json") {
        say(format_args!("{:#}", answer.json))?
    } else {
        say(answer.text)?
    }
    Ok(if answer.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The output of a command, for people and for scripts.
struct Answer {
    text: String,
    json: Value,
    /// Whether the result is good: `providers test` may report a failure.
    good: bool,
}

impl Answer {
    fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, good: true }
    }

    /// A list as a table; each column is a heading and the field it shows.
    fn list(columns: &[(&str, &str)], json: Value) -> Self {
        let rows = json.as_array().map(Vec::as_slice).unwrap_or_default();
        let cells: Vec<Vec<String>> =
            rows.iter().map(|row| columns.iter().map(|(_, field)| cell(&row[*field])).collect()).collect();
        let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
        Self::new(table(&headings, &cells), json)
    }
}

/// A JSON value as a person reads it in a table.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Adds the flags that select the gateway to every action.
fn with_connection(command: Command) -> Command {
    let actions: Vec<String> = command.get_subcommands().map(|action| action.get_name().to_owned()).collect();
    actions.into_iter().fold(
        command.subcommand_required(true).arg_required_else_help(true),
        |command, action| {
            command.mut_subcommand(action, |action| {
                action
                    .arg(variable(
                        Arg::new("url")
                            .long("url")
                            .default_value("http://127.0.0.1:3000")
                            .help("URL of the gateway"),
                        "NEXUSGATE_URL",
                    ))
                    .arg(variable(
                        Arg::new("admin-secret")
                            .long("admin-super-secret")
                            .hide_env_values(true)
                            .value_name("SECRET")
                            .help("The gateway's admin secret; better given in the environment"),
                        "ADMIN_SUPER_SECRET",
                    ))
                    .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
            })
        },
    )
}

/// A flag that takes a value.
fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("VALUE").help(help)
}

/// A flag that takes a whole number of at least 1.
fn count(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("NUMBER")
        .value_parser(clap::value_parser!(u32).range(1..))
        .help(help)
}

/// A flag that takes a number. JSON has no infinity and no NaN: as null they would clear the field.
fn number(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("expected a number of at least 0"),
    };
    Arg::new(name).long(name).value_name("NUMBER").value_parser(parse).help(help)
}

/// Puts the given flags into a request's body, under their names in the API. Flags that were not given are left to the
/// gateway.
struct BodyOf<'a> {
    matches: &'a ArgMatches,
    body: Map<String, Value>,
}

impl<'a> BodyOf<'a> {
    fn new(matches: &'a ArgMatches) -> Self {
        Self { matches, body: Map::new() }
    }

    fn text(self, flag: &str, field: &str) -> Self {
        let value = self.matches.get_one::<String>(flag).cloned();
        self.set(field, value)
    }

    fn count(self, flag: &str, field: &str) -> Self {
        let value = self.matches.get_one::<u32>(flag).copied();
        self.set(field, value)
    }

    fn number(self, flag: &str, field: &str) -> Self {
        let value = self.matches.get_one::<f64>(flag).copied();
        self.set(field, value)
    }

    fn set(mut self, field: &str, value: Option<impl Into<Value>>) -> Self {
        if let Some(value) = value {
            self.body.insert(field.to_owned(), value.into());
        }
        self
    }

    fn json(self) -> Value {
        Value::Object(self.body)
    }
}
