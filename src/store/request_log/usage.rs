//! Usage: the log summed by day, key, model and provider.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use entity::usage_daily::{Column, Entity, Model};
use sea_orm::sea_query::{Expr, ExprTrait, InsertStatement, OnConflict};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IdenStatic, IntoActiveModel, QueryFilter,
    QueryOrder, QueryResult, QuerySelect, QueryTrait, Select,
};

use super::row::LogRow;
use super::write::by_powers_of_two;
use crate::domain::label::{LogTable, Status};
use crate::store::error::StoreResult;

/// Sums in one statement. Far below what the databases take; a power of two, as the lengths of all statements are.
const PAGE: usize = 512;

/// Selects usage; `None`: all.
#[derive(Debug, Clone, Default)]
pub struct UsageFilter {
    /// The first day, UTC.
    pub from: Option<NaiveDate>,
    /// The last day, UTC; included.
    pub to: Option<NaiveDate>,
    pub api_key_id: Option<i64>,
    /// System name.
    pub model: Option<String>,
    pub offset: u64,
    pub limit: Option<u64>,
}

/// A column by which usage can be grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageGroup {
    Day,
    ApiKey,
    Model,
    Provider,
    Table,
}

impl UsageGroup {
    const fn column(self) -> Column {
        match self {
            Self::Day => Column::Day,
            Self::ApiKey => Column::ApiKeyId,
            Self::Model => Column::Model,
            Self::Provider => Column::Provider,
            Self::Table => Column::Kind,
        }
    }
}

/// Usage of one group: columns that it was not grouped by are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UsageSum {
    pub day: Option<NaiveDate>,
    pub api_key_id: Option<i64>,
    pub model: Option<String>,
    /// Empty: no provider was reached.
    pub provider: Option<String>,
    pub table: Option<LogTable>,
    pub sums: Sums,
}

/// Requests, tokens and money.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    pub completed: u64,
    pub failed: u64,
    pub aborted: u64,
    pub cache_hit: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub reasoning_tokens: u64,
    /// USD.
    pub prompt_cost: f64,
    /// USD.
    pub completion_cost: f64,
}

impl Sums {
    /// Requests, however they ended.
    pub fn requests(&self) -> u64 {
        self.completed + self.failed + self.aborted + self.cache_hit
    }

    /// USD.
    pub fn cost(&self) -> f64 {
        self.prompt_cost + self.completion_cost
    }
}

/// Usage summed by `by`, the latest day first; known also for days whose rows retention has pruned. Without groups in
/// `by` the result is one sum, even over no rows.
///
/// # Errors
/// [`StoreError::Database`](crate::store::StoreError::Database).
pub async fn usage_by(
    db: &impl ConnectionTrait,
    filter: &UsageFilter,
    by: &[UsageGroup],
) -> StoreResult<Vec<UsageSum>> {
    const COUNTS: [Column; 9] = [
        Column::Completed,
        Column::Failed,
        Column::Aborted,
        Column::CacheHit,
        Column::PromptTokens,
        Column::CompletionTokens,
        Column::CachedTokens,
        Column::CacheWriteTokens,
        Column::ReasoningTokens,
    ];
    let mut query = filtered(filter).select_only();
    for group in by {
        query = query.column(group.column()).group_by(group.column());
        query = match group {
            UsageGroup::Day => query.order_by_desc(group.column()),
            _ => query.order_by_asc(group.column()),
        };
    }
    // Sums of integers are `numeric` on PostgreSQL, and null over nothing.
    let sum = |column: Column, sql_type: &str| {
        Expr::cust(format!("CAST(coalesce(sum({}), 0) AS {sql_type})", column.as_str()))
    };
    for column in COUNTS {
        query = query.expr(sum(column, "bigint"));
    }
    for column in [Column::PromptCost, Column::CompletionCost] {
        query = query.expr(sum(column, "double precision"));
    }
    let rows = db.query_all(&query.into_query()).await?;
    rows.iter().map(|row| read_sum(row, by)).collect()
}

fn read_sum(row: &QueryResult, by: &[UsageGroup]) -> StoreResult<UsageSum> {
    let mut sum = UsageSum::default();
    for (index, group) in by.iter().enumerate() {
        match group {
            UsageGroup::Day => sum.day = row.try_get_by_index(index)?,
            UsageGroup::ApiKey => sum.api_key_id = row.try_get_by_index(index)?,
            UsageGroup::Model => sum.model = row.try_get_by_index(index)?,
            UsageGroup::Provider => sum.provider = row.try_get_by_index(index)?,
            UsageGroup::Table => {
                sum.table = LogTable::parse(&row.try_get_by_index::<String>(index)?);
            }
        }
    }
    let count = |index: usize| -> StoreResult<u64> {
        Ok(u64::try_from(row.try_get_by_index::<i64>(by.len() + index)?).unwrap_or(0))
    };
    sum.sums = Sums {
        completed: count(0)?,
        failed: count(1)?,
        aborted: count(2)?,
        cache_hit: count(3)?,
        prompt_tokens: count(4)?,
        completion_tokens: count(5)?,
        cached_tokens: count(6)?,
        cache_write_tokens: count(7)?,
        reasoning_tokens: count(8)?,
        prompt_cost: row.try_get_by_index(by.len() + 9)?,
        completion_cost: row.try_get_by_index(by.len() + 10)?,
    };
    Ok(sum)
}

