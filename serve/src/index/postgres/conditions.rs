//! A filter as SQL over the JSONB column `fields`, and metadata as that column holds it.
//!
//! JSONB knows neither U+0000 nor the spelling of a number, and it need not: `fields` only answers filters, what comes
//! back to a client is the text beside it.  Both what is stored and what is asked for pass [`searchable`], so that
//! the two meet exactly where the embedded index's keys do.

use std::fmt::Write;
use std::ops::Bound;

use serde_json::{Number, Value};

use super::super::filter::whole;
use super::super::{Condition, Filter, Metadata, Range};
use super::statement::Statement;

/// Values of one `in` that the index over `fields` is asked for, one by one; more are compared row by row.
const LOOKED_UP: usize = 32;

/// An item's metadata, for the column.
pub(super) fn fields(metadata: &Metadata) -> String {
    Value::Object(metadata.iter().map(|(key, value)| (escaped(key), searchable(value))).collect()).to_string()
}

/// The same value in JSONB's reach.
fn searchable(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(escaped(text)),
        Value::Number(number) => Value::Number(whole(number)),
        Value::Array(list) => list.iter().map(searchable).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (escaped(key), searchable(value))).collect(),
        other => other.clone(),
    }
}

/// Without U+0000, and different for different texts: U+0001 leads a pair.
fn escaped(text: &str) -> String {
    if !text.contains(['\0', '\u{1}']) {
        return text.into();
    }
    text.replace('\u{1}', "\u{1}1").replace('\0', "\u{1}0")
}

/// Adds ` AND …` for each condition.
pub(super) fn push(statement: &mut Statement, filter: &Filter) {
    for (field, condition) in &filter.conditions {
        let sql = match condition {
            Condition::In(values) => one_of(statement, field, values),
            Condition::Range(range) => between(statement, field, range),
        };
        statement.sql().push_str(&sql);
    }
}

/// Equality: what contains a value is looked up, what contains it without being equal to it is not taken.
fn one_of(statement: &mut Statement, field: &str, values: &[Value]) -> String {
    let name = statement.text(escaped(field));
    let values: Vec<Value> = values.iter().map(searchable).collect();
    let texts = statement.texts(values.iter().map(Value::to_string).collect());
    let mut sql = format!(" AND fields -> {name} = ANY ({texts}::jsonb[])");
    if !values.is_empty() && values.len() <= LOOKED_UP {
        let mut contains = |value: Value| {
            let one = Value::Object([(escaped(field), value)].into_iter().collect());
            format!("fields @> {}::jsonb", statement.text(one.to_string()))
        };
        let lookups: Vec<String> = values.into_iter().map(&mut contains).collect();
        let _ = write!(sql, " AND ({})", lookups.join(" OR "));
    }
    sql
}

/// Numbers only: JSONB orders values of different kinds, too.
fn between(statement: &mut Statement, field: &str, range: &Range) -> String {
    let name = statement.text(escaped(field));
    let mut sql = format!(" AND jsonb_typeof(fields -> {name}) = 'number'");
    let mut end = |bound: &Bound<Number>, inclusive: &str, exclusive: &str| {
        let (number, operator) = match bound {
            Bound::Included(number) => (number, inclusive),
            Bound::Excluded(number) => (number, exclusive),
            Bound::Unbounded => return,
        };
        let number = statement.text(whole(number).to_string());
        let _ = write!(sql, " AND fields -> {name} {operator} {number}::jsonb");
    };
    end(&range.low, ">=", ">");
    end(&range.high, "<=", "<");
    sql
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_that_jsonb_cannot_hold_stay_apart() {
        let texts = ["\0", "\u{1}", "\u{1}0", "\u{1}1", "\0\u{1}", "a\0b", "plain"];
        let escaped: std::collections::HashSet<String> = texts.iter().map(|text| escaped(text)).collect();
        assert_eq!(escaped.len(), texts.len());
        assert!(escaped.iter().all(|text| !text.contains('\0')));
        let Value::Object(metadata) = json!({ "k\0": ["\0", { "\u{1}": 1 }] }) else { unreachable!() };
        assert_eq!(fields(&metadata), "{\"k\\u00010\":[\"\\u00010\",{\"\\u00011\":1}]}");
    }
}
