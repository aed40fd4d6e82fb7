//! An inverted index of metadata values: for each field and value, the slots of the items that have it.  A filter is
//! answered without looking at the items.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use roaring::RoaringBitmap;
use serde_json::{Number, Value};

use super::super::filter::{Condition, Filter, as_integer};
use super::super::item::JsonMap;
use super::slot_set::SlotSet;

/// A metadata value as a sort key: numbers are sorted by value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Null,
    Bool(bool),
    /// Bits that sort as the nearest f64 does, and the difference of the exact integer from it.
    Number(u64, i16),
    Text(Box<str>),
    /// Lists and objects as JSON with sorted fields: only equality makes sense of them.
    Nested(Box<str>),
}

impl Key {
    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::number(number),
            Value::String(text) => Self::Text(text.as_str().into()),
            nested => Self::Nested(sorted(nested).to_string().into()),
        }
    }

    fn number(number: &Number) -> Self {
        // 0.0 + turns -0.0 into 0.0.
        let near = 0.0 + number.as_f64().unwrap_or(f64::NAN);
        let exact = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
        let rest = exact.map_or(0, |exact| (exact - near as i128) as i16);
        let bits = near.to_bits();
        Self::Number(if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }, rest)
    }
}

/// The same value with sorted object fields and numbers in one spelling.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(sorted).collect(),
        Value::Object(map) => {
            let fields: BTreeMap<&String, Value> = map.iter().map(|(k, v)| (k, sorted(v))).collect();
            fields.into_iter().map(|(k, v)| (k.clone(), v)).collect()
        }
        Value::Number(number) => Value::Number(as_integer(number)),
        other => other.clone(),
    }
}

/// What a field, a value of it and a further item with that value take beside their texts, in bytes.  Measured: a field with one
/// value takes a node of a `BTreeMap`, which has room for eleven.
const FIELD: usize = 950;
const VALUE: usize = 110;
const SLOT: usize = 8;

/// Fields and values of items that are planned and not added yet.
#[derive(Debug, Default)]
pub(super) struct PlannedValues(HashMap<Box<str>, BTreeSet<Key>>);

impl PlannedValues {
    pub(super) fn add(&mut self, metadata: &JsonMap) {
        for (field, value) in metadata {
            self.0.entry(field.as_str().into()).or_default().insert(Key::of(value));
        }
    }
}

/// The slots of each metadata value, by field.
#[derive(Debug, Default)]
pub(super) struct Postings {
    fields: HashMap<Box<str>, BTreeMap<Key, SlotSet>>,
    bytes: usize,
}

impl Key {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::Nested(text) => VALUE + text.len(),
            _ => VALUE,
        }
    }
}

impl Postings {
    /// The memory that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory that an item with this metadata would add, after those that are planned.
    pub(super) fn added_bytes(&self, metadata: &JsonMap, planned: &PlannedValues) -> usize {
        let cost = |(field, value): (&String, &Value)| {
            let key = Key::of(value);
            let (values, soon) = (self.fields.get(field.as_str()), planned.0.get(field.as_str()));
            if values.is_some_and(|values| values.contains_key(&key)) || soon.is_some_and(|soon| soon.contains(&key)) {
                SLOT
            } else if values.is_some() || soon.is_some() {
                key.bytes()
            } else {
                FIELD + field.len() + key.bytes()
            }
        };
        metadata.iter().map(cost).sum()
    }

    /// The memory that the item with metadata `old` gives back if it is replaced by one with metadata `new`, at least.
    pub(super) fn released_bytes(&self, old: &JsonMap, new: &JsonMap) -> usize {
        let share = |(field, value): (&String, &Value)| {
            let key = Key::of(value);
            let stays = new.get(field).is_some_and(|value| Key::of(value) == key);
            match self.fields.get(field.as_str()).and_then(|values| values.get(&key)) {
                Some(SlotSet::One(_)) if !stays => key.bytes(),
                Some(_) => SLOT,
                None => 0,
            }
        };
        old.iter().map(share).sum()
    }

    /// Adds the item in `slot`.
    pub(super) fn add(&mut self, slot: u32, metadata: &JsonMap) {
        for (field, value) in metadata {
            if !self.fields.contains_key(field.as_str()) {
                self.fields.insert(field.as_str().into(), BTreeMap::new());
                self.bytes += FIELD + field.len();
            }
            let Some(values) = self.fields.get_mut(field.as_str()) else { continue };
            match values.entry(Key::of(value)) {
                Entry::Occupied(mut slots) => {
                    slots.get_mut().insert(slot);
                    self.bytes += SLOT;
                }
                Entry::Vacant(free) => {
                    self.bytes += free.key().bytes();
                    free.insert(SlotSet::One(slot));
                }
            }
        }
    }

    /// Removes the item in `slot`, which was added with this metadata.
    pub(super) fn remove(&mut self, slot: u32, metadata: &JsonMap) {
        for (field, value) in metadata {
            let Some(values) = self.fields.get_mut(field.as_str()) else { continue };
            let key = Key::of(value);
            match values.get_mut(&key).map(|slots| slots.remove(slot)) {
                Some(true) => {
                    values.remove(&key);
                    self.bytes -= key.bytes();
                }
                Some(false) => self.bytes -= SLOT,
                None => {}
            }
            if values.is_empty() {
                self.fields.remove(field.as_str());
                self.bytes -= FIELD + field.len();
            }
        }
    }

