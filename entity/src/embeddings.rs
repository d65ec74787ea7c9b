//! The request log of embedding calls.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "embeddings")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub api_key_id: i64,
    pub model: String,
    pub model_id: Option<i64>,
    pub provider: Option<String>,
    pub provider_id: Option<i64>,
    pub status: String,
    pub prompt_tokens: Option<i64>,
    pub prompt_cost: f64,
    pub duration_ms: f64,
    pub overhead_ms: f64,
    pub error: Option<String>,
    pub request_id: Option<String>,
    pub source_embedding: Option<Uuid>,
    pub request_body: Option<String>,
    pub response_body: Option<String>,
    pub created_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
