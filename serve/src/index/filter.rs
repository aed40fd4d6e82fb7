//! Filters of searches and listings: conditions on top-level metadata fields, all of which must hold.
//!
//! As JSON, `{"label": "cat"}` is equality, `{"label": {"in": ["cat", "dog"]}}` is equality with one of several values, and
//! `{"year": {"gte": 2000, "lt": 2010}}` is a range of numbers.  `{"shape": {"eq": {...}}}` is equality with a value that is
//! itself an object.  Numbers are equal by value (1 is 1.0).  A missing field meets no condition, not even equality with null.

use std::ops::Bound;

use serde_json::{Number, Value};

use super::item::JsonMap;

/// A range of numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Range {
    /// Lower end of the range.
    pub low: Bound<Number>,
    /// Upper end of the range.
    pub high: Bound<Number>,
}

/// A condition on the value of one field.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// Equal to one of these values; plain equality is a list of one.
    In(Vec<Value>),
    /// A number in this range.
    Range(Range),
}

/// Conditions on fields; without any, every item passes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    /// Each field's name and its condition.
    pub conditions: Vec<(String, Condition)>,
}

impl Filter {
    /// Parses a filter; the module's documentation describes its form.
    ///
    /// # Errors
    /// One sentence about the part of the filter that is wrong.
    ///
    /// # Examples
    /// ```
    /// use macrl_serve::index::Filter;
    ///
    /// let parse = |json: &str| Filter::parse(serde_json::from_str(json).unwrap());
    /// let filter = parse(r#"{"label": {"in": ["cat", "dog"]}, "year": {"gte": 2020}}"#)?;
    /// assert_eq!(filter.conditions.len(), 2);
    /// assert!(parse(r#"{"year": {"above": 2020}}"#).is_err());
    /// # Ok::<(), String>(())
    /// ```
    pub fn parse(json: JsonMap) -> Result<Self, String> {
        let conditions = json.into_iter().map(|(field, value)| {
            let condition = condition(value).map_err(|e| format!("filter on `{field}`: {e}"))?;
            Ok((field, condition))
        });
        Ok(Self { conditions: conditions.collect::<Result<_, String>>()? })
    }

    /// Whether it has no condition, so that every item passes.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }
}

/// The number as an integer, if it is integral: 1.0 becomes 1.  The exact value of a large float is used, which differs from
/// its shortest decimal spelling.
pub(super) fn as_integer(number: &Number) -> Number {
    let integral = |float: &f64| number.is_f64() && float.fract() == 0.0;
    match number.as_f64().filter(integral) {
        // Beyond 64 bits there is no integer to compare it with.
        Some(float) if (0.0..18_446_744_073_709_551_616.0).contains(&float) => Number::from(float as u64),
        Some(float) if (-9_223_372_036_854_775_808.0..0.0).contains(&float) => Number::from(float as i64),
        _ => number.clone(),
    }
}

fn condition(value: Value) -> Result<Condition, String> {
    let Value::Object(operators) = value else { return Ok(Condition::In(vec![value])) };
    let mut range = Range { low: Bound::Unbounded, high: Bound::Unbounded };
    let alone = operators.len() == 1;
    let empty = operators.is_empty();
    for (operator, operand) in operators {
        match operator.as_str() {
            "eq" if alone => return Ok(Condition::In(vec![operand])),
            "in" if alone => match operand {
                Value::Array(values) => return Ok(Condition::In(values)),
                other => return Err(format!("`in` expects a list, found {other}")),
            },
            "gt" if range.low == Bound::Unbounded => range.low = Bound::Excluded(number(&operator, operand)?),
            "gte" if range.low == Bound::Unbounded => range.low = Bound::Included(number(&operator, operand)?),
            "lt" if range.high == Bound::Unbounded => range.high = Bound::Excluded(number(&operator, operand)?),
            "lte" if range.high == Bound::Unbounded => range.high = Bound::Included(number(&operator, operand)?),
            _ => return Err(expected(&format!("`{operator}`"))),
        }
    }
    if empty { Err(expected("an empty object")) } else { Ok(Condition::Range(range)) }
}

fn expected(found: &str) -> String {
    format!("expected a value, {{\"eq\"}}, {{\"in\"}}, or at most one of gt, gte and one of lt, lte; found {found}")
}

fn number(operator: &str, operand: Value) -> Result<Number, String> {
    match operand {
        Value::Number(number) => Ok(number),
        other => Err(format!("`{operator}` expects a number, found {other}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: Value) -> Result<Filter, String> {
        let Value::Object(map) = json else { panic!("not an object") };
        Filter::parse(map)
    }

    #[test]
    fn an_integral_float_equals_the_integer() {
        for (spelled, means) in [
            ("1.0", "1"),
            ("-0.0", "0"),
            ("1.5", "1.5"),
            ("7", "7"),
            ("1.2345678901234567e18", "1234567890123456768"),
            ("-1.2345678901234567e18", "-1234567890123456768"),
        ] {
            let number: Number = serde_json::from_str(spelled).unwrap();
            assert_eq!(as_integer(&number).to_string(), means);
        }
        // Beyond the largest integer it stays a float.
        let large = Number::from_f64(1e300).unwrap();
        assert_eq!(as_integer(&large), large);
    }

    #[test]
    fn every_operator_is_parsed() {
        let filter = parse(json!({
            "a": 1, "b": {"in": ["x", null]}, "c": {"gt": 1, "lte": 2.5}, "d": {"eq": {"in": [1]}}, "e": [1]
        }));
        let range =
            Range { low: Bound::Excluded(Number::from(1)), high: Bound::Included(Number::from_f64(2.5).unwrap()) };
        let expected = [
            ("a", Condition::In(vec![json!(1)])),
            ("b", Condition::In(vec![json!("x"), Value::Null])),
            ("c", Condition::Range(range)),
            ("d", Condition::In(vec![json!({"in": [1]})])),
            ("e", Condition::In(vec![json!([1])])),
        ];
        assert_eq!(filter.unwrap().conditions, expected.map(|(field, c)| (field.to_string(), c)));
    }

    #[test]
    fn mistakes_name_the_field_and_what_was_found() {
        for (wrong, hint) in [
            (json!({"a": {"near": 1}}), "`near`"),
            (json!({"a": {}}), "an empty object"),
            (json!({"a": {"gt": "1"}}), "`gt` expects a number, found \"1\""),
            (json!({"a": {"gt": 1, "gte": 1}}), "`gte`"),
            (json!({"a": {"in": 1}}), "`in` expects a list"),
            (json!({"a": {"in": [1], "gt": 1}}), "found `in`"),
        ] {
            let message = parse(wrong).unwrap_err();
            assert!(message.starts_with("filter on `a`: ") && message.contains(hint), "{message}");
        }
    }
}
