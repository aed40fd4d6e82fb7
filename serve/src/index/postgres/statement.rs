//! SQL and its values.  Every value is bound: no text of a client's ever becomes part of a statement.

use pgvector::Vector;
use tokio_postgres::types::{Kind, Oid, ToSql, Type};
use tokio_postgres::{Client, Error, Row};

/// pgvector's types, which have another number in every data base.
#[derive(Debug, Clone)]
pub(super) struct Types {
    vector: Type,
    vectors: Type,
}

impl Types {
    /// As this data base knows them.
    pub(super) async fn read(client: &Client) -> Result<Self, Error> {
        let row = client.query_typed_one("SELECT 'vector'::regtype::oid, 'vector[]'::regtype::oid", &[]).await?;
        let named = |name: &str, oid: Oid, kind: Kind| Type::new(name.into(), oid, kind, "public".into());
        let vector = named("vector", row.try_get(0)?, Kind::Simple);
        let vectors = named("_vector", row.try_get(1)?, Kind::Array(vector.clone()));
        Ok(Self { vector, vectors })
    }
}

/// A statement that is planned for its values each time it runs, in one round trip.
///
/// Statements that are prepared once would after some runs be planned for any values, and with any `LIMIT` and any
/// filter PostgreSQL rather reads the whole table than the graph.
pub(super) struct Statement {
    sql: String,
    values: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

impl Statement {
    /// Without values.
    pub(super) fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), values: Vec::new() }
    }

    /// Adds a value; what stands for it in the SQL.
    pub(super) fn bind(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> String {
        self.values.push((Box::new(value), kind));
        format!("${}", self.values.len())
    }

    /// Adds a text.
    pub(super) fn text(&mut self, value: impl Into<String>) -> String {
        self.bind(value.into(), Type::TEXT)
    }

    /// Adds a list of texts.
    pub(super) fn texts(&mut self, values: Vec<String>) -> String {
        self.bind(values, Type::TEXT_ARRAY)
    }

    /// Adds a vector.
    pub(super) fn vector(&mut self, value: &[f32], types: &Types) -> String {
        self.bind(Vector::from(value.to_vec()), types.vector.clone())
    }

    /// Adds a list of vectors.
    pub(super) fn vectors(&mut self, values: Vec<Vec<f32>>, types: &Types) -> String {
        let values: Vec<Vector> = values.into_iter().map(Vector::from).collect();
        self.bind(values, types.vectors.clone())
    }

    /// The SQL so far, to be made longer.
    pub(super) fn sql(&mut self) -> &mut String {
        &mut self.sql
    }

    /// Runs it.
    pub(super) async fn rows(&self, client: &Client) -> Result<Vec<Row>, Error> {
        let values: Vec<(&(dyn ToSql + Sync), Type)> =
            self.values.iter().map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone())).collect();
        client.query_typed(&self.sql, &values).await
    }
}
