//! Opening, checking and locking the file.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use deltaplane_ports::{Answer, AnswerClaim, AnswerStore, Journal, JournalError, Record, StoredRecord};
use deltaplane_types::{OperationId, Timestamp};
use rusqlite::{Connection, OpenFlags};

use crate::writer::Writer;
use crate::{chain, row};

/// Version of the tables. A file of a newer one is refused.
const SCHEMA: i64 = 1;
/// The first `SQLite` release with the fix of the WAL reset race.
const LEAST_SQLITE: i32 = 3_051_003;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or written.
    #[error("cannot use the data folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has the file.
    #[error("another process uses the journal {path}; stop it first, or give this one its own data folder")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer version.
    #[error(
        "the journal {path} has schema {found}, this version knows {known}; use the newer version that wrote it"
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The file is damaged.
    #[error(
        "the journal {path} is damaged at row {position}: {reason}; keep the file, and restore a copy or ask for help before anything is traded"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first bad row.
        position: i64,
        /// What is wrong.
        reason: String,
    },
    /// `SQLite` itself failed.
    #[error("the journal {path} cannot be used: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
}

/// The journal and the kept answers. Dropping it ends its writer.
pub struct SqliteStore {
    writer: Writer,
    path: PathBuf,
    _lock: File,
}

impl SqliteStore {
    /// Opens `journal.sqlite` in a folder, made where it is missing, and checks every row.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says which file and what to do.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let folder_error = |source| OpenError::Folder { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(folder_error)?;
        let path = folder.join("journal.sqlite");
        let lock = File::create(folder.join("journal.lock")).map_err(folder_error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(folder_error(source)),
        }
        let failed = |source| OpenError::Sqlite { path: path.clone(), source };
        assert!(rusqlite::version_number() >= LEAST_SQLITE, "SQLite {} is too old", rusqlite::version());
        let connection = Connection::open(&path).map_err(failed)?;
        prepare(&connection, &path)?;
        let (position, hash) = verify(&connection, &path)?;
        Ok(Self { writer: Writer::start(connection, position, hash), path, _lock: lock })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn prepare(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA {
        return Err(OpenError::NewerSchema { path: path.to_owned(), found, known: SCHEMA });
    }
    // FULL: a commit is on disk when it returns. Checkpoints are explicit, so that their errors are seen.
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 0;
             BEGIN IMMEDIATE;
             CREATE TABLE IF NOT EXISTS journal (
                 position INTEGER PRIMARY KEY,
                 payload TEXT NOT NULL,
                 hash BLOB NOT NULL
             ) STRICT;
             CREATE TABLE IF NOT EXISTS answers (
                 key TEXT PRIMARY KEY,
                 body_hash TEXT NOT NULL,
                 operation TEXT,
                 status INTEGER,
                 body BLOB,
                 at INTEGER NOT NULL
             ) STRICT;
             PRAGMA user_version = 1;
             COMMIT;",
        )
        .map_err(failed)
}

/// Walks the chain; gives the last position and its hash.
fn verify(connection: &Connection, path: &Path) -> Result<(i64, [u8; 32]), OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let mut statement = connection
        .prepare("SELECT position, payload, hash FROM journal ORDER BY position")
        .map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let (mut last, mut hash) = (0_i64, chain::GENESIS);
    while let Some(found) = rows.next().map_err(failed)? {
        let (position, payload): (i64, String) =
            (found.get(0).map_err(failed)?, found.get(1).map_err(failed)?);
        let stored: Vec<u8> = found.get(2).map_err(failed)?;
        let damaged =
            |reason: &str| OpenError::Damaged { path: path.to_owned(), position, reason: reason.to_owned() };
        if position != last + 1 {
            return Err(damaged("rows before it are missing"));
        }
        hash = chain::next(&hash, &payload);
        if stored != hash {
            return Err(damaged("its hash does not match"));
        }
        if let Err(error) = row::decode(&payload) {
            return Err(damaged(&format!("it cannot be read: {error}")));
        }
        last = position;
    }
    Ok((last, hash))
}

#[async_trait]
impl Journal for SqliteStore {
    async fn append(&self, records: Vec<Record>) -> Result<(), JournalError> {
        let payloads: Result<Vec<String>, _> = records.iter().map(row::encode).collect();
        let payloads = payloads.map_err(|error| JournalError::Failed(error.to_string()))?;
        self.writer.append(payloads).await
    }

    async fn load(&self) -> Result<Vec<StoredRecord>, JournalError> {
        let path = self.path.clone();
        let read = move || -> Result<Vec<StoredRecord>, String> {
            let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
                .map_err(|error| error.to_string())?;
            let mut statement = connection
                .prepare("SELECT position, payload FROM journal ORDER BY position")
                .map_err(|error| error.to_string())?;
            let rows = statement
                .query_map([], |found| Ok((found.get::<_, i64>(0)?, found.get::<_, String>(1)?)))
                .map_err(|error| error.to_string())?;
            let mut records = Vec::new();
            for found in rows {
                let (position, payload) = found.map_err(|error| error.to_string())?;
                let record = row::decode(&payload).map_err(|error| format!("row {position}: {error}"))?;
                let position = u64::try_from(position).map_err(|error| error.to_string())?;
                records.push(StoredRecord { position, record });
            }
            Ok(records)
        };
        let result = tokio::task::spawn_blocking(read).await;
        result.map_err(|error| JournalError::Failed(error.to_string()))?.map_err(JournalError::Failed)
    }
}

#[async_trait]
impl AnswerStore for SqliteStore {
    async fn claim(&self, key: &str, body_hash: &str, now: Timestamp) -> Result<AnswerClaim, JournalError> {
        self.writer.claim(key.to_owned(), body_hash.to_owned(), now).await
    }

    async fn attach(&self, key: &str, operation: &OperationId) -> Result<(), JournalError> {
        self.writer.attach(key.to_owned(), operation.to_string()).await
    }

    async fn complete(&self, key: &str, answer: &Answer) -> Result<(), JournalError> {
        self.writer.complete(key.to_owned(), answer.clone()).await
    }

    async fn release(&self, key: &str) -> Result<(), JournalError> {
        self.writer.release(key.to_owned()).await
    }
}
