//! A database for one test.

use std::path::Path;

use sea_orm::{ConnectionTrait, Database};

/// The URL of a fresh database: on PostgreSQL when a server is configured, else a SQLite file in `folder`.
pub async fn fresh(folder: &Path) -> String {
    let Ok(server) = std::env::var("NEXUSGATE_TEST_POSTGRES") else {
        return format!("sqlite://{}", folder.join("test.db").display());
    };
    let name = format!("it_{}", uuid::Uuid::now_v7().simple());
    let admin = Database::connect(&server).await.expect("the PostgreSQL of NEXUSGATE_TEST_POSTGRES answers");
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("a database can be made");
    admin.close().await.expect("closed");
    let mut url: url::Url = server.parse().expect("a URL");
    url.set_path(&name);
    url.into()
}
