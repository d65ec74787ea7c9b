//! `nexusgate models add | list`.

use clap::{ArgMatches, Command};

use super::super::CliError;
use super::client::AdminClient;
use super::{Answer, BodyOf, count, flag, number, providers};

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("NAME", "systemName"),
    ("PROVIDER", "providerId"),
    ("REMOTE ID", "remoteId"),
    ("TYPE", "modelType"),
    ("WEIGHT", "weight"),
    ("IN $/M", "inputPrice"),
    ("OUT $/M", "outputPrice"),
    ("CONTEXT", "contextLength"),
    ("COMMENT", "comment"),
];

pub(super) fn command() -> Command {
    let add = Command::new("add")
        .about("Offer a model through a provider")
        .arg(flag("provider", "The provider's name or id").required(true))
        .arg(flag("name", "The name that callers use").required(true))
        .arg(flag("remote-id", "The name that the provider uses [default: the same]"))
        .arg(flag("type", "chat or embedding").default_value("chat"))
        .arg(number("input-price", "USD per million input tokens"))
        .arg(number("output-price", "USD per million output tokens"))
        .arg(number(
            "cached-input-price",
            "USD per million tokens read from the provider's cache [default: as input]",
        ))
        .arg(number(
            "cache-write-price",
            "USD per million tokens written to the provider's cache [default: as input]",
        ))
        .arg(
            clap::Arg::new("weight")
                .long("weight")
                .value_name("NUMBER")
                .value_parser(clap::value_parser!(u32))
                .help("Share of the traffic among the providers of this name; 0: only when the others fail"),
        )
        .arg(count("context-length", "Context length in tokens"))
        .arg(number("slo-ttft-ms", "Target for the first token, in milliseconds"))
        .arg(number("slo-tpot-ms", "Target for each further token, in milliseconds"))
        .arg(flag("comment", "A note"));
    let list = Command::new("list").about("List the models").arg(flag("type", "Only chat or embedding"));
    Command::new("models").about("Models of a running gateway").subcommands([add, list])
}

pub(super) async fn run(
    action: &str,
    matches: &ArgMatches,
    client: &AdminClient,
) -> Result<Answer, CliError> {
    if action == "add" {
        let name = matches.get_one::<String>("provider").map_or("", String::as_str);
        let provider = providers::find(client, name).await?;
        let body = BodyOf::new(matches)
            .set("providerId", Some(provider["id"].clone()))
            .text("name", "systemName")
            .text("remote-id", "remoteId")
            .text("type", "modelType")
            .number("input-price", "inputPrice")
            .number("output-price", "outputPrice")
            .number("cached-input-price", "cachedInputPrice")
            .number("cache-write-price", "cacheWritePrice")
            .count("weight", "weight")
            .count("context-length", "contextLength")
            .number("slo-ttft-ms", "sloTtftMs")
            .number("slo-tpot-ms", "sloTpotMs")
            .text("comment", "comment")
            .json();
        let made = client.post(&["models"], &body).await?;
        return Ok(Answer::new(
            format!(
                "model {} is offered by {} and has the id {}",
                made["systemName"], provider["name"], made["id"]
            ),
            made,
        ));
    }
    let only: Vec<(&str, &str)> =
        matches.get_one::<String>("type").map(|kind| ("modelType", kind.as_str())).into_iter().collect();
    Ok(Answer::list(COLUMNS, client.get(&["models"], &only).await?))
}
