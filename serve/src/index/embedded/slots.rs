//! A set of slots that mostly has one.

use roaring::RoaringBitmap;

/// Most values of some fields (file names), and most vectors, belong to one item.
#[derive(Debug)]
pub(super) enum Slots {
    One(u32),
    Many(RoaringBitmap),
}

impl Slots {
    pub(super) fn insert(&mut self, slot: u32) {
        match self {
            Self::One(one) => *self = Self::Many([*one, slot].into_iter().collect()),
            Self::Many(many) => drop(many.insert(slot)),
        }
    }

    /// Whether nothing is left.
    pub(super) fn remove(&mut self, slot: u32) -> bool {
        match self {
            Self::One(one) => *one == slot,
            Self::Many(many) => {
                many.remove(slot);
                many.is_empty()
            }
        }
    }

    pub(super) fn join(&self, all: &mut RoaringBitmap) {
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
