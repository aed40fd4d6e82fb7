//! The write operations.  A batch is one transaction: when it is answered, all of it is committed or nothing.

use std::collections::BTreeMap;

use deadpool_postgres::Client;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::error::IndexError;
use super::super::item::{EncoderIdentity, Item, check_id};
use super::error::QueryError;
use super::filter_sql::fields;
use super::schema;
use super::statement::{Statement, VectorTypes};

/// Items of one transaction.
pub(super) struct Batch {
    encoder: EncoderIdentity,
    /// Sorted by id: transactions with common items lock them in the same order and cannot deadlock.
    items: BTreeMap<String, Item>,
    /// For each given item its id and whether it is the first with that id, or why it is not stored.
    verdicts: Vec<Result<(String, bool), IndexError>>,
}

impl Batch {
    /// If two items have the same id, the later one is stored.
    pub(super) fn new(encoder: &EncoderIdentity, given: Vec<Item>) -> Self {
        let mut items = BTreeMap::new();
        let verdicts = given.into_iter().map(|item| {
            check(&item, encoder.dim)?;
            let id = item.id.clone();
            Ok((id.clone(), items.insert(id, item).is_none()))
        });
        let verdicts = verdicts.collect();
        Self { encoder: encoder.clone(), items, verdicts }
    }

    /// Stores the batch; returns for each given item whether it is new.
    pub(super) async fn put(
        &self,
        client: &mut Client,
        types: &VectorTypes,
    ) -> Result<Vec<Result<bool, IndexError>>, QueryError> {
        let transaction = client.transaction().await?;
        // From here on, no other process can change the encoder.
        transaction.batch_execute("LOCK TABLE macrl_items IN ROW EXCLUSIVE MODE").await?;
        let holds = schema::encoder(transaction.client()).await?;
        if holds != self.encoder {
            let items = schema::count(transaction.client()).await?;
            return Err(IndexError::EncoderMismatch { holds, items, given: self.encoder.clone() }.into());
        }
        let mut created = BTreeMap::new();
        if !self.items.is_empty() {
            let client = transaction.client();
            for row in self.upsert(types).rows(client).await? {
                created.insert(row.try_get::<_, String>(0)?, row.try_get::<_, bool>(1)?);
            }
            for statement in self.thumbnails(&created) {
                statement.rows(client).await?;
            }
        }
        transaction.commit().await?;
        let outcome = |verdict: &Result<(String, bool), IndexError>| {
            let (id, first) = verdict.clone()?;
            Ok(first && created.get(&id).copied().unwrap_or(false))
        };
        Ok(self.verdicts.iter().map(outcome).collect())
    }

    /// The statement that stores the items.  It returns ids and whether each is new: a row that replaces no other has xmax 0.
    fn upsert(&self, types: &VectorTypes) -> Statement {
        let mut statement = Statement::new("");
        let of = |column: fn(&Item) -> String| self.items.values().map(column).collect::<Vec<String>>();
        let ids = statement.texts(of(|item| item.id.clone()));
        let vectors = statement.vectors(self.items.values().map(|item| item.vector.clone()).collect(), types);
        let metadata = statement.texts(of(|item| item.metadata.as_str().to_string()));
        let fields = statement.texts(of(|item| fields(&item.metadata.to_map())));
        let hashes: Vec<Option<Vec<u8>>> = self.items.values().map(|item| item.hash.map(Vec::from)).collect();
        let hashes = statement.bind(hashes, Type::BYTEA_ARRAY);
        let pictured: Vec<bool> = self.items.values().map(|item| item.image.is_some()).collect();
        let pictured = statement.bind(pictured, Type::BOOL_ARRAY);
        *statement.sql() = format!(
            "INSERT INTO macrl_items AS old (id, vector, metadata, fields, hash, pictured)
             SELECT id, vector, metadata, fields::jsonb, hash, pictured
             FROM unnest({ids}, {vectors}, {metadata}, {fields}, {hashes}, {pictured})
               AS new(id, vector, metadata, fields, hash, pictured)
             ON CONFLICT (id) DO UPDATE SET vector = excluded.vector, metadata = excluded.metadata,
               fields = excluded.fields, hash = excluded.hash, pictured = excluded.pictured
             RETURNING old.id, old.xmax = 0"
        );
        statement
    }

    /// The statements that store the thumbnails of these items and delete those of replaced items.
    fn thumbnails(&self, created: &BTreeMap<String, bool>) -> Vec<Statement> {
        let (with, without): (Vec<&Item>, Vec<&Item>) = self.items.values().partition(|item| item.image.is_some());
        let replaced = without.into_iter().filter(|item| created.get(&item.id) == Some(&false));
        let replaced: Vec<String> = replaced.map(|item| item.id.clone()).collect();
        let mut statements = Vec::new();
        if !replaced.is_empty() {
            let mut statement = Statement::new("DELETE FROM macrl_pictures WHERE id = ANY (");
            let ids = statement.texts(replaced);
            statement.sql().push_str(&format!("{ids})"));
            statements.push(statement);
        }
        if !with.is_empty() {
            let mut statement = Statement::new("");
            let ids = statement.texts(with.iter().map(|item| item.id.clone()).collect());
            let pngs: Vec<Vec<u8>> = with.iter().filter_map(|item| item.image.as_deref().map(Vec::from)).collect();
            let pngs = statement.bind(pngs, Type::BYTEA_ARRAY);
            *statement.sql() = format!(
                "INSERT INTO macrl_pictures (id, png) SELECT * FROM unnest({ids}, {pngs})
                 ON CONFLICT (id) DO UPDATE SET png = excluded.png"
            );
            statements.push(statement);
        }
        statements
    }
}

fn check(item: &Item, dim: usize) -> Result<(), IndexError> {
    let found = item.vector.len();
    if found != dim {
        return Err(IndexError::Dimension { expected: dim, found });
    }
    // Callers have checked the id.  A bad one would make PostgreSQL refuse the whole batch.
    check_id(&item.id).map_err(IndexError::Storage)
}

/// Removes an item and its thumbnail; returns whether there was one.
pub(super) async fn delete(client: &Client, id: &str) -> Result<bool, QueryError> {
    let mut statement = Statement::new("DELETE FROM macrl_items WHERE id = ");
    let id = statement.text(id);
    statement.sql().push_str(&format!("{id} RETURNING id"));
    let gone: Vec<Row> = statement.rows(client).await?;
    Ok(!gone.is_empty())
}
