//! The one thread that writes.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use deltaplane_ports::{Answer, AnswerClaim, JournalError};
use deltaplane_types::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use crate::chain;
use crate::open::{self, OpenError};

/// Jobs that one transaction takes at most.
const MAX_GROUP: usize = 512;
/// Jobs that may wait; further ones are refused, so that memory stays bounded.
const MAX_WAITING: usize = 4_096;
/// The WAL is written back when it has grown to this many pages.
const CHECKPOINT_PAGES: i64 = 4_000;
/// So much must fit on a disk that was full before the journal is written again.
const PROBE_BYTES: usize = 1 << 20;
/// How long an answer is kept.
const ANSWER_AGE: Duration = Duration::from_secs(24 * 3_600);

type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

enum Job {
    Append(Vec<String>, Reply<()>),
    Claim { key: String, body_hash: String, now: Timestamp, reply: Reply<AnswerClaim> },
    Attach { key: String, operation: String, reply: Reply<()> },
    Complete { key: String, answer: Answer, reply: Reply<()> },
    Release { key: String, reply: Reply<()> },
    Reopen(Reply<()>),
}

/// A handle to the writer's thread, which ends when the handle is dropped.
pub(crate) struct Writer {
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Closing the queue ends the thread after it wrote what waits.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Writer {
    pub(crate) fn start(connection: Connection, path: PathBuf, position: i64, hash: [u8; 32]) -> Self {
        let (jobs, queue) = mpsc::sync_channel(MAX_WAITING);
        let mut state = State { connection, path, position, hash, failed: None, since_checkpoint: 0 };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                while let Ok(first) = queue.recv() {
                    let mut group = vec![first];
                    group.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(MAX_GROUP - 1));
                    state.write(group);
                }
            })
            .expect("the system gives one thread at start");
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, JournalError> {
        let (reply, answer) = oneshot::channel();
        let gone = || JournalError::Failed("its writer ended".to_owned());
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.try_send(job(reply))
            .map_err(|_| JournalError::Failed("too many appends are waiting".to_owned()))?;
        answer.await.map_err(|_| gone())?
    }

    pub(crate) async fn append(&self, payloads: Vec<String>) -> Result<(), JournalError> {
        self.ask(|reply| Job::Append(payloads, reply)).await
    }

    pub(crate) async fn reopen(&self) -> Result<(), JournalError> {
        self.ask(Job::Reopen).await
    }

    pub(crate) async fn claim(
        &self,
        key: String,
        body_hash: String,
        now: Timestamp,
    ) -> Result<AnswerClaim, JournalError> {
        self.ask(|reply| Job::Claim { key, body_hash, now, reply }).await
    }

    pub(crate) async fn attach(&self, key: String, operation: String) -> Result<(), JournalError> {
        self.ask(|reply| Job::Attach { key, operation, reply }).await
    }

    pub(crate) async fn complete(&self, key: String, answer: Answer) -> Result<(), JournalError> {
        self.ask(|reply| Job::Complete { key, answer, reply }).await
    }

    pub(crate) async fn release(&self, key: String) -> Result<(), JournalError> {
        self.ask(|reply| Job::Release { key, reply }).await
    }
}

struct State {
    connection: Connection,
    path: PathBuf,
    position: i64,
    hash: [u8; 32],
    failed: Option<JournalError>,
    since_checkpoint: i64,
}

/// Body hash, operation, status and body of a kept answer.
type Kept = (String, Option<String>, Option<u16>, Option<Vec<u8>>);

/// What a job changed, told once the group is durable.
enum Done {
    Unit(Reply<()>),
    Claim(Reply<AnswerClaim>, AnswerClaim),
}

fn journal_error(error: &rusqlite::Error) -> JournalError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => JournalError::DiskFull,
        _ => JournalError::Failed(error.to_string()),
    }
}

/// Writes a file of the size of a large transaction beside the journal and has it on disk, then removes it.
fn probe(journal: &Path) -> Result<(), JournalError> {
    let path = journal.with_file_name("journal.probe");
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&vec![0; PROBE_BYTES])?;
        file.sync_all()
    };
    let written: std::io::Result<()> = write();
    let removed = std::fs::remove_file(&path);
    written.and(removed).map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => JournalError::DiskFull,
        _ => JournalError::Failed(format!("{} cannot be written: {error}", path.display())),
    })
}

impl State {
    /// Writes a group in one transaction: all of it is durable, or none of it.
    fn write(&mut self, group: Vec<Job>) {
        let mut jobs = Vec::with_capacity(group.len());
        for job in group {
            match job {
                // A caller who went away needs no answer.
                Job::Reopen(reply) => drop(reply.send(self.reopen())),
                job => jobs.push(job),
            }
        }
        if !jobs.is_empty() {
            self.write_all(jobs);
        }
    }

    /// Opens the file again after a full disk, once the disk accepts data; all other failures stay.
    fn reopen(&mut self) -> Result<(), JournalError> {
        match &self.failed {
            None => return Ok(()),
            Some(JournalError::DiskFull) => {}
            Some(error) => return Err(error.clone()),
        }
        probe(&self.path)?;
        let connection = Connection::open(&self.path).map_err(|error| journal_error(&error))?;
        let walk = open::prepare(&connection, &self.path)
            .and_then(|()| open::verify(&connection, &self.path))
            .map_err(|error| match error {
                OpenError::Sqlite { source, .. } => journal_error(&source),
                error => JournalError::Failed(error.to_string()),
            })?;
        if let Some((row, reason)) = walk.bad.first() {
            return Err(JournalError::Failed(format!("row {row} is damaged: {reason}")));
        }
        if walk.last < self.position {
            let text = format!("rows {} to {} are lost", walk.last + 1, self.position);
            return Err(JournalError::Failed(text));
        }
        // Requests whose answers could not be written.
        open::settle_answers(&connection).map_err(|error| journal_error(&error))?;
        (self.connection, self.position, self.hash, self.failed) = (connection, walk.last, walk.hash, None);
        tracing::warn!(rows = self.position, "the disk has room again: the journal is written again");
        Ok(())
    }

