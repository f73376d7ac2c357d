//! What is on disk may be sent; nothing else can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use deltaplane_ports::{IntentRecord, Journal, JournalError, Record};
use tokio::sync::watch;

/// Proof that a value is durable. It has no public maker, is not `Clone`, and is consumed by its use.
///
/// A journal append is the only maker:
///
/// ```
/// # use deltaplane_engine::{Durable, Recorder};
/// # use deltaplane_ports::{IntentRecord, JournalError};
/// async fn make(
///     recorder: &Recorder,
///     intent: IntentRecord,
/// ) -> Result<Vec<Durable<IntentRecord>>, JournalError> {
///     recorder.reserve(vec![intent], Vec::new()).await
/// }
/// ```
///
/// The constructor is private:
///
/// ```compile_fail,E0423
/// # use deltaplane_engine::{Durable, Recorder};
/// # use deltaplane_ports::{IntentRecord, JournalError};
/// async fn make(
///     recorder: &Recorder,
///     intent: IntentRecord,
/// ) -> Result<Vec<Durable<IntentRecord>>, JournalError> {
///     Ok(vec![Durable(intent)])
/// }
/// ```
#[derive(Debug)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    /// The value.
    pub const fn value(&self) -> &T {
        &self.0
    }

    pub(crate) fn into_value(self) -> T {
        self.0
    }
}

/// Writes the journal, and stops for good at its first failure.
#[derive(Clone)]
pub struct Recorder {
    journal: Arc<dyn Journal>,
    failed: Arc<AtomicBool>,
    failure: watch::Sender<Option<JournalError>>,
}

impl Recorder {
    /// Writes to a journal.
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, failed: Arc::new(AtomicBool::new(false)), failure: watch::Sender::new(None) }
    }

    /// Whether an append failed: what is on disk is then not known, and nothing may be sent.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// How the journal failed.
    pub(crate) fn failed_with(&self) -> Option<JournalError> {
        self.failure.borrow().clone()
    }

    /// Waits for the first failure.
    pub async fn failure(&self) -> JournalError {
        let mut failure = self.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        // The sender lives as long as this.
        failed.unwrap_or_else(|| JournalError::Failed("its writer ended".to_owned()))
    }

    /// Makes intents durable, all in one append.
    pub async fn reserve(
        &self,
        intents: Vec<IntentRecord>,
        mut with: Vec<Record>,
    ) -> Result<Vec<Durable<IntentRecord>>, JournalError> {
        with.extend(intents.iter().cloned().map(Record::Intent));
        self.append(with).await?;
        Ok(intents.into_iter().map(Durable).collect())
    }

    /// Appends records.
    pub async fn append(&self, records: Vec<Record>) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        if self.has_failed() {
            return Err(JournalError::Failed("an earlier append failed".to_owned()));
        }
        let result = self.journal.append(records).await;
        if let Err(error) = &result {
            self.failed.store(true, Ordering::SeqCst);
            self.failure.send_replace(Some(error.clone()));
            tracing::error!(%error, "the journal failed: nothing is sent any more");
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use deltaplane_ports::StoredRecord;
    use deltaplane_types::Timestamp;

    use super::*;

    /// A disk that fails once and then seems well again.
    #[derive(Default)]
    struct FailsOnce(AtomicBool);

    #[async_trait]
    impl Journal for FailsOnce {
        async fn append(&self, _: Vec<Record>) -> Result<(), JournalError> {
            if self.0.swap(true, Ordering::SeqCst) { Ok(()) } else { Err(JournalError::DiskFull) }
        }

        async fn load(&self) -> Result<Vec<StoredRecord>, JournalError> {
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn after_a_failed_append_nothing_becomes_durable_any_more() {
        let recorder = Recorder::new(Arc::new(FailsOnce::default()));
        let record = || vec![Record::RunStarted { epoch: 1, next_sequence: 1, at: Timestamp::default() }];
        assert!(recorder.append(record()).await.is_err());
        assert!(recorder.append(record()).await.is_err(), "what the disk has is not known");
        assert!(recorder.has_failed());
        assert_eq!(recorder.failure().await, JournalError::DiskFull);
    }
}
