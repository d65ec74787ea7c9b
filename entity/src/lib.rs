//! sea-orm entities, one module a table. What a column means stands in `migration/`.

pub mod api_keys;
pub mod completions;
pub mod embeddings;
pub mod models;
pub mod providers;
pub mod usage_daily;
