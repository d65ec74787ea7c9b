//! sea-orm entities, one module a table. `migration/` documents the columns.

pub mod api_keys;
pub mod completions;
pub mod embeddings;
pub mod models;
pub mod providers;
pub mod usage_daily;
