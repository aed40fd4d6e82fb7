//! The read operations that are not searches.

use std::collections::HashMap;

use futures_util::future::try_join;
use tokio_postgres::Client;

use super::super::filter::Filter;
use super::super::item::{ContentHash, Hit, Item, ScoredId};
use super::super::query::{ListQuery, Page};
use super::error::QueryError;
use super::rows::{self, ITEM, VECTOR};
use super::statement::Statement;
use super::{filter_sql, schema};

/// One item with its vector and thumbnail.
pub(super) async fn get(client: &Client, id: &str) -> Result<Option<Item>, QueryError> {
    let mut statement = Statement::new("");
    let id = statement.text(id);
    *statement.sql() =
        format!("SELECT {ITEM}{VECTOR}, png FROM macrl_items LEFT JOIN macrl_pictures USING (id) WHERE id = {id}");
    let rows = statement.rows(client).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Item { image: rows::thumbnail(row, 5)?, ..rows::item(row)? }))
}

/// One page of items in the order of their ids.
pub(super) async fn list(client: &Client, query: &ListQuery) -> Result<Page, QueryError> {
    let vector = if query.vectors { VECTOR } else { "" };
    let mut page = Statement::new(format!("SELECT {ITEM}{vector} FROM macrl_items WHERE true"));
    if let Some(cursor) = &query.cursor {
        // PostgreSQL cannot hold U+0000.  As no id has one, the same ids come after the text before it.
        let cursor = page.text(cursor.split('\0').next().unwrap_or_default());
        page.sql().push_str(&format!(" AND id > {cursor}"));
    }
    filter_sql::append(&mut page, &query.filter);
    // One more item than asked for tells whether there is a next page.
    page.sql().push_str(&format!(" ORDER BY id LIMIT {}", query.limit.saturating_add(1)));
    let (rows, total) = try_join(page.rows(client), total(client, query)).await?;
    let items = rows.iter().take(query.limit).map(rows::item).collect::<Result<Vec<Item>, QueryError>>()?;
    let more = rows.len() > items.len();
    let next = items.last().filter(|_| more).map(|item| item.id.clone());
    Ok(Page { items, next, total })
}

async fn total(client: &Client, query: &ListQuery) -> Result<usize, tokio_postgres::Error> {
    if query.skip_total {
        return Ok(0);
    }
    count(client, &query.filter).await
}

async fn count(client: &Client, filter: &Filter) -> Result<usize, tokio_postgres::Error> {
    let mut statement = Statement::new("SELECT count(*) FROM macrl_items WHERE true");
    filter_sql::append(&mut statement, filter);
    let rows = statement.rows(client).await?;
    Ok(rows.first().map(|row| row.try_get::<_, i64>(0)).transpose()?.unwrap_or(0) as usize)
}

/// These items with their metadata, without those that no longer exist.
pub(super) async fn hits(client: &Client, scored: &[ScoredId]) -> Result<Vec<Hit>, QueryError> {
    let mut statement = Statement::new("SELECT id, 0::real, metadata, pictured FROM macrl_items WHERE id = ANY (");
    let ids = statement.texts(scored.iter().map(|scored| scored.id.clone()).collect());
    statement.sql().push_str(&format!("{ids})"));
    let mut found = HashMap::new();
    for row in statement.rows(client).await? {
        let hit = rows::hit(&row)?;
        found.insert(hit.id.clone(), hit);
    }
    Ok(scored.iter().filter_map(|one| Some(Hit { score: one.score, ..found.remove(&one.id)? })).collect())
}

/// The content hash of each of these items, if it has one.
pub(super) async fn hashes(client: &Client, ids: &[String]) -> Result<Vec<Option<ContentHash>>, QueryError> {
    let mut statement = Statement::new("SELECT id, hash FROM macrl_items WHERE hash IS NOT NULL AND id = ANY (");
    let known = statement.texts(ids.iter().filter(|id| !id.contains('\0')).cloned().collect());
    statement.sql().push_str(&format!("{known})"));
    let mut found = HashMap::new();
    for row in statement.rows(client).await? {
        found.insert(row.try_get::<_, String>(0)?, ContentHash::try_from(row.try_get::<_, &[u8]>(1)?).ok());
    }
    Ok(ids.iter().map(|id| found.get(id).copied().flatten()).collect())
}

/// About `wanted` items.  The hash of its id decides whether an item is chosen, so every replica chooses the same ones.
pub(super) async fn sample(client: &Client, wanted: usize) -> Result<Vec<Item>, QueryError> {
    let step = schema::count(client).await?.div_ceil(wanted.max(1)).max(1);
    let chosen = format!("SELECT id FROM macrl_items WHERE hashtextextended(id, 0) % {step} = 0");
    let sql = format!("SELECT {ITEM}{VECTOR} FROM macrl_items WHERE id IN ({chosen}) ORDER BY id");
    Statement::new(sql).rows(client).await?.iter().map(rows::item).collect()
}
