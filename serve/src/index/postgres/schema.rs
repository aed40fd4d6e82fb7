//! Tables, made and changed by us, and whose vectors they hold.
//!
//! Changes to the tables are numbered and applied in one transaction under an advisory lock, so that replicas that
//! start together do them once.  Where nothing is to be changed, nothing more than reading and writing rows is asked of
//! the role.  Everything is in the connection's current schema: `?options=-csearch_path%3Dphotos,public` keeps several
//! indexes in one data base.

use deadpool_postgres::Client as Pooled;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::super::{Encoder, IndexError};
use super::address::Address;
use super::fault::{Fault, said};

/// Larger vectors fit into no page, and HNSW's limit is below.
const MOST_DIMENSIONS: usize = 16_000;

/// What makes format n + 1 of format n; `{dim}` is D.
///
/// Vectors stay in the row (`STORAGE MAIN`, a row up to 8 kB): out of line, comparing one would take a look into
/// another table.  Pictures have a table of their own, so that no search reads them.  `metadata` is what comes back,
/// `fields` what filters look at.
const MIGRATIONS: &[&str] = &["
    CREATE EXTENSION IF NOT EXISTS vector;
    CREATE TABLE macrl_index (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        format integer NOT NULL,
        encoder text NOT NULL,
        dim integer NOT NULL
    );
    CREATE TABLE macrl_items (
        id text COLLATE \"C\" PRIMARY KEY,
        vector vector({dim}) NOT NULL,
        metadata text NOT NULL,
        fields jsonb NOT NULL,
        hash bytea,
        pictured boolean NOT NULL
    ) WITH (toast_tuple_target = 8160);
    ALTER TABLE macrl_items ALTER COLUMN vector SET STORAGE MAIN;
    CREATE INDEX macrl_items_fields ON macrl_items USING gin (fields jsonb_path_ops);
    CREATE TABLE macrl_pictures (
        id text COLLATE \"C\" PRIMARY KEY REFERENCES macrl_items ON DELETE CASCADE,
        png bytea NOT NULL
    );
    ALTER TABLE macrl_pictures ALTER COLUMN png SET STORAGE EXTERNAL;
    INSERT INTO macrl_index (format, encoder, dim) VALUES (0, '', {dim});
"];

/// Of the tables; see docs/formats.md.
pub(super) const FORMAT: usize = MIGRATIONS.len();

/// One change of the tables at a time, in one schema.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('macrl tables of ' || current_schema(), 0))";

/// The tables are there and hold items of this encoder, or none.
pub(super) async fn prepare(client: &mut Pooled, address: &Address, encoder: &Encoder) -> Result<(), Fault> {
    let open = |cause: &str| Fault::Index(IndexError::Open(format!("cannot open {address}: {cause}")));
    if encoder.dim > MOST_DIMENSIONS {
        return Err(open(&format!("a vector has at most {MOST_DIMENSIONS} numbers, found {}", encoder.dim)));
    }
    check_server(client, address).await?;
    if format(client).await? != Some(MIGRATIONS.len()) {
        migrate(client, address, encoder).await?;
    }
    check_extension(client, address).await?;
    adopt(client, encoder).await
}

/// An encoding that holds any text, and somewhere to put tables.
async fn check_server(client: &Client, address: &Address) -> Result<(), Fault> {
    let asked = "SELECT current_setting('server_encoding'), current_schema()";
    let row = client.query_typed_one(asked, &[]).await?;
    let cause = match (row.try_get::<_, &str>(0)?, row.try_get::<_, Option<&str>>(1)?) {
        ("UTF8", Some(_)) => return Ok(()),
        ("UTF8", None) => "no schema of its search_path exists".to_string(),
        (other, _) => format!("expected a data base in UTF8, found {other}"),
    };
    Err(IndexError::Open(format!("cannot open {address}: {cause}")).into())
}

/// SQL for the number of one of our tables or indexes; null where there is none.  Not `to_regclass`, which would find
/// those of another schema, and within a transaction remembers what was not there.
pub(super) fn oid(name: &str) -> String {
    format!(
        "(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
          WHERE relname = '{name}' AND nspname = current_schema())"
    )
}

