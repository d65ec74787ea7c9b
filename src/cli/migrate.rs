//! `nexusgate migrate up|down|status`.

use std::process::ExitCode;

use clap::ArgMatches;

use crate::config::Settings;
use crate::store;

use super::{CliError, runtime, say};

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let settings = Settings::from_matches(matches)?;
    runtime()?.block_on(async {
        let url = settings.database_url.expose();
        let database = match matches.subcommand() {
            Some(("up", _)) => store::Settings::new(url),
            _ => store::Settings::existing(url),
        };
        let database = store::connect(&database).await?;
        match matches.subcommand() {
            Some(("up", _)) => store::migrate::up(&database).await?,
            Some(("down", matches)) => {
                store::migrate::down(&database, matches.get_one::<u32>("steps").copied()).await?;
            }
            _ => {}
        }
        for migration in store::migrate::status(&database).await? {
            say(format_args!(
                "{:<8} {}",
                if migration.applied { "applied" } else { "pending" },
                migration.name
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
