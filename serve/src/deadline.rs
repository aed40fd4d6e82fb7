//! [`Deadline`]: the time from a request's arrival to its answer, for every route.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// When a request must be answered.  Requests carry it as an extension.
#[derive(Debug)]
pub(crate) struct Deadline {
    /// When the request must have arrived, whether or not its handler reads the body.
    latest: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// When the request had arrived as a whole; `None` while its body is being received, which has a limit of its own.
    arrived: Option<Instant>,
    /// Steps of the work, each of which may take the time of a request.
    steps: u32,
}

impl Deadline {
    /// For a request whose body may take `body_timeout` to arrive.
    pub(crate) fn new(body_timeout: Duration) -> Self {
        let state = Mutex::new(State { arrived: None, steps: 1 });
        Self { latest: Instant::now() + body_timeout, state, changed: Notify::new() }
    }

    /// The request has arrived: the time begins.
    pub(crate) fn start(&self) {
        self.change(|state| state.arrived = state.arrived.or(Some(Instant::now())));
    }

    /// The work is done in so many steps.
    pub(crate) fn allow_steps(&self, steps: usize) {
        self.change(|state| state.steps = u32::try_from(steps).unwrap_or(u32::MAX).max(1));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(|e| e.into_inner()));
        self.changed.notify_one();
    }

    fn due(&self, limit: Duration) -> Instant {
        let state = *self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.arrived.unwrap_or(self.latest) + limit.saturating_mul(state.steps)
    }

    /// Waits until `limit` for each step has passed since the request arrived.
    pub(crate) async fn passed(&self, limit: Duration) {
        loop {
            let due = self.due(limit);
            if due <= Instant::now() {
                return;
            }
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_time_begins_when_the_request_has_arrived_and_each_step_has_its_own() {
        let (limit, deadline) = (Duration::from_secs(30), Deadline::new(Duration::from_secs(1000)));
        let left = || deadline.due(limit) - Instant::now();
        assert!(left() > Duration::from_secs(1000), "the body has not arrived");
        deadline.start();
        assert!(left() <= limit && left() > Duration::from_secs(10));
        let due = deadline.due(limit);
        deadline.start();
        assert_eq!(deadline.due(limit), due, "only the first start counts");
        deadline.allow_steps(3);
        assert_eq!(deadline.due(limit), due + 2 * limit);
        // A change wakes who waits.
        let waiting = Deadline::new(Duration::from_secs(1000));
        let (_, ended) = tokio::join!(
            async { waiting.start() },
            tokio::time::timeout(limit, waiting.passed(Duration::from_millis(1)))
        );
        assert!(ended.is_ok());
    }
}
