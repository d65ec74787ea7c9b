//! Prices of input tokens that a provider reads from its cache or writes to it. Without one, a token costs what any
//! input token costs.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::double_null;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// USD per million tokens.
const COLUMNS: [&str; 2] = ["cached_input_price", "cache_write_price"];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite takes one column at a time.
        for column in COLUMNS {
            manager
                .alter_table(Table::alter().table("models").add_column(double_null(column)).to_owned())
                .await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in COLUMNS {
            manager.alter_table(Table::alter().table("models").drop_column(column).to_owned()).await?;
        }
        Ok(())
    }
}
