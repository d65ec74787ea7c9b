//! The request log: `completions` and `embeddings`, and their sums by day, `usage_daily`.
//!
//! No foreign keys: a row must reach the log whatever has happened meanwhile to the key, the model or the provider it
//! names, so names are stored beside the ids. Bodies are text, not `jsonb`: a response may be a raw event stream, and
//! `jsonb` refuses the escape `\u0000`, which is legal JSON.
//!
//! `created_at` is when the request arrived. Lists run by (`created_at`, `id`) backwards, over one index per filter
//! that an administrator picks (until `m20261126_000003` on SQLite); a B-tree is read in both directions, so the indexes are
//! plain ascending ones.
//!
//! `usage_daily` is written in the transaction that writes the rows it sums. Usage stays known after retention has pruned
//! the rows, and asking for it costs the same after a thousand requests and after a billion.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, boolean, date, double, double_null, pk_uuid, text, text_null,
    timestamp_with_time_zone, uuid_null,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The filters of the list; each gets an index with the list's order behind it.
const FILTERS: [&str; 4] = ["api_key_id", "model", "provider_id", "status"];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(completions()).await?;
        manager.create_table(embeddings()).await?;
        manager.create_table(usage_daily()).await?;
        manager.create_index(index("usage_daily", "api_key_id_idx", &["api_key_id", "day"])).await?;
        manager
            .create_index(index("completions", "api_format_idx", &["api_format", "created_at", "id"]))
            .await?;
        for table in ["completions", "embeddings"] {
            // The plain list, retention and the time series.
            manager.create_index(index(table, "created_at_idx", &["created_at", "id"])).await?;
            for column in FILTERS {
                let name = format!("{column}_idx");
                manager.create_index(index(table, &name, &[column, "created_at", "id"])).await?;
            }
            // Text in the error: failures are few, so this index is small, and the search reads nothing else. PostgreSQL
            // refuses index rows above 2,704 bytes, so the writer keeps errors and request ids short.
            manager
                .create_index(
                    index(table, "error_idx", &["created_at", "id", "error"])
                        .and_where(Expr::col("error").is_not_null())
                        .to_owned(),
                )
                .await?;
            // Idempotency: the latest answer to a request id of a key.
            manager
                .create_index(
                    index(table, "request_id_idx", &["request_id", "api_key_id", "created_at"])
                        .and_where(Expr::col("request_id").is_not_null())
                        .to_owned(),
                )
                .await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["usage_daily", "embeddings", "completions"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

fn completions() -> TableCreateStatement {
    Table::create()
        .table("completions")
        .col(pk_uuid("id"))
        .col(big_integer("api_key_id"))
        .col(text("model"))
        .col(big_integer_null("model_id"))
        .col(text_null("provider"))
        .col(big_integer_null("provider_id"))
        .col(text("api_format"))
        .col(text("status"))
        .col(boolean("stream"))
        // As reported by the provider; null: not reported.
        .col(big_integer_null("prompt_tokens"))
        .col(big_integer_null("completion_tokens"))
        .col(big_integer_null("cached_tokens"))
        .col(big_integer_null("cache_write_tokens"))
        .col(big_integer_null("reasoning_tokens"))
        .col(double("prompt_cost"))
        .col(double("completion_cost"))
        .col(double("duration_ms"))
        .col(double_null("ttft_ms"))
        .col(double_null("longest_stall_ms"))
        .col(double("overhead_ms"))
        .col(text_null("finish_reason"))
        .col(text_null("error"))
        .col(text_null("request_id"))
        // The completion that a cache hit was answered from.
        .col(uuid_null("source_completion"))
        .col(text_null("request_body"))
        .col(text_null("response_body"))
        .col(timestamp_with_time_zone("created_at"))
        .to_owned()
}

fn embeddings() -> TableCreateStatement {
    Table::create()
        .table("embeddings")
        .col(pk_uuid("id"))
        .col(big_integer("api_key_id"))
        .col(text("model"))
        .col(big_integer_null("model_id"))
        .col(text_null("provider"))
        .col(big_integer_null("provider_id"))
        .col(text("status"))
        .col(big_integer_null("prompt_tokens"))
        .col(double("prompt_cost"))
        .col(double("duration_ms"))
        .col(double("overhead_ms"))
        .col(text_null("error"))
        .col(text_null("request_id"))
        // The embedding call that a cache hit was answered from.
        .col(uuid_null("source_embedding"))
        .col(text_null("request_body"))
        .col(text_null("response_body"))
        .col(timestamp_with_time_zone("created_at"))
        .to_owned()
}

fn usage_daily() -> TableCreateStatement {
    let mut table = Table::create()
        .table("usage_daily")
        // UTC.
        .col(date("day"))
        .col(big_integer("api_key_id"))
        .col(text("model"))
        // Empty when no provider was reached; part of the key, so not null.
        .col(text("provider"))
        // The table of the rows it sums.
        .col(text("kind"))
        .primary_key(Index::create().col("day").col("api_key_id").col("model").col("provider").col("kind"))
        .to_owned();
    for counter in [
        "completed",
        "failed",
        "aborted",
        "cache_hit",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
    ] {
        table.col(big_integer(counter));
    }
    table.col(double("prompt_cost")).col(double("completion_cost")).to_owned()
}

/// An index named after its table, as index names share one space.
pub(crate) fn index(table: &'static str, name: &str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create().name(format!("{table}_{name}")).table(table).to_owned();
    for column in columns {
        index.col(*column);
    }
    index
}
