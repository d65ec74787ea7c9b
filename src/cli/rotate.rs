//! `nexusgate rotate-encryption-key`.

use std::process::ExitCode;

use clap::ArgMatches;

use crate::config::Settings;
use crate::store::crypt::{self, Cipher, EncryptionKey};
use crate::store::{self, StoreError};

use super::{CliError, runtime, say};

/// Encrypts every stored secret under a new key: the one of `NEW_ENCRYPTION_KEY`, or, with a key file, a random one.
pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let settings = Settings::from_matches(matches)?;
    let new = matches.get_one::<String>("new-key").map(|text| EncryptionKey::parse(text)).transpose();
    let new = new.map_err(|error| StoreError::Secret(format!("NEW_{error}")))?;
    let url = settings.database_url.expose();
    runtime()?.block_on(async {
        let database = store::connect(&store::Settings::existing(url)).await?;
        store::migrate::up(&database).await?;
        let (changed, next) = match (settings.encryption_key.as_ref().map(|key| key.expose()), new) {
            (Some(old), Some(new)) => {
                let (old, new) = (Cipher::new(&EncryptionKey::parse(old)?), Cipher::new(&new));
                let changed = crypt::rotate(&database, &old, &new).await?;
                (changed, "start the gateway with ENCRYPTION_KEY set to the new key")
            }
            (Some(_), None) => {
                let missing =
                    "NEW_ENCRYPTION_KEY must be set: the key to change to, as ENCRYPTION_KEY is set";
                return Err(StoreError::Secret(missing.to_owned()).into());
            }
            (None, Some(_)) => {
                let missing = "ENCRYPTION_KEY must be set: the key that the secrets are under now";
                return Err(StoreError::Secret(missing.to_owned()).into());
            }
            (None, None) => {
                let changed = crypt::rotate_key_file(&database, url).await?;
                (changed, "the key file was replaced; restart the gateway")
            }
        };
        say(format_args!("{changed} secrets were encrypted anew; {next}"))?;
        Ok(ExitCode::SUCCESS)
    })
}
