//! A set of slots, compact where it has one element.

use roaring::RoaringBitmap;

/// A set of slots.  Most vectors, and most values of some fields (file names), belong to one item: a bitmap for each would
/// take far more memory.
#[derive(Debug)]
pub(super) enum SlotSet {
    One(u32),
    Many(RoaringBitmap),
}

impl SlotSet {
    pub(super) fn insert(&mut self, slot: u32) {
        match self {
            Self::One(one) => *self = Self::Many([*one, slot].into_iter().collect()),
            Self::Many(many) => drop(many.insert(slot)),
        }
    }

    /// Removes a slot; returns whether the set is empty then.
    pub(super) fn remove(&mut self, slot: u32) -> bool {
        match self {
            Self::One(one) => *one == slot,
            Self::Many(many) => {
                many.remove(slot);
                many.is_empty()
            }
        }
    }

    pub(super) fn add_to(&self, all: &mut RoaringBitmap) {
        match self {
            Self::One(slot) => drop(all.insert(*slot)),
            Self::Many(many) => *all |= many,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(many) => many.len() as usize,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (one, many) = match self {
            Self::One(slot) => (Some(*slot), None),
            Self::Many(many) => (None, Some(many)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}
