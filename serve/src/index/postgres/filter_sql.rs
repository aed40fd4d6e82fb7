//! Turns filters into SQL over the JSONB column `fields`, and metadata into that column's value.
//!
//! JSONB cannot hold U+0000 and does not keep the spelling of a number.  That is enough: `fields` only answers filters, and
//! clients get the text in the column beside it.  Stored values and filters both pass [`searchable`], so that two values
//! match here exactly if their keys match in the embedded index.

use std::fmt::Write;
use std::ops::Bound;

use serde_json::{Number, Value};

use super::super::filter::{Condition, Filter, Range, as_integer};
use super::super::item::JsonMap;
use super::statement::Statement;

/// Up to so many values of one `in` are looked up in the index over `fields`; more are compared row by row.
const LOOKED_UP: usize = 32;

/// The value of the column for an item's metadata.
pub(super) fn fields(metadata: &JsonMap) -> String {
    Value::Object(metadata.iter().map(|(key, value)| (escaped(key), searchable(value))).collect()).to_string()
}

/// The value in a form that JSONB can hold.
fn searchable(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(escaped(text)),
        Value::Number(number) => Value::Number(as_integer(number)),
        Value::Array(list) => list.iter().map(searchable).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (escaped(key), searchable(value))).collect(),
        other => other.clone(),
    }
}

/// The text without U+0000; different texts stay different: U+0001 is the escape character.
fn escaped(text: &str) -> String {
    if !text.contains(['\0', '\u{1}']) {
        return text.into();
    }
    text.replace('\u{1}', "\u{1}1").replace('\0', "\u{1}0")
}

/// Appends ` AND …` for each condition.
pub(super) fn append(statement: &mut Statement, filter: &Filter) {
    for (field, condition) in &filter.conditions {
        let sql = match condition {
            Condition::In(values) => one_of(statement, field, values),
            Condition::Range(range) => between(statement, field, range),
        };
        statement.sql().push_str(&sql);
    }
}

/// Equality with one of the values.  The index finds rows that contain one; the comparison keeps those that are equal.
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

/// A range of numbers.  The type is checked, because JSONB also orders values of different types.
fn between(statement: &mut Statement, field: &str, range: &Range) -> String {
    let name = statement.text(escaped(field));
    let mut sql = format!(" AND jsonb_typeof(fields -> {name}) = 'number'");
    let mut end = |bound: &Bound<Number>, inclusive: &str, exclusive: &str| {
        let (number, operator) = match bound {
            Bound::Included(number) => (number, inclusive),
            Bound::Excluded(number) => (number, exclusive),
            Bound::Unbounded => return,
        };
        let number = statement.text(as_integer(number).to_string());
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
    fn escaped_texts_differ_and_have_no_nul() {
        let texts = ["\0", "\u{1}", "\u{1}0", "\u{1}1", "\0\u{1}", "a\0b", "plain"];
        let escaped: std::collections::HashSet<String> = texts.iter().map(|text| escaped(text)).collect();
        assert_eq!(escaped.len(), texts.len());
        assert!(escaped.iter().all(|text| !text.contains('\0')));
        let Value::Object(metadata) = json!({ "k\0": ["\0", { "\u{1}": 1 }] }) else { unreachable!() };
        assert_eq!(fields(&metadata), "{\"k\\u00010\":[\"\\u00010\",{\"\\u00011\":1}]}");
    }
}
