//! On SQLite one index for the lists of the request log, instead of one for each filter.
//!
//! SQLite runs inside the gateway, so every request pays for its row. Each row went into seven B-trees, and with many
//! keys or models in use, into two of them at scattered places. The one index begins with the list's order, which is
//! chronological, so it grows at its end alone; behind it come the columns that lists are filtered by, so that a filter
//! reads the index backwards from the latest entry, and no table rows except the matches. (Errors have an index of
//! their own, as before.) docs/PERFORMANCE.md has the cost of both ways. PostgreSQL runs elsewhere and is for the
//! larger logs: there each filter keeps its index.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::m20261122_000002_request_log::index;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The tables, and the columns that their lists are filtered by.
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