/// Of the tables; `None` where there are none.
async fn format(client: &Client) -> Result<Option<usize>, Fault> {
    let there = client.query_typed_one(&format!("SELECT {} IS NOT NULL", oid("macrl_index")), &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let row = client.query_typed_one("SELECT format FROM macrl_index", &[]).await?;
    Ok(Some(row.try_get::<_, i32>(0)? as usize))
}

async fn migrate(client: &mut Pooled, address: &Address, encoder: &Encoder) -> Result<(), Fault> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK).await?;
    let found = format(transaction.client()).await?;
    check_format(address, found.unwrap_or(0))?;
    for step in &MIGRATIONS[found.unwrap_or(0)..] {
        let sql = step.replace("{dim}", &encoder.dim.to_string());
        transaction.batch_execute(&sql).await.map_err(|e| explain(address, e))?;
    }
    let values = [(&(MIGRATIONS.len() as i32) as &(dyn ToSql + Sync), Type::INT4)];
    transaction.query_typed("UPDATE macrl_index SET format = $1", &values).await?;
    if found.is_none() {
        record(transaction.client(), encoder).await?;
    }
    Ok(transaction.commit().await?)
}

/// Tables of a later program are left alone.
fn check_format(address: &Address, found: usize) -> Result<(), IndexError> {
    let known = MIGRATIONS.len();
    if found <= known {
        return Ok(());
    }
    Err(IndexError::Open(format!("{address} has format {found}, this program reads format {known}")))
}

/// Who may not make tables, and what is not installed.
fn explain(address: &Address, error: tokio_postgres::Error) -> Fault {
    let missing = [SqlState::UNDEFINED_FILE, SqlState::FEATURE_NOT_SUPPORTED];
    let cause = match error.code() {
        Some(code) if missing.contains(code) => {
            format!("its server has no pgvector ({}): install it, 0.8 or newer", said(&error))
        }
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            format!("{}: let an administrator run CREATE EXTENSION vector and grant CREATE on the schema", said(&error))
        }
        _ => return error.into(),
    };
    IndexError::Open(format!("cannot open {address}: {cause}")).into()
}

/// Searches with a filter go on until they have enough since 0.8.
async fn check_extension(client: &Client, address: &Address) -> Result<(), Fault> {
    let asked = "SELECT extversion FROM pg_extension WHERE extname = 'vector'";
    let row = client.query_typed_opt(asked, &[]).await?;
    let version: String = row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (0, 8) {
        return Ok(());
    }
    let found = if version.is_empty() { "none" } else { &version };
    let cause = format!("expected pgvector 0.8 or newer, found {found}: ALTER EXTENSION vector UPDATE");
    Err(IndexError::Open(format!("cannot open {address}: {cause}")).into())
}

/// Whose vectors they are.
pub(super) async fn encoder(client: &Client) -> Result<Encoder, Fault> {
    let row = client.query_typed_one("SELECT encoder, dim FROM macrl_index", &[]).await?;
    Ok(Encoder { sha256: row.try_get(0)?, dim: row.try_get::<_, i32>(1)? as usize })
}

/// As [`encoder`], for somebody who only reads; an index that is not there is not made.
pub(super) async fn encoder_of(client: &Client, address: &Address) -> Result<Encoder, Fault> {
    match format(client).await? {
        Some(found) if found == MIGRATIONS.len() => encoder(client).await,
        Some(found) => {
            check_format(address, found)?;
            let cause = format!("it has the older format {found}: start a server on it first");
            Err(IndexError::Open(format!("cannot open {address}: {cause}")).into())
        }
        None => Err(IndexError::Open(format!("there is no index at {address}")).into()),
    }
}

async fn record(client: &Client, encoder: &Encoder) -> Result<(), Fault> {
    let dim = encoder.dim as i32;
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&encoder.sha256, Type::TEXT), (&dim, Type::INT4)];
    client.query_typed("UPDATE macrl_index SET encoder = $1, dim = $2", &values).await?;
    Ok(())
}

/// From now on items of this encoder are expected; refused where there are items of another.
///
/// Writers hold a lock on the table from before they look at the encoder until they have written, so nothing can come
/// between looking and changing here either.
pub(super) async fn adopt(client: &mut Pooled, given: &Encoder) -> Result<(), Fault> {
    if encoder(client).await? == *given {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute("LOCK TABLE macrl_items IN ACCESS EXCLUSIVE MODE").await?;
    let holds = encoder(transaction.client()).await?;
    if holds == *given {
        return Ok(transaction.commit().await?);
    }
    let items = count(transaction.client()).await?;
    if items > 0 {
        return Err(IndexError::Encoder { holds, items, given: given.clone() }.into());
    }
    let dim = given.dim;
    let change = format!(
        "DROP INDEX IF EXISTS macrl_items_graph; ALTER TABLE macrl_items ALTER COLUMN vector TYPE vector({dim});"
    );
    transaction.batch_execute(&change).await?;
    record(transaction.client(), given).await?;
    Ok(transaction.commit().await?)
}

/// Items.
pub(super) async fn count(client: &Client) -> Result<usize, tokio_postgres::Error> {
    let row = client.query_typed_one("SELECT count(*) FROM macrl_items", &[]).await?;
    Ok(row.try_get::<_, i64>(0)? as usize)
}