    /// The slots of the items that meet every condition; `None` if the filter has no condition.
    pub(super) fn select(&self, filter: &Filter) -> Option<RoaringBitmap> {
        let mut conditions = filter.conditions.iter();
        let (field, first) = conditions.next()?;
        let mut selected = self.meeting(field, first);
        for (field, condition) in conditions {
            selected &= self.meeting(field, condition);
        }
        Some(selected)
    }

    fn meeting(&self, field: &str, condition: &Condition) -> RoaringBitmap {
        let mut selected = RoaringBitmap::new();
        let Some(values) = self.fields.get(field) else { return selected };
        match condition {
            Condition::In(wanted) => {
                wanted.iter().filter_map(|v| values.get(&Key::of(v))).for_each(|slots| slots.add_to(&mut selected));
            }
            Condition::Range(range) => {
                let ends = (low(&range.low), high(&range.high));
                if !is_empty(&ends) {
                    values.range(ends).for_each(|(_, slots)| slots.add_to(&mut selected));
                }
            }
        }
        selected
    }
}

/// The lower end of a range of numbers.
fn low(bound: &Bound<Number>) -> Bound<Key> {
    match bound {
        Bound::Included(number) => Bound::Included(Key::number(number)),
        Bound::Excluded(number) => Bound::Excluded(Key::number(number)),
        Bound::Unbounded => Bound::Included(Key::Number(0, i16::MIN)),
    }
}

/// The upper end of a range of numbers.
fn high(bound: &Bound<Number>) -> Bound<Key> {
    match bound {
        Bound::Unbounded => Bound::Included(Key::Number(u64::MAX, i16::MAX)),
        bounded => low(bounded),
    }
}

/// Whether no value lies between the ends: `BTreeMap::range` would panic then.
fn is_empty((low, high): &(Bound<Key>, Bound<Key>)) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(json: Value) -> JsonMap {
        let Value::Object(map) = json else { panic!("not an object") };
        map
    }

    fn slots(postings: &Postings, filter: Value) -> Vec<u32> {
        let filter = Filter::parse(map(filter)).unwrap();
        postings.select(&filter).map_or(vec![u32::MAX], |s| s.into_iter().collect())
    }

    #[test]
    fn equality_membership_and_ranges_select_slots() {
        let mut postings = Postings::default();
        let items = [
            json!({"n": 1, "t": "x"}),
            json!({"n": 1.0, "t": "y"}),
            json!({"n": -2.5, "t": null}),
            json!({"n": "1", "o": {"b": 1, "a": [2]}}),
            json!({}),
            json!({"n": 9_007_199_254_740_993u64}),
        ];
        items.iter().enumerate().for_each(|(slot, item)| postings.add(slot as u32, &map(item.clone())));
        for (filter, expected) in [
            (json!({}), vec![u32::MAX]),
            (json!({"n": 1}), vec![0, 1]),
            (json!({"n": "1"}), vec![3]),
            (json!({"n": {"in": [1, "1", 7]}}), vec![0, 1, 3]),
            (json!({"n": {"in": []}}), vec![]),
            (json!({"t": null}), vec![2]),
            (json!({"missing": null}), vec![]),
            (json!({"n": {"lt": 1}}), vec![2]),
            (json!({"n": {"lte": 1}}), vec![0, 1, 2]),
            (json!({"n": {"gte": -2.5, "lt": 1.5}}), vec![0, 1, 2]),
            (json!({"n": {"gt": 1, "lt": 1}}), vec![]),
            (json!({"n": {"gt": 2, "lt": 1}}), vec![]),
            (json!({"n": {"gt": 1}}), vec![5]),
            // Two integers that are the same f64.
            (json!({"n": 9_007_199_254_740_992u64}), vec![]),
            (json!({"n": {"gt": 9_007_199_254_740_992u64}}), vec![5]),
            (json!({"o": {"eq": {"a": [2], "b": 1}}}), vec![3]),
            (json!({"n": 1, "t": "y"}), vec![1]),
        ] {
            assert_eq!(slots(&postings, filter.clone()), expected, "{filter}");
        }
        items.iter().enumerate().for_each(|(slot, item)| postings.remove(slot as u32, &map(item.clone())));
        assert!(postings.fields.is_empty() && postings.bytes() == 0);
    }

    #[test]
    fn fields_values_and_items_are_charged() {
        let (mut postings, metadata) =
            (Postings::default(), |n: i32| map(json!({"label": "cat", "path": format!("{n}.png")})));
        let mut put = |n: i32| {
            let (before, expected) = (postings.bytes(), postings.added_bytes(&metadata(n), &PlannedValues::default()));
            postings.add(n as u32, &metadata(n));
            assert_eq!(postings.bytes() - before, expected);
            expected
        };
        // A further item shares the label and has a path of its own.
        assert_eq!((put(1), put(2)), (2 * FIELD + 2 * VALUE + 9 + 3 + 5, VALUE + SLOT + 5));
        // 1,600 fields an item took fifty times what was counted for them.
        let many = (0..1600).map(|i| (format!("f{i}"), json!(i))).collect();
        assert!(postings.added_bytes(&many, &PlannedValues::default()) > 1600 * 1000);
        let mut planned = PlannedValues::default();
        planned.add(&many);
        assert_eq!(postings.added_bytes(&many, &planned), 1600 * SLOT);
        assert_eq!(postings.released_bytes(&metadata(1), &metadata(1)), 2 * SLOT);
        assert_eq!(postings.released_bytes(&metadata(1), &map(json!({}))), SLOT + VALUE + 5);
    }
}
