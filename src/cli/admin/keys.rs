//! `nexusgate keys create | list | revoke`.

use chrono::{DateTime, Utc};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use super::super::CliError;
use super::client::AdminClient;
use super::{Answer, BodyOf, flag};

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("KEY", "key"),
    ("COMMENT", "comment"),
    ("RPM", "rpmLimit"),
    ("TPM", "tpmLimit"),
    ("MODELS", "allowedModels"),
    ("EXPIRES", "expiresAt"),
    ("REVOKED", "revoked"),
    ("SOURCE", "source"),
    ("LAST SEEN", "lastSeen"),
];

pub(super) fn command() -> Command {
    let create = Command::new("create")
        .about("Create a key and print it")
        .arg(flag("comment", "Its name in lists, logs and metrics"))
        .arg(limit("rpm", "Requests per minute, or `unlimited` [default: the gateway's]"))
        .arg(limit("tpm", "Tokens per minute, or `unlimited` [default: the gateway's]"))
        .arg(
            flag("expires", "When it expires: a time (RFC 3339) or a duration from now, like `90d`")
                .value_parser(expiry),
        )
        .arg(
            flag("model", "A model it may call; repeat the flag for more [default: all]")
                .action(ArgAction::Append),
        )
        .arg(flag("external-id", "Its name in another system"));
    let list = Command::new("list").about("List the keys, masked").arg(
        Arg::new("include-revoked")
            .long("include-revoked")
            .action(ArgAction::SetTrue)
            .help("Include revoked keys"),
    );
    let revoke = Command::new("revoke")
        .about("Revoke a key")
        .arg(Arg::new("key").required(true).value_name("ID").help("Its id (or the key itself)"));
    Command::new("keys").about("API keys of a running gateway").subcommands([create, list, revoke])
}

pub(super) async fn run(
    action: &str,
    matches: &ArgMatches,
    client: &AdminClient,
) -> Result<Answer, CliError> {
    match action {
        "create" => {
            let models = matches
                .get_many::<String>("model")
                .map(|names| names.cloned().map(Value::from).collect::<Vec<_>>());
            let body = BodyOf::new(matches)
                .text("comment", "comment")
                .text("external-id", "externalId")
                .set("rpmLimit", matches.get_one::<Value>("rpm").cloned())
                .set("tpmLimit", matches.get_one::<Value>("tpm").cloned())
                .set("expiresAt", matches.get_one::<DateTime<Utc>>("expires").map(DateTime::to_rfc3339))
                .set("allowedModels", models)
                .json();
            let made = client.post(&["apiKey"], &body).await?;
            let key = made["key"].as_str().unwrap_or_default().to_owned();
            Ok(Answer::new(key, made))
        }
        "revoke" => {
            let key = matches.get_one::<String>("key").map_or("", String::as_str);
            let revoked = client.delete(&["apiKey", key]).await?;
            Ok(Answer::new(format!("key {} is revoked", revoked["id"]), revoked))
        }
        _ => {
            let revoked = matches.get_flag("include-revoked").to_string();
            let found = client.get(&["apiKey"], &[("includeRevoked", &revoked)]).await?;
            Ok(Answer::list(COLUMNS, found))
        }
    }
}

/// A limit as the API takes it: a number, or null for unlimited.
fn limit(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("NUMBER").help(help).value_parser(|text: &str| match text {
        "unlimited" => Ok(Value::Null),
        _ => match text.parse::<u32>() {
            Ok(number) if number > 0 => Ok(Value::from(number)),
            _ => Err("expected a whole number above 0, or `unlimited`"),
        },
    })
}

fn expiry(text: &str) -> Result<DateTime<Utc>, &'static str> {
    const TAKES: &str = "expected a time like 2027-01-01T00:00:00Z, or a duration like 90d";
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let ahead = humantime::parse_duration(text).map_err(|_| TAKES)?;
    chrono::TimeDelta::from_std(ahead)
        .ok()
        .and_then(|ahead| Utc::now().checked_add_signed(ahead))
        .ok_or(TAKES)
}
