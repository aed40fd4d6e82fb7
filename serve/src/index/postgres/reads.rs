//! Everything that is read and is no search.

use std::collections::HashMap;

use futures_util::future::try_join;
use tokio_postgres::Client;

use super::super::{ContentHash, Filter, Hit, Item, Listing, Near, Page};
use super::fault::Fault;
use super::rows::{self, ITEM, VECTOR};
use super::statement::Statement;
use super::{conditions, schema};

/// One item, whole.
pub(super) async fn get(client: &Client, id: &str) -> Result<Option<Item>, Fault> {
    let mut statement = Statement::new("");
    let id = statement.text(id);
    *statement.sql() =
        format!("SELECT {ITEM}{VECTOR}, png FROM macrl_items LEFT JOIN macrl_pictures USING (id) WHERE id = {id}");
    let rows = statement.rows(client).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Item { image: rows::picture(row, 5)?, ..rows::item(row)? }))
}

/// Items in the order of their ids.
pub(super) async fn list(client: &Client, listing: &Listing) -> Result<Page, Fault> {
    let vector = if listing.vectors { VECTOR } else { "" };
    let mut page = Statement::new(format!("SELECT {ITEM}{vector} FROM macrl_items WHERE true"));
    if let Some(cursor) = &listing.cursor {
        // No id has a U+0000: whatever comes after a text with one comes after what precedes it there.
        let cursor = page.text(cursor.split('\0').next().unwrap_or_default());
        page.sql().push_str(&format!(" AND id > {cursor}"));
    }
    conditions::push(&mut page, &listing.filter);
    // One more than asked for tells whether there is a next page.
    page.sql().push_str(&format!(" ORDER BY id LIMIT {}", listing.limit.saturating_add(1)));
    let (rows, total) = try_join(page.rows(client), total(client, listing)).await?;
    let items = rows.iter().take(listing.limit).map(rows::item).collect::<Result<Vec<Item>, Fault>>()?;
    let more = rows.len() > items.len();
    let next = items.last().filter(|_| more).map(|item| item.id.clone());
    Ok(Page { items, next, total })
}

async fn total(client: &Client, listing: &Listing) -> Result<usize, tokio_postgres::Error> {
    if listing.uncounted {
        return Ok(0);
    }
    count(client, &listing.filter).await
}

async fn count(client: &Client, filter: &Filter) -> Result<usize, tokio_postgres::Error> {
    let mut statement = Statement::new("SELECT count(*) FROM macrl_items WHERE true");
    conditions::push(&mut statement, filter);
    let rows = statement.rows(client).await?;
    Ok(rows.first().map(|row| row.try_get::<_, i64>(0)).transpose()?.unwrap_or(0) as usize)
}

/// These neighbours with their metadata, without those that are gone.
pub(super) async fn describe(client: &Client, near: &[Near]) -> Result<Vec<Hit>, Fault> {
    let mut statement = Statement::new("SELECT id, 0::real, metadata, pictured FROM macrl_items WHERE id = ANY (");
    let ids = statement.texts(near.iter().map(|near| near.id.clone()).collect());
    statement.sql().push_str(&format!("{ids})"));
    let mut found = HashMap::new();
    for row in statement.rows(client).await? {
        let hit = rows::hit(&row)?;
        found.insert(hit.id.clone(), hit);
    }
    Ok(near.iter().filter_map(|near| Some(Hit { score: near.score, ..found.remove(&near.id)? })).collect())
}

/// The content hashes of these items, where they have one.
pub(super) async fn hashes(client: &Client, ids: &[String]) -> Result<Vec<Option<ContentHash>>, Fault> {
    let mut statement = Statement::new("SELECT id, hash FROM macrl_items WHERE hash IS NOT NULL AND id = ANY (");
    let known = statement.texts(ids.iter().filter(|id| !id.contains('\0')).cloned().collect());
    statement.sql().push_str(&format!("{known})"));
    let mut found = HashMap::new();
    for row in statement.rows(client).await? {
        found.insert(row.try_get::<_, String>(0)?, ContentHash::try_from(row.try_get::<_, &[u8]>(1)?).ok());
    }
    Ok(ids.iter().map(|id| found.get(id).copied().flatten()).collect())
}

/// About `wanted` items: those whose ids' hashes say so, which are the same for everybody who asks.
pub(super) async fn sample(client: &Client, wanted: usize) -> Result<Vec<Item>, Fault> {
    let step = schema::count(client).await?.div_ceil(wanted.max(1)).max(1);
    let chosen = format!("SELECT id FROM macrl_items WHERE hashtextextended(id, 0) % {step} = 0");
    let sql = format!("SELECT {ITEM}{VECTOR} FROM macrl_items WHERE id IN ({chosen}) ORDER BY id");
    Statement::new(sql).rows(client).await?.iter().map(rows::item).collect()
}
