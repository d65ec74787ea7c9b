//! A test's queries of the database, behind the gateway's back.

use std::collections::BTreeMap;

use entity::{completions, embeddings};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, EntityTrait};

#[path = "../../it/support/database.rs"]
mod shared;

pub use shared::fresh;

pub async fn connect(database_url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(database_url);
    options.sqlx_logging(false);
    Database::connect(options).await.expect("the database answers")
}

/// The number of request log rows for each marker of a [`Load`](super::Load).
pub async fn rows_by_marker(database_url: &str) -> BTreeMap<String, usize> {
    let database = connect(database_url).await;
    let completions = completions::Entity::find().all(&database).await.expect("rows");
    let embeddings = embeddings::Entity::find().all(&database).await.expect("rows");
    let bodies = completions.into_iter().map(|row| row.request_body);
    let bodies = bodies.chain(embeddings.into_iter().map(|row| row.request_body));
    let mut rows = BTreeMap::new();
    for body in bodies {
        let body: serde_json::Value = serde_json::from_str(&body.expect("a body")).expect("JSON");
        *rows.entry(body["user"].as_str().expect("a marker").to_owned()).or_default() += 1;
    }
    rows
}
