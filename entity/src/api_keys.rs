//! Callers: their keys, limits and lifetime.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    /// SHA-256 of the key, 32 bytes.
    #[sea_orm(unique)]
    pub key_hash: Vec<u8>,
    pub key_encrypted: String,
    pub key_prefix: String,
    pub comment: Option<String>,
    pub rpm_limit: Option<i64>,
    pub tpm_limit: Option<i64>,
    /// A JSON array of system names.
    pub allowed_models: Option<Json>,
    pub expires_at: Option<DateTimeUtc>,
    pub revoked: bool,
    #[sea_orm(unique)]
    pub external_id: Option<String>,
    pub last_seen_at: Option<DateTimeUtc>,
    pub source: String,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub deleted_at: Option<DateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
