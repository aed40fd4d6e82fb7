//! Searches.  Scores are always computed from the stored vectors, also if the graph found the candidates.

use deadpool_postgres::Client;
use futures_util::future::try_join;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::super::error::IndexError;
use super::super::item::{EncoderIdentity, Hit, ScoredId};
use super::super::query::Query;
use super::error::QueryError;
use super::statement::{Statement, VectorTypes};
use super::{filter_sql, rows, schema};

/// What this process knows about the index when it sends a query.
pub(super) struct SearchContext {
    pub(super) types: VectorTypes,
    /// The encoder of the queries' vectors.
    pub(super) encoder: EncoderIdentity,
    /// If no more items than this pass a filter, they are compared exactly.
    pub(super) exact_up_to: usize,
    pub(super) has_graph: bool,
}

impl SearchContext {
    /// The hits of one query.
    pub(super) async fn search(&self, client: &mut Client, query: &Query) -> Result<Vec<Hit>, QueryError> {
        let rows = match self.rows(client, query).await {
            // The stored vectors have another length: another encoder was adopted.
            Err(QueryError::Database(error)) if error.code() == Some(&SqlState::DATA_EXCEPTION) => {
                self.check(client, &schema::encoder(client).await?).await?;
                return Err(error.into());
            }
            rows => rows?,
        };
        // While the index was empty, another replica may have adopted another encoder.
        if let Some(row) = rows.first() {
            let holds = EncoderIdentity { sha256: row.try_get(4)?, dim: self.encoder.dim };
            self.check(client, &holds).await?;
        }
        rows.iter().map(rows::hit).collect()
    }

    /// Every item that passes and scores at least `threshold`, best first.
    pub(super) async fn within(
        &self,
        client: &Client,
        query: &Query,
        threshold: f32,
    ) -> Result<Vec<ScoredId>, QueryError> {
        let mut statement = Statement::new("");
        let vector = self.begin(&mut statement, query);
        let rest = std::mem::take(statement.sql());
        // The graph is not used: it would not find all of them.
        *statement.sql() = format!(
            "SELECT id, score FROM (SELECT id, (1 - (vector <=> {vector}))::real AS score{rest}) AS scored
             WHERE score >= {threshold:?}::real ORDER BY score DESC, id"
        );
        let near = |row: &Row| Ok(ScoredId { id: row.try_get(0)?, score: row.try_get::<_, f32>(1)?.clamp(-1.0, 1.0) });
        statement.rows(client).await?.iter().map(near).collect()
    }

    async fn check(&self, client: &Client, holds: &EncoderIdentity) -> Result<(), QueryError> {
        if *holds == self.encoder {
            return Ok(());
        }
        let (items, given) = (schema::count(client).await?, self.encoder.clone());
        Err(IndexError::EncoderMismatch { holds: holds.clone(), items, given }.into())
    }

    async fn rows(&self, client: &mut Client, query: &Query) -> Result<Vec<Row>, QueryError> {
        let filtered = !query.filter.is_empty();
        if query.exact || filtered && !self.has_graph {
            return Ok(self.exact(query).rows(client).await?);
        }
        let rows = match filtered {
            false => self.approximate(query).rows(client).await?,
            true => match self.exact_if_few(client, query).await? {
                Some(rows) => return Ok(rows),
                None => self.approximate_filtered(client, query).await?,
            },
        };
        // The graph can run out of candidates if many of its items were deleted or the filter passes distant ones only.
        if rows.len() < query.k && self.has_graph {
            return Ok(self.exact(query).rows(client).await?);
        }
        Ok(rows)
    }

    /// Begins a statement with ` FROM … WHERE …`; returns the placeholder of the query's vector.
    fn begin(&self, statement: &mut Statement, query: &Query) -> String {
        let vector = statement.vector(&query.vector, &self.types);
        let mut sql = " FROM macrl_items WHERE true".to_string();
        if let Some(id) = query.except.as_ref().filter(|id| !id.contains('\0')) {
            let id = statement.text(id);
            sql.push_str(&format!(" AND id <> {id}"));
        }
        *statement.sql() = sql;
        filter_sql::append(statement, &query.filter);
        vector
    }

    /// The exact answer: every item that passes is compared.  No index serves this order.
    fn exact(&self, query: &Query) -> Statement {
        let mut statement = Statement::new("");
        let vector = self.begin(&mut statement, query);
        let (columns, k) = (columns(&vector), query.k);
        let rest = std::mem::take(statement.sql());
        *statement.sql() = format!("SELECT {columns}{rest} ORDER BY score DESC, id LIMIT {k}");
        statement
    }

    /// The answer through the graph.  It gives more candidates than asked for, whose exact scores are then sorted.
    fn approximate(&self, query: &Query) -> Statement {
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

    /// The exact answer if few items pass the filter; `None` if many do.
    async fn exact_if_few(&self, client: &Client, query: &Query) -> Result<Option<Vec<Row>>, QueryError> {
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

    /// The answer through the graph with a filter.  Other plans are switched off: PostgreSQL cannot estimate how many rows
    /// pass a filter on JSONB.
    async fn approximate_filtered(&self, client: &mut Client, query: &Query) -> Result<Vec<Row>, QueryError> {
        let statement = self.approximate(query);
        let transaction = client.build_transaction().read_only(true).start().await?;
        let hints = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off";
        let (_, rows) = try_join(transaction.batch_execute(hints), statement.rows(transaction.client())).await?;
        transaction.commit().await?;
        Ok(rows)
    }
}

/// The columns that [`rows::hit`] reads, and the encoder of the vectors.
fn columns(vector: &str) -> String {
    format!("id, (1 - (vector <=> {vector}))::real AS score, metadata, pictured, (SELECT encoder FROM macrl_index)")
}