fn filtered(filter: &UsageFilter) -> Select<Entity> {
    // Model names were stored without NUL.
    let model = filter.model.as_deref().map(|model| model.replace('\0', "\u{fffd}"));
    Entity::find()
        .apply_if(filter.from, |query, day| query.filter(Column::Day.gte(day)))
        .apply_if(filter.to, |query, day| query.filter(Column::Day.lte(day)))
        .apply_if(filter.api_key_id, |query, id| query.filter(Column::ApiKeyId.eq(id)))
        .apply_if(model, |query, model| query.filter(Column::Model.eq(model)))
        // SQLite has no OFFSET without LIMIT.
        .limit(filter.limit.unwrap_or(u64::try_from(i64::MAX).unwrap_or(u64::MAX)))
        .offset(filter.offset)
}

/// The columns of the primary key.
type Place<'a> = (NaiveDate, i64, &'a str, &'a str, &'static str);

/// The additions of these rows to the sums, in the order of the primary key, so that two replicas cannot deadlock.
pub(super) fn additions<'a>(rows: impl Iterator<Item = &'a LogRow>) -> Vec<Model> {
    let mut sums: BTreeMap<Place<'a>, Model> = BTreeMap::new();
    for row in rows {
        let place = (
            row.created_at.date_naive(),
            row.api_key_id,
            &*row.model,
            row.provider.as_deref().unwrap_or_default(),
            row.table.as_str(),
        );
        let sum = sums.entry(place).or_insert_with(|| zero(place));
        match Status::parse(&row.status) {
            Some(Status::Completed) => plus(&mut sum.completed, 1),
            Some(Status::Aborted) => plus(&mut sum.aborted, 1),
            Some(Status::CacheHit) => plus(&mut sum.cache_hit, 1),
            Some(Status::Failed) | None => plus(&mut sum.failed, 1),
        }
        plus(&mut sum.prompt_tokens, row.prompt_tokens.unwrap_or(0));
        plus(&mut sum.completion_tokens, row.completion_tokens.unwrap_or(0));
        plus(&mut sum.cached_tokens, row.cached_tokens.unwrap_or(0));
        plus(&mut sum.cache_write_tokens, row.cache_write_tokens.unwrap_or(0));
        plus(&mut sum.reasoning_tokens, row.reasoning_tokens.unwrap_or(0));
        sum.prompt_cost += row.prompt_cost;
        sum.completion_cost += row.completion_cost;
    }
    sums.into_values().collect()
}

/// Statements that add these sums to the stored ones.
pub(super) fn statements(sums: &[Model]) -> impl Iterator<Item = InsertStatement> {
    by_powers_of_two(sums, |rest| rest.len().min(PAGE)).map(statement)
}

/// One statement that adds all of them.
pub(super) fn statement(sums: &[Model]) -> InsertStatement {
    let rows = sums.iter().map(|sum| sum.clone().into_active_model().reset_all());
    Entity::insert_many(rows).on_conflict(add_to_existing()).into_query()
}

fn zero((day, api_key_id, model, provider, kind): Place<'_>) -> Model {
    Model {
        day,
        api_key_id,
        model: model.to_owned(),
        provider: provider.to_owned(),
        kind: kind.to_owned(),
        completed: 0,
        failed: 0,
        aborted: 0,
        cache_hit: 0,
        prompt_tokens: 0,
        completion_tokens: 0,
        cached_tokens: 0,
        cache_write_tokens: 0,
        reasoning_tokens: 0,
        prompt_cost: 0.0,
        completion_cost: 0.0,
    }
}

fn plus(sum: &mut i64, more: i64) {
    *sum = sum.saturating_add(more);
}

fn add_to_existing() -> OnConflict {
    const PLACE: [Column; 5] = [Column::Day, Column::ApiKeyId, Column::Model, Column::Provider, Column::Kind];
    const SUMS: [Column; 11] = [
        Column::Completed,
        Column::Failed,
        Column::Aborted,
        Column::CacheHit,
        Column::PromptTokens,
        Column::CompletionTokens,
        Column::CachedTokens,
        Column::CacheWriteTokens,
        Column::ReasoningTokens,
        Column::PromptCost,
        Column::CompletionCost,
    ];
    let mut conflict = OnConflict::columns(PLACE);
    for column in SUMS {
        conflict.value(column, Expr::col((Entity, column)).add(Expr::col(("excluded", column))));
    }
    conflict
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use sea_orm::sea_query::PostgresQueryBuilder;

    use super::*;

    /// PostgreSQL's driver keeps a prepared statement for each text.
    #[test]
    fn few_statements_do_for_any_number_of_sums() {
        let day = NaiveDate::default();
        let sums: Vec<Model> =
            (0..2_000).map(|key| zero((day, key, "m", "p", LogTable::Completions.as_str()))).collect();
        let mut texts = HashSet::new();
        for count in (0..100).chain((100..2_000).step_by(123)) {
            let mut rows = 0;
            for statement in statements(&sums[..count]) {
                let (text, values) = statement.build(PostgresQueryBuilder);
                rows += values.0.len() / 16;
                texts.insert(text);
            }
            assert_eq!(rows, count, "each sum once");
        }
        assert!(texts.len() <= 10, "{} texts", texts.len());
    }
}
