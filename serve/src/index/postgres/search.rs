//! The nearest items.
//!
//! Whatever a search looks at, the scores it answers with are computed from the stored vectors.

use deadpool_postgres::Client;
use futures_util::future::try_join;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::super::{Encoder, Hit, IndexError, Near, Query};
use super::fault::Fault;
use super::statement::{Statement, Types};
use super::{conditions, rows, schema};

/// Who asks, and what is known of the index.
pub(super) struct Asker {
    pub(super) types: Types,
    /// Whose vectors the queries are.
    pub(super) encoder: Encoder,
    /// Items passing a filter that are compared one by one.
    pub(super) exact_up_to: usize,
    /// Whether there is a graph.
    pub(super) graph: bool,
}

impl Asker {
    /// One query.
    pub(super) async fn search(&self, client: &mut Client, query: &Query) -> Result<Vec<Hit>, Fault> {
        let rows = match self.rows(client, query).await {
            // Vectors of different lengths.
            Err(Fault::Database(error)) if error.code() == Some(&SqlState::DATA_EXCEPTION) => {
                self.check(client, &schema::encoder(client).await?).await?;
                return Err(error.into());
            }
            rows => rows?,
        };
        // Another replica may have given the index, once it was empty, to another encoder.
        if let Some(row) = rows.first() {
            let holds = Encoder { sha256: row.try_get(4)?, dim: self.encoder.dim };
            self.check(client, &holds).await?;
        }
        rows.iter().map(rows::hit).collect()
    }

    /// Every item that passes and scores at least `threshold`, best first.
    pub(super) async fn within(&self, client: &Client, query: &Query, threshold: f32) -> Result<Vec<Near>, Fault> {
        let mut statement = Statement::new("");
        let vector = self.begin(&mut statement, query);
        let rest = std::mem::take(statement.sql());
        // Through no graph: its order is by distance alone.
        *statement.sql() = format!(
            "SELECT id, score FROM (SELECT id, (1 - (vector <=> {vector}))::real AS score{rest}) AS all_of_them
             WHERE score >= {threshold:?}::real ORDER BY score DESC, id"
        );
        let near = |row: &Row| Ok(Near { id: row.try_get(0)?, score: row.try_get::<_, f32>(1)?.clamp(-1.0, 1.0) });
        statement.rows(client).await?.iter().map(near).collect()
    }

    async fn check(&self, client: &Client, holds: &Encoder) -> Result<(), Fault> {
        if *holds == self.encoder {
            return Ok(());
        }
        let (items, given) = (schema::count(client).await?, self.encoder.clone());
        Err(IndexError::Encoder { holds: holds.clone(), items, given }.into())
    }

    async fn rows(&self, client: &mut Client, query: &Query) -> Result<Vec<Row>, Fault> {
        let filtered = !query.filter.is_empty();
        if query.exact || filtered && !self.graph {
            return Ok(self.all(query).rows(client).await?);
        }
        let rows = match filtered {
            false => self.near(query).rows(client).await?,
            true => match self.few(client, query).await? {
                Some(rows) => return Ok(rows),
                None => self.filtered(client, query).await?,
            },
        };
        // A graph with many dead items, or a filter that passes far ones, can run out of candidates.
        if rows.len() < query.k && self.graph {
            return Ok(self.all(query).rows(client).await?);
        }
        Ok(rows)
    }

    /// ` FROM … WHERE …`, and the query's vector.
    fn begin(&self, statement: &mut Statement, query: &Query) -> String {
        let vector = statement.vector(&query.vector, &self.types);
        let mut sql = " FROM macrl_items WHERE true".to_string();
        if let Some(id) = query.except.as_ref().filter(|id| !id.contains('\0')) {
            let id = statement.text(id);
            sql.push_str(&format!(" AND id <> {id}"));
        }
        *statement.sql() = sql;
        conditions::push(statement, &query.filter);
        vector
    }

    /// Every item that passes is compared; no index serves this order.
    fn all(&self, query: &Query) -> Statement {
        let mut statement = Statement::new("");
        let vector = self.begin(&mut statement, query);
        let (columns, k) = (columns(&vector), query.k);
        let rest = std::mem::take(statement.sql());
        *statement.sql() = format!("SELECT {columns}{rest} ORDER BY score DESC, id LIMIT {k}");
        statement
    }

    /// Some more than asked for: their order among themselves is the graph's.
    fn near(&self, query: &Query) -> Statement {
        let mut statement = Statement::new("");
        let vector = self.begin(&mut statement, query);
        let (columns, k, candidates) = (columns(&vector), query.k, query.k + query.k / 2 + 8);
        let rest = std::mem::take(statement.sql());
        *statement.sql() = format!(
            "WITH near AS MATERIALIZED (
               SELECT id, vector, metadata, pictured{rest} ORDER BY vector <=> {vector} LIMIT {candidates}
             ) SELECT {columns} FROM near ORDER BY score DESC, id LIMIT {k}"
        );
        statement
    }

    /// The exact answer where few enough items pass the filter; `None` where more do.
    async fn few(&self, client: &Client, query: &Query) -> Result<Option<Vec<Row>>, Fault> {
        let mut statement = Statement::new("");
        let vector = self.begin(&mut statement, query);
        let (columns, k, most) = (columns(&vector), query.k, self.exact_up_to);
        let more = most + 1;
        let rest = std::mem::take(statement.sql());
        *statement.sql() = format!(
            "WITH few AS MATERIALIZED (
               SELECT id, (1 - (vector <=> {vector}))::real AS score{rest} LIMIT {more}
             ), best AS (SELECT id FROM few ORDER BY score DESC, id LIMIT {k})
             SELECT {columns}, (SELECT count(*) FROM few) FROM macrl_items WHERE id IN (SELECT id FROM best)
             ORDER BY score DESC, id"
        );
        let rows = statement.rows(client).await?;
        let passing = rows.first().map(|row| row.try_get::<_, i64>(5)).transpose()?.unwrap_or(0);
        Ok((passing as usize <= most).then_some(rows))
    }

    /// Through the graph although there is a filter: PostgreSQL knows little of what a filter on JSONB keeps.
    async fn filtered(&self, client: &mut Client, query: &Query) -> Result<Vec<Row>, Fault> {
        let statement = self.near(query);
        let transaction = client.build_transaction().read_only(true).start().await?;
        let hints = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off";
        let (_, rows) = try_join(transaction.batch_execute(hints), statement.rows(transaction.client())).await?;
        transaction.commit().await?;
        Ok(rows)
    }
}

/// What [`rows::hit`] reads, and whose vectors they are.
fn columns(vector: &str) -> String {
    format!("id, (1 - (vector <=> {vector}))::real AS score, metadata, pictured, (SELECT encoder FROM macrl_index)")
}
