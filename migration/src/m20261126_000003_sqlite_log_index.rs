//! On SQLite one index for every list of the request log, instead of one for each filter.
//!
//! SQLite is part of the gateway, so what a row costs there each request pays: seven B-trees, and with many keys or models in
//! use, a page of two of them for nearly each row. The one index begins as the others end, with the list's
//! order, so it grows at its end alone, and holds what filters ask for: a list reads it backwards from the latest row and
//! touches no other (docs/PERFORMANCE.md has what both ways cost). PostgreSQL, which has its own CPU and is for the
//! larger logs, keeps an index for each filter.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::m20261122_000002_request_log::index;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The tables, and what their lists are filtered by.
const TABLES: [(&str, &[&str]); 2] = [
    ("completions", &["api_key_id", "provider_id", "status", "api_format", "model"]),
    ("embeddings", &["api_key_id", "provider_id", "status", "model"]),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() != DbBackend::Sqlite {
            return Ok(());
        }
        for (table, filters) in TABLES {
            for of in [&["created_at"], filters].concat() {
                manager.drop_index(Index::drop().name(format!("{table}_{of}_idx")).to_owned()).await?;
            }
            let columns = [&["created_at", "id"], filters].concat();
            manager.create_index(index(table, "list_idx", &columns)).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() != DbBackend::Sqlite {
            return Ok(());
        }
        for (table, filters) in TABLES {
            manager.drop_index(Index::drop().name(format!("{table}_list_idx")).to_owned()).await?;
            manager.create_index(index(table, "created_at_idx", &["created_at", "id"])).await?;
            for filter in filters {
                manager
                    .create_index(index(table, &format!("{filter}_idx"), &[filter, "created_at", "id"]))
                    .await?;
            }
        }
        Ok(())
    }
}
