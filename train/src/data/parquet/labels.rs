//! Labels of any type -> classes numbered without gaps.

use std::collections::{BTreeSet, HashMap};

use parquet::record::Field;

/// A value of a label column.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Label {
    Truth(bool),
    Number(i128),
    /// The bits of a real number, mapped so that they sort like the numbers.
    Real(u64),
    Text(String),
}

/// A row has more than one label.
pub(super) struct Several;

impl Label {
    /// The label of a field; `None` for null and for NaN.
    pub(super) fn of(field: Field) -> Result<Option<Label>, Several> {
        let number = |n: i128| Ok(Some(Label::Number(n)));
        match field {
            Field::Null => Ok(None),
            Field::Bool(v) => Ok(Some(Label::Truth(v))),
            Field::Byte(v) => number(v.into()),
            Field::Short(v) => number(v.into()),
            Field::Int(v) => number(v.into()),
            Field::Long(v) => number(v.into()),
            Field::UByte(v) => number(v.into()),
            Field::UShort(v) => number(v.into()),
            Field::UInt(v) => number(v.into()),
            Field::ULong(v) => number(v.into()),
            Field::Float16(v) => Ok(Label::real(v.into())),
            Field::Float(v) => Ok(Label::real(v.into())),
            Field::Double(v) => Ok(Label::real(v)),
            Field::Str(text) => Ok(Some(Label::Text(text))),
            Field::Bytes(bytes) => Ok(Some(Label::Text(String::from_utf8_lossy(bytes.data()).into_owned()))),
            Field::ListInternal(list) => match list.elements() {
                [] => Ok(None),
                [one] => Label::of(one.clone()),
                _ => Err(Several),
            },
            Field::Group(_) | Field::MapInternal(_) => Err(Several),
            other => Ok(Some(Label::Text(other.to_string()))),
        }
    }

    fn real(value: f64) -> Option<Label> {
        let bits = (value + 0.0).to_bits();
        let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
        (!value.is_nan()).then_some(Label::Real(ordered))
    }

    fn name(&self) -> String {
        match self {
            Label::Truth(v) => v.to_string(),
            Label::Number(n) => n.to_string(),
            Label::Real(ordered) => {
                let bits = if ordered >> 63 == 1 { ordered ^ (1 << 63) } else { !ordered };
                f64::from_bits(bits).to_string()
            }
            Label::Text(text) => text.clone(),
        }
    }
}

/// The classes of a data set, numbered without gaps.
pub(super) struct Classes {
    pub(super) names: Vec<String>,
    numbers: HashMap<Label, u32>,
}

impl Classes {
    /// With the names of a ClassLabel, these keep their numbers, every other value that occurs becomes one more class, and a
    /// negative number is no label.  Without names, the values that occur are the classes, in sorted order.  There, -1 is no
    /// label (the hub marks hidden labels with it), unless exactly one value is not negative: -1 is then one of two classes.
    pub(super) fn of<'a>(described: Option<&[String]>, labels: impl Iterator<Item = &'a Label>) -> Self {
        let mut occurring: BTreeSet<&Label> = labels.collect();
        let positive = occurring.iter().filter(|l| matches!(l, Label::Number(0..))).count();
        match described {
            Some(_) => occurring.retain(|label| !matches!(label, Label::Number(..0))),
            None if positive != 1 => {
                occurring.remove(&Label::Number(-1));
            }
            None => {}
        }
        let mut classes = Classes { names: Vec::new(), numbers: HashMap::new() };
        for name in described.unwrap_or_default() {
            let number = classes.names.len() as u32;
            classes.numbers.insert(Label::Number(number.into()), number);
            classes.numbers.entry(Label::Text(name.clone())).or_insert(number);
            classes.names.push(name.clone());
        }
        for label in occurring {
            if !classes.numbers.contains_key(label) {
                classes.numbers.insert(label.clone(), classes.names.len() as u32);
                classes.names.push(label.name());
            }
        }
        classes
    }

    pub(super) fn number(&self, label: &Option<Label>) -> Option<u32> {
        self.numbers.get(label.as_ref()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn numbered(described: Option<&[&str]>, fields: &[Field]) -> (Vec<String>, Vec<Option<u32>>) {
        let labels: Vec<Option<Label>> = fields.iter().map(|f| Label::of(f.clone()).unwrap_or(None)).collect();
        let described: Option<Vec<String>> = described.map(|names| names.iter().map(|n| n.to_string()).collect());
        let classes = Classes::of(described.as_deref(), labels.iter().flatten());
        let numbers = labels.iter().map(|label| classes.number(label)).collect();
        (classes.names, numbers)
    }

    fn names(described: Option<&[&str]>, fields: &[Field]) -> Vec<String> {
        numbered(described, fields).0
    }

    #[test]
    fn values_of_every_kind_are_classes_in_their_order() {
        let text = |t: &str| Field::Str(t.into());
        assert_eq!(names(None, &[Field::Bool(true), Field::Bool(false)]), ["false", "true"]);
        assert_eq!(names(None, &[Field::Long(200_000), Field::Int(7), Field::Null]), ["7", "200000"]);
        assert_eq!(
            names(None, &[Field::UInt(u32::MAX), Field::ULong(u64::MAX)]),
            ["4294967295", "18446744073709551615"]
        );
        let reals = [0.5, -2.0, f64::NAN, -0.5, 0.0, -0.0, 1e300].map(Field::Double);
        assert_eq!(names(None, &reals)[..4], ["-2", "-0.5", "0", "0.5"]);
        assert_eq!(numbered(None, &reals).1, [Some(3), Some(0), None, Some(1), Some(2), Some(2), Some(4)]);
        assert_eq!(names(None, &[text("owl"), text("Ärger"), text("cat")]), ["cat", "owl", "Ärger"]);
        assert_eq!(names(None, &[Field::Date(1)]), ["1970-01-02"]);
    }

    #[test]
    fn described_classes_keep_their_numbers() {
        let two: Option<&[&str]> = Some(&["cat", "dog"]);
        let (names, numbers) = numbered(two, &[1, 4_294_967_294, -1, 0, 77].map(Field::Long));
        assert_eq!(names, ["cat", "dog", "77", "4294967294"]);
        assert_eq!(numbers, [Some(1), Some(3), None, Some(0), Some(2)]);
        assert_eq!(numbered(two, &[Field::Str("dog".into())]).1, [Some(1)]);
    }

    #[test]
    fn minus_one_is_a_class_only_beside_one_other() {
        assert_eq!(names(None, &[-1, 1].map(Field::Int)), ["-1", "1"]);
        assert_eq!(names(None, &[-1, 0, 1].map(Field::Int)), ["0", "1"]);
        assert!(names(None, &[-1, -1].map(Field::Int)).is_empty());
    }

    #[test]
    fn a_million_labels_take_no_time() {
        let labels: Vec<Label> = (0..1_000_000i128).map(|i| Label::Number((i % 5_000) * 858_993)).collect();
        let since = Instant::now();
        let classes = Classes::of(None, labels.iter());
        let last = classes.number(&Some(Label::Number(4_999 * 858_993)));
        assert_eq!((classes.names.len(), last), (5_000, Some(4_999)));
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    }
}
