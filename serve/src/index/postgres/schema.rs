//! Creates and migrates the tables, and records which encoder's vectors they hold.
//!
//! Migrations are numbered and run in one transaction under an advisory lock, so replicas that start together run them once.
//! If there is nothing to migrate, the role only needs to read and write rows.  All tables are in the connection's current
//! schema: `?options=-csearch_path%3Dphotos,public` keeps several indexes in one database.

use deadpool_postgres::Client as Pooled;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::super::error::IndexError;
use super::super::item::EncoderIdentity;
use super::address::Address;
use super::error::{QueryError, message};

/// pgvector's limit for a `vector` column.
const MAX_DIMENSIONS: usize = 16_000;

/// Step n makes format n + 1 of format n; `{dim}` stands for D.
///
/// Vectors are stored in the row (`STORAGE MAIN`, rows up to 8 kB): out of line, each comparison would look into another
/// table.  Thumbnails have a table of their own, so searches do not read them.  `metadata` is the text that clients get,
/// `fields` is for filters.
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

/// Version of the tables; see docs/formats.md.
pub(super) const FORMAT: usize = MIGRATIONS.len();

/// Lets one process at a time migrate the tables of a schema.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('macrl tables of ' || current_schema(), 0))";

/// Creates or migrates the tables and checks that they hold items of this encoder, or none.
pub(super) async fn prepare(
    client: &mut Pooled,
    address: &Address,
    encoder: &EncoderIdentity,
) -> Result<(), QueryError> {
    let open = |cause: &str| QueryError::Index(IndexError::Open(format!("cannot open {address}: {cause}")));
    if encoder.dim > MAX_DIMENSIONS {
        return Err(open(&format!("a vector has at most {MAX_DIMENSIONS} numbers, found {}", encoder.dim)));
    }
    check_server(client, address).await?;
    if format(client).await? != Some(MIGRATIONS.len()) {
        migrate(client, address, encoder).await?;
    }
    check_extension(client, address).await?;
    adopt(client, encoder).await
}

/// Checks that the database can hold any text and has a schema for the tables.
async fn check_server(client: &Client, address: &Address) -> Result<(), QueryError> {
    let asked = "SELECT current_setting('server_encoding'), current_schema()";
    let row = client.query_typed_one(asked, &[]).await?;
    let cause = match (row.try_get::<_, &str>(0)?, row.try_get::<_, Option<&str>>(1)?) {
        ("UTF8", Some(_)) => return Ok(()),
        ("UTF8", None) => "no schema of its search_path exists".to_string(),
        (other, _) => format!("expected a database in UTF8, found {other}"),
    };
    Err(IndexError::Open(format!("cannot open {address}: {cause}")).into())
}

/// SQL for the OID of one of our tables or indexes; null if it does not exist.  `to_regclass` is not used: it would find
/// those of another schema, and within a transaction it remembers that one did not exist.
pub(super) fn oid(name: &str) -> String {
    format!(
        "(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
          WHERE relname = '{name}' AND nspname = current_schema())"
    )
}

/// Format of the tables; `None` if there are none.
async fn format(client: &Client) -> Result<Option<usize>, QueryError> {
    let there = client.query_typed_one(&format!("SELECT {} IS NOT NULL", oid("macrl_index")), &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let row = client.query_typed_one("SELECT format FROM macrl_index", &[]).await?;
    Ok(Some(row.try_get::<_, i32>(0)? as usize))
}

async fn migrate(client: &mut Pooled, address: &Address, encoder: &EncoderIdentity) -> Result<(), QueryError> {
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

/// Refuses tables of a later version of this program.
fn check_format(address: &Address, found: usize) -> Result<(), IndexError> {
    let known = MIGRATIONS.len();
    if found <= known {
        return Ok(());
    }
    Err(IndexError::Open(format!("{address} has format {found}, this program reads format {known}")))
}

/// Explains missing privileges and a missing extension.
fn explain(address: &Address, error: tokio_postgres::Error) -> QueryError {
    let missing = [SqlState::UNDEFINED_FILE, SqlState::FEATURE_NOT_SUPPORTED];
    let cause = match error.code() {
        Some(code) if missing.contains(code) => {
            format!("its server has no pgvector ({}): install it, 0.8 or newer", message(&error))
        }
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            format!(
                "{}: let an administrator run CREATE EXTENSION vector and grant CREATE on the schema",
                message(&error)
            )
        }
        _ => return error.into(),
    };
    IndexError::Open(format!("cannot open {address}: {cause}")).into()
}

/// Requires pgvector 0.8: since then, a search with a filter goes on until it has enough items.
async fn check_extension(client: &Client, address: &Address) -> Result<(), QueryError> {
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

/// The encoder whose vectors the tables hold.
pub(super) async fn encoder(client: &Client) -> Result<EncoderIdentity, QueryError> {
    let row = client.query_typed_one("SELECT encoder, dim FROM macrl_index", &[]).await?;
    Ok(EncoderIdentity { sha256: row.try_get(0)?, dim: row.try_get::<_, i32>(1)? as usize })
}

/// As [`encoder`], for a reader: tables that do not exist are not created.
pub(super) async fn encoder_of(client: &Client, address: &Address) -> Result<EncoderIdentity, QueryError> {
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

async fn record(client: &Client, encoder: &EncoderIdentity) -> Result<(), QueryError> {
    let dim = encoder.dim as i32;
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&encoder.sha256, Type::TEXT), (&dim, Type::INT4)];
    client.query_typed("UPDATE macrl_index SET encoder = $1, dim = $2", &values).await?;
    Ok(())
}

/// Records that items of this encoder are expected from now on; refused if there are items of another one.
///
/// Writers lock the table before they read the encoder and until they have committed.  The exclusive lock here waits for
/// them, so no item of the old encoder can be added after the count.
pub(super) async fn adopt(client: &mut Pooled, given: &EncoderIdentity) -> Result<(), QueryError> {
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
        return Err(IndexError::EncoderMismatch { holds, items, given: given.clone() }.into());
    }
    let dim = given.dim;
    let change = format!(
        "DROP INDEX IF EXISTS macrl_items_graph; ALTER TABLE macrl_items ALTER COLUMN vector TYPE vector({dim});"
    );
    transaction.batch_execute(&change).await?;
    record(transaction.client(), given).await?;
    Ok(transaction.commit().await?)
}

/// Number of items.
pub(super) async fn count(client: &Client) -> Result<usize, tokio_postgres::Error> {
    let row = client.query_typed_one("SELECT count(*) FROM macrl_items", &[]).await?;
    Ok(row.try_get::<_, i64>(0)? as usize)
}
