//! SQL statements with bound values.  Text from a client never becomes part of the SQL.

use pgvector::Vector;
use tokio_postgres::types::{Kind, Oid, ToSql, Type};
use tokio_postgres::{Client, Error, Row};

/// pgvector's types, whose OIDs differ between databases.
#[derive(Debug, Clone)]
pub(super) struct VectorTypes {
    vector: Type,
    vectors: Type,
}

impl VectorTypes {
    /// Looks the types up in a database.
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
/// After some runs, PostgreSQL would plan a prepared statement for arbitrary values, and for an arbitrary `LIMIT` and filter
/// it prefers reading the whole table to the graph.
pub(super) struct Statement {
    sql: String,
    values: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

impl Statement {
    /// A statement without values.
    pub(super) fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), values: Vec::new() }
    }

    /// Binds a value; returns its placeholder in the SQL.
    pub(super) fn bind(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> String {
        self.values.push((Box::new(value), kind));
        format!("${}", self.values.len())
    }

    /// Binds a text.
    pub(super) fn text(&mut self, value: impl Into<String>) -> String {
        self.bind(value.into(), Type::TEXT)
    }

    /// Binds a list of texts.
    pub(super) fn texts(&mut self, values: Vec<String>) -> String {
        self.bind(values, Type::TEXT_ARRAY)
    }

    /// Binds a vector.
    pub(super) fn vector(&mut self, value: &[f32], types: &VectorTypes) -> String {
        self.bind(Vector::from(value.to_vec()), types.vector.clone())
    }

    /// Binds a list of vectors.
    pub(super) fn vectors(&mut self, values: Vec<Vec<f32>>, types: &VectorTypes) -> String {
        let values: Vec<Vector> = values.into_iter().map(Vector::from).collect();
        self.bind(values, types.vectors.clone())
    }

    /// The SQL, to be appended to.
    pub(super) fn sql(&mut self) -> &mut String {
        &mut self.sql
    }

    /// Runs the statement.
    pub(super) async fn rows(&self, client: &Client) -> Result<Vec<Row>, Error> {
        let values: Vec<(&(dyn ToSql + Sync), Type)> =
            self.values.iter().map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone())).collect();
        client.query_typed(&self.sql, &values).await
    }
}
