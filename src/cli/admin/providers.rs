//! `nexusgate providers add | list | test`.

use std::io::Read as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use super::super::CliError;
use super::client::AdminClient;
use super::table::plain;
use super::{Answer, BodyOf, count, flag};

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("NAME", "name"),
    ("TYPE", "type"),
    ("BASE URL", "baseUrl"),
    ("API KEY", "apiKey"),
    ("PROXY", "proxyUrl"),
    ("CONCURRENCY", "maxConcurrency"),
    ("COMMENT", "comment"),
];

pub(super) fn command() -> Command {
    let add = Command::new("add")
        .about("Add a provider")
        .arg(flag("name", "Its name: the label of metrics, and the provider of `model@name`").required(true))
        .arg(flag("type", "openai, openai-responses, anthropic, azure or ollama").default_value("openai"))
        .arg(flag("base-url", "The base URL as the provider's SDK takes it").required(true))
        .arg(
            Arg::new("api-key-stdin")
                .long("api-key-stdin")
                .action(ArgAction::SetTrue)
                .help("Read the provider's API key from standard input"),
        )
        .arg(
            flag("api-key-env", "Take the provider's API key from this environment variable")
                .value_name("NAME")
                .conflicts_with("api-key-stdin"),
        )
        .arg(flag("api-version", "`api-version` of Azure, `anthropic-version` of Anthropic"))
        .arg(flag("proxy-url", "An HTTP proxy for this provider alone"))
        .arg(count("max-concurrency", "Concurrent calls; further ones go to the next provider"))
        .arg(
            Arg::new("no-stream-usage")
                .long("no-stream-usage")
                .action(ArgAction::SetTrue)
                .help("Do not request the usage of streams: for providers that refuse `stream_options`"),
        )
        .arg(flag("comment", "A note"));
    let list = Command::new("list").about("List the providers, without their secrets");
    let test = Command::new("test")
        .about("Make a minimal call to a provider; exit code 1 when it fails")
        .arg(Arg::new("provider").required(true).value_name("NAME").help("Its name or id"));
    Command::new("providers").about("Providers of a running gateway").subcommands([add, list, test])
}

pub(super) async fn run(
    action: &str,
    matches: &ArgMatches,
    client: &AdminClient,
) -> Result<Answer, CliError> {
    match action {
        "add" => {
            let proxied = matches.contains_id("proxy-url").then_some(true);
            let body = BodyOf::new(matches)
                .text("name", "name")
                .text("type", "type")
                .text("base-url", "baseUrl")
                .text("api-version", "apiVersion")
                .text("proxy-url", "proxyUrl")
                .set("proxyEnabled", proxied)
                .count("max-concurrency", "maxConcurrency")
                .set("askStreamUsage", matches.get_flag("no-stream-usage").then_some(false))
                .text("comment", "comment")
                .set("apiKey", api_key(matches)?)
                .json();
            let made = client.post(&["providers"], &body).await?;
            Ok(Answer::new(format!("provider {} has the id {}", made["name"], made["id"]), made))
        }
        "test" => {
            let name = matches.get_one::<String>("provider").map_or("", String::as_str);
            let id = find(client, name).await?["id"].to_string();
            test(client, &id).await
        }
        _ => Ok(Answer::list(COLUMNS, client.get(&["providers"], &[]).await?)),
    }
}

async fn test(client: &AdminClient, id: &str) -> Result<Answer, CliError> {
    let result = client.report(&["providers", id, "test"]).await?;
    let good = result["success"].as_bool().unwrap_or(false);
    let took = result["latencyMs"].as_f64().map_or_else(String::new, |ms| format!(" after {ms:.0} ms"));
    let told = if good {
        format!("it answered well{took}")
    } else {
        let why = plain(result["error"].as_str().unwrap_or("it did not answer well"));
        format!("{why}{took}")
    };
    Ok(Answer { good, ..Answer::new(told, result) })
}

/// The provider with the name or id `name`.
pub(super) async fn find(client: &AdminClient, name: &str) -> Result<Value, CliError> {
    let all = client.get(&["providers"], &[]).await?;
    let all = all.as_array().map(Vec::as_slice).unwrap_or_default();
    let named = all.iter().find(|provider| provider["name"] == name);
    let id = name.parse::<i64>().ok();
    let found = named.or_else(|| all.iter().find(|provider| id.is_some() && provider["id"].as_i64() == id));
    found.cloned().ok_or_else(|| CliError::Other(format!("there is no provider {name:?}")))
}

/// Never an argument: the process list shows arguments to every user.
fn api_key(matches: &ArgMatches) -> Result<Option<String>, CliError> {
    let key = if matches.get_flag("api-key-stdin") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else if let Some(name) = matches.get_one::<String>("api-key-env") {
        std::env::var(name).map_err(|_| CliError::Other(format!("the variable {name} is not set")))?
    } else {
        return Ok(None);
    };
    let key = key.trim().to_owned();
    if key.is_empty() {
        Err(CliError::Other("the provider's API key is empty".to_owned()))
    } else {
        Ok(Some(key))
    }
}
