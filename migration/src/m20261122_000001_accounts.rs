//! The tables that an administrator configures: `api_keys`, `providers`, `models`.
//!
//! Rows are deleted softly (`deleted_at`), because the request log names them. Names are unique among the living
//! only, so a deleted name can be used again: partial unique indexes, which both databases have.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, big_pk_auto, binary_len, boolean, double_null, json_null, text, text_null,
    timestamp_with_time_zone, timestamp_with_time_zone_null,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(api_keys()).await?;
        manager.create_table(providers()).await?;
        manager.create_table(models()).await?;

        // Deleted keys keep their hash and external id: the same key coming back is the same row coming back to life.
        manager.create_index(unique("api_keys", "api_keys_key_hash_key", &["key_hash"])).await?;
        manager.create_index(unique("api_keys", "api_keys_external_id_key", &["external_id"])).await?;
        manager.create_index(living(unique("providers", "providers_name_key", &["name"]))).await?;
        manager
            .create_index(living(unique("models", "models_system_name_key", &["provider_id", "system_name"])))
            .await?;
        manager
            .create_index(
                Index::create().name("models_system_name_idx").table("models").col("system_name").to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["models", "providers", "api_keys"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

fn api_keys() -> TableCreateStatement {
    lifecycle(
        Table::create()
            .table("api_keys")
            .col(big_pk_auto("id"))
            // SHA-256 of the key, by which the request path looks keys up.
            .col(binary_len("key_hash", 32))
            .col(text("key_encrypted"))
            // The first characters of the key, for people to tell keys apart.
            .col(text("key_prefix"))
            .col(text_null("comment"))
            // Per minute; null: unlimited.
            .col(big_integer_null("rpm_limit"))
            .col(big_integer_null("tpm_limit"))
            // A JSON array of system names; null: all.
            .col(json_null("allowed_models"))
            .col(timestamp_with_time_zone_null("expires_at"))
            .col(boolean("revoked").default(false))
            .col(text_null("external_id"))
            .col(timestamp_with_time_zone_null("last_seen_at")),
    )
}

fn providers() -> TableCreateStatement {
    lifecycle(
        Table::create()
            .table("providers")
            .col(big_pk_auto("id"))
            .col(text("name"))
            .col(text("kind"))
            .col(text("base_url"))
            .col(text_null("api_key_encrypted"))
            .col(text_null("api_version"))
            .col(text_null("comment"))
            // Encrypted as a whole: a proxy URL may carry user and password.
            .col(text_null("proxy_url_encrypted"))
            .col(boolean("proxy_enabled").default(false))
            .col(boolean("ask_stream_usage").default(true))
            .col(big_integer_null("max_concurrency")),
    )
}

fn models() -> TableCreateStatement {
    lifecycle(
        Table::create()
            .table("models")
            .col(big_pk_auto("id"))
            .col(big_integer("provider_id"))
            .col(text("system_name"))
            // Null: the same as the system name.
            .col(text_null("remote_id"))
            .col(text("model_type"))
            .col(big_integer_null("context_length"))
            // USD per million tokens.
            .col(double_null("input_price"))
            .col(double_null("output_price"))
            .col(big_integer("weight").default(1))
            .col(text_null("comment"))
            .col(double_null("slo_ttft_ms"))
            .col(double_null("slo_tpot_ms"))
            .foreign_key(
                ForeignKey::create()
                    .name("models_provider_id_fkey")
                    .from("models", "provider_id")
                    .to("providers", "id"),
            ),
    )
}

/// The common columns of the configured tables: origin and times.
fn lifecycle(table: &mut TableCreateStatement) -> TableCreateStatement {
    table
        .col(text("source"))
        .col(timestamp_with_time_zone("created_at"))
        .col(timestamp_with_time_zone("updated_at"))
        .col(timestamp_with_time_zone_null("deleted_at"))
        .to_owned()
}

fn unique(table: &'static str, name: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create().name(name).table(table).unique().to_owned();
    for column in columns {
        index.col(*column);
    }
    index
}

fn living(mut index: IndexCreateStatement) -> IndexCreateStatement {
    index.and_where(Expr::col("deleted_at").is_null()).to_owned()
}
