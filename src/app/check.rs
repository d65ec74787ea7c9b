//! Checking the settings without starting.

use std::collections::HashSet;

use super::{StartError, wiring};
use crate::config::Settings;
use crate::domain::key::Secret;
use crate::domain::provider::ProviderKind;
use crate::limit;
use crate::store::crypt::{Cipher, EncryptionKey};
use crate::store::declared::Declared;
use crate::store::providers::NewProvider;
use crate::store::{self, Source};

/// Checks the settings and the declared providers, models and keys. Connects to nothing and creates no file; whether
/// the database, Redis or a port is available is not checked.
///
/// # Errors
/// [`StartError`]: the first thing that every start would refuse.
pub async fn check(settings: &Settings) -> Result<(), StartError> {
    let key = settings.encryption_key.as_ref().map(Secret::expose);
    store::connect::check_url(settings.database_url.expose())?;
    store::crypt::check_key(settings.database_url.expose(), key)?;
    if let Some(url) = &settings.redis_url {
        limit::check_url(url)?;
    }
    super::trust(settings)?;
    // The declarations are applied to a throw-away database by the code that applies them at a start.
    let mut declared = wiring::declared(settings);
    add_what_may_be_stored(&mut declared);
    let database = store::connect(&store::Settings::new("sqlite::memory:")).await?;
    store::migrate::up(&database).await?;
    store::declared::apply(&database, &Cipher::new(&EncryptionKey::random()), &declared).await?;
    Ok(())
}

/// A declared model's provider may already be in the real database: adds a stand-in for each undeclared one.
fn add_what_may_be_stored(declared: &mut Declared) {
    let mut known: HashSet<String> =
        declared.providers.iter().map(|provider| provider.name.clone()).collect();
    for entry in &declared.models {
        if known.insert(entry.provider.clone()) {
            let (kind, url) = (ProviderKind::OpenAi, "https://stored.invalid/v1");
            declared.providers.push(NewProvider::new(entry.provider.clone(), kind, url, Source::Config));
        }
    }
}