    fn write_all(&mut self, group: Vec<Job>) {
        if let Some(error) = &self.failed {
            for job in group {
                refuse(job, error);
            }
            return;
        }
        let (position, hash) = (self.position, self.hash);
        let mut done = Vec::with_capacity(group.len());
        let mut left = group.into_iter();
        let result = (|| {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            for job in left.by_ref() {
                let (result, finished) = self.perform(job);
                done.push(finished);
                result?;
            }
            self.connection.execute_batch("COMMIT")
        })();
        let error = result.err().map(|error| journal_error(&error));
        if let Some(error) = &error {
            // What is on disk is not known any more: nothing further is written.
            (self.position, self.hash) = (position, hash);
            self.failed = Some(error.clone());
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        for finished in done {
            // A caller who went away needs no answer.
            match (finished, &error) {
                (Done::Unit(reply), None) => drop(reply.send(Ok(()))),
                (Done::Claim(reply, claim), None) => drop(reply.send(Ok(claim))),
                (Done::Unit(reply), Some(error)) => drop(reply.send(Err(error.clone()))),
                (Done::Claim(reply, _), Some(error)) => drop(reply.send(Err(error.clone()))),
            }
        }
        if let Some(error) = error {
            for job in left {
                refuse(job, &error);
            }
            return;
        }
        self.checkpoint();
    }

    fn perform(&mut self, job: Job) -> (rusqlite::Result<()>, Done) {
        match job {
            Job::Append(payloads, reply) => (self.append(&payloads), Done::Unit(reply)),
            // Taken out before.
            Job::Reopen(reply) => (Ok(()), Done::Unit(reply)),
            Job::Claim { key, body_hash, now, reply } => match self.claim(&key, &body_hash, now) {
                Ok(claim) => (Ok(()), Done::Claim(reply, claim)),
                Err(error) => (Err(error), Done::Claim(reply, AnswerClaim::New)),
            },
            Job::Attach { key, operation, reply } => {
                let sql = "UPDATE answers SET operation = ?2 WHERE key = ?1";
                (self.connection.execute(sql, params![key, operation]).map(|_| ()), Done::Unit(reply))
            }
            Job::Complete { key, answer, reply } => {
                let sql = "UPDATE answers SET status = ?2, body = ?3 WHERE key = ?1";
                (
                    self.connection.execute(sql, params![key, answer.status, answer.body]).map(|_| ()),
                    Done::Unit(reply),
                )
            }
            Job::Release { key, reply } => {
                let sql = "DELETE FROM answers WHERE key = ?1 AND status IS NULL";
                (self.connection.execute(sql, params![key]).map(|_| ()), Done::Unit(reply))
            }
        }
    }

    fn append(&mut self, payloads: &[String]) -> rusqlite::Result<()> {
        let mut insert = self
            .connection
            .prepare_cached("INSERT INTO journal (position, payload, hash) VALUES (?1, ?2, ?3)")?;
        for payload in payloads {
            self.position += 1;
            self.hash = chain::next(&self.hash, payload);
            insert.execute(params![self.position, payload, self.hash])?;
        }
        self.since_checkpoint += i64::try_from(payloads.len()).unwrap_or(i64::MAX);
        Ok(())
    }

    fn claim(&self, key: &str, body_hash: &str, now: Timestamp) -> rusqlite::Result<AnswerClaim> {
        let oldest =
            now.as_millis().saturating_sub(i64::try_from(ANSWER_AGE.as_millis()).unwrap_or(i64::MAX));
        self.connection.execute("DELETE FROM answers WHERE at < ?1", params![oldest])?;
        let known: Option<Kept> = self
            .connection
            .query_row(
                "SELECT body_hash, operation, status, body FROM answers WHERE key = ?1",
                params![key],
                |found| Ok((found.get(0)?, found.get(1)?, found.get(2)?, found.get(3)?)),
            )
            .optional()?;
        Ok(match known {
            None => {
                let sql = "INSERT INTO answers (key, body_hash, at) VALUES (?1, ?2, ?3)";
                self.connection.execute(sql, params![key, body_hash, now.as_millis()])?;
                AnswerClaim::New
            }
            Some((hash, ..)) if hash != body_hash => AnswerClaim::OtherBody,
            Some((_, _, Some(status), Some(body))) => AnswerClaim::Answered(Answer { status, body }),
            Some((_, operation, ..)) => {
                AnswerClaim::Pending { operation: operation.and_then(|operation| operation.parse().ok()) }
            }
        })
    }

    /// Writes the WAL back now and then, and looks at the result.
    fn checkpoint(&mut self) {
        if self.since_checkpoint < CHECKPOINT_PAGES {
            return;
        }
        self.since_checkpoint = 0;
        let result: rusqlite::Result<i64> =
            self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |found| found.get(0));
        if let Err(error) = result {
            tracing::error!(%error, "the journal's checkpoint failed");
            self.failed = Some(journal_error(&error));
        }
    }
}

fn refuse(job: Job, error: &JournalError) {
    // A caller who went away needs no answer.
    match job {
        Job::Append(_, reply)
        | Job::Attach { reply, .. }
        | Job::Complete { reply, .. }
        | Job::Release { reply, .. }
        | Job::Reopen(reply) => {
            drop(reply.send(Err(error.clone())));
        }
        Job::Claim { reply, .. } => drop(reply.send(Err(error.clone()))),
    }
}
