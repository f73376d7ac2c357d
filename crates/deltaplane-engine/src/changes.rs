//! Tells that something changed.
//!
//! Waiters are woken in the order in which they began to wait. A `watch` wakes in a random order, and an episode of
//! the simulation would not repeat itself.

use tokio::sync::broadcast;

/// The side that tells.
#[derive(Debug)]
pub(crate) struct Changes(broadcast::Sender<()>);

/// The side that waits.
#[derive(Debug)]
pub(crate) struct ChangeListener(broadcast::Receiver<()>);

impl Changes {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(1))
    }

    /// Something changed. Several changes count as one for a listener that did not look in between.
    pub(crate) fn tell(&self) {
        // There may be no listener.
        let _ = self.0.send(());
    }

    /// Listens from now on.
    pub(crate) fn listen(&self) -> ChangeListener {
        ChangeListener(self.0.subscribe())
    }
}

impl ChangeListener {
    /// Waits for a change since the last look. Returns whether there was one; false if no sender is left.
    pub(crate) async fn changed(&mut self) -> bool {
        match self.0.recv().await {
            Ok(()) => true,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.mark_unchanged();
                true
            }
            Err(broadcast::error::RecvError::Closed) => false,
        }
    }

    /// What changed until now does not count any more.
    pub(crate) fn mark_unchanged(&mut self) {
        self.0 = self.0.resubscribe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_since_the_last_look_count_once_and_the_end_is_seen() {
        let changes = Changes::new();
        let mut listener = changes.listen();
        for _ in 0..3 {
            changes.tell();
        }
        assert!(listener.changed().await);
        let again = tokio::time::timeout(std::time::Duration::ZERO, listener.changed()).await;
        assert!(again.is_err(), "three changes are one");
        changes.tell();
        assert!(listener.changed().await);
        changes.tell();
        listener.mark_unchanged();
        drop(changes);
        assert!(!listener.changed().await);
    }
}
