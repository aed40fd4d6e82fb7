//! A counted resource that requests share: images in flight, bytes of bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A resource of a fixed amount.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// A budget of this amount.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// The amount that is reserved now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// An empty reservation.
    pub fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { budget: self.clone(), amount: 0 }
    }

    /// Reserves `amount`, or nothing if less is left.
    pub fn reserve(self: &Arc<Self>, amount: usize) -> Option<Reservation> {
        let mut reservation = self.reservation();
        reservation.grow(amount).then_some(reservation)
    }
}

/// The part of a [`Budget`] that one request holds; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    amount: usize,
}

impl Reservation {
    /// Reserves more; false, and nothing more is reserved, if the budget does not have it.
    pub fn grow(&mut self, amount: usize) -> bool {
        let limit = self.budget.limit;
        let taken = self
            .budget
            .used
            .fetch_update(Relaxed, Relaxed, |used| used.checked_add(amount).filter(|total| *total <= limit));
        if taken.is_ok() {
            self.amount += amount;
        }
        taken.is_ok()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_exceeded_and_is_given_back() {
        let budget = Budget::new(10);
        let mut first = budget.reserve(6).unwrap();
        assert!(budget.reserve(5).is_none());
        assert!(first.grow(4) && !first.grow(1));
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.reserve(11).is_none());
    }
}
