//! Opening, checking and locking the file.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use deltaplane_ports::{Answer, AnswerClaim, AnswerStore, Journal, JournalError, Record, StoredRecord};
use deltaplane_types::{OperationId, Timestamp};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use crate::writer::Writer;
use crate::{chain, row};

/// Version of the tables. A file of a newer one is refused.
const SCHEMA: i64 = 2;
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
        "the journal {path} is damaged at row {position}: {reason}; restore a newer copy, or start once with --accept-quarantine: the damaged rows are set aside and only what reduces risk is traded"
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

/// Damaged rows that were taken out of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Their places.
    pub rows: Vec<i64>,
    /// What is wrong with the first of them.
    pub reason: String,
    /// A copy of the journal as it was found.
    pub copy: PathBuf,
}

/// The journal and the kept answers. Dropping it ends its writer.
pub struct SqliteStore {
    writer: Writer,
    path: PathBuf,
    quarantined: Option<Quarantined>,
    _lock: File,
}

impl SqliteStore {
    /// Opens `journal.sqlite` in a folder, made where it is missing, and checks every row.
    ///
    /// Damaged rows at the end, as a crash can leave them, are set aside: see [`Self::quarantined`].
    ///
    /// # Errors
    ///
    /// [`OpenError`] says which file and what to do.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        Self::open_accepting(folder, false)
    }

    /// The same; with `accept_quarantine` damaged rows in the middle are set aside too.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says which file and what to do.
    pub fn open_accepting(folder: &Path, accept_quarantine: bool) -> Result<Self, OpenError> {
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
        let mut walk = verify(&connection, &path)?;
        let mut quarantined = None;
        if let Some((position, reason)) = walk.bad.first().cloned() {
            if !walk.only_at_the_end() && !accept_quarantine {
                return Err(OpenError::Damaged { path, position, reason });
            }
            quarantined = Some(set_aside(&connection, &path, &walk)?);
            walk = verify(&connection, &path)?;
        }
        // What a run before took out counts until its reader has written something after it.
        let quarantined = match quarantined {
            None => set_aside_before(&connection, walk.last).map_err(failed)?,
            some => some,
        };
        settle_answers(&connection).map_err(failed)?;
        let writer = Writer::start(connection, path.clone(), walk.last, walk.hash);
        Ok(Self { writer, path, quarantined, _lock: lock })
    }

    /// Damaged rows that opening took out, now or in a run that ended before it wrote anything.
    pub const fn quarantined(&self) -> Option<&Quarantined> {
        self.quarantined.as_ref()
    }

    /// Goes on after a full disk: when the disk accepts data again, the file is opened again and checked whole.
    ///
    /// # Errors
    ///
    /// [`JournalError::DiskFull`] while there is no room, [`JournalError::Failed`] where the file is not what it was.
    pub async fn reopen(&self) -> Result<(), JournalError> {
        self.writer.reopen().await
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

pub(crate) fn prepare(connection: &Connection, path: &Path) -> Result<(), OpenError> {
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
             CREATE TABLE IF NOT EXISTS quarantine (
                 journal_end INTEGER NOT NULL,
                 damaged TEXT NOT NULL,
                 reason TEXT NOT NULL,
                 copy TEXT NOT NULL
             ) STRICT;
             CREATE TABLE IF NOT EXISTS answers (
                 key TEXT PRIMARY KEY,
                 body_hash TEXT NOT NULL,
                 operation TEXT,
                 status INTEGER,
                 body BLOB,
                 at INTEGER NOT NULL
             ) STRICT;
             PRAGMA user_version = 2;
             COMMIT;",
        )
        .map_err(failed)
}

/// What a walk over the chain found.
pub(crate) struct Walk {
    /// The last good row.
    pub(crate) last: i64,
    /// Its hash.
    pub(crate) hash: [u8; 32],
    /// Rows that do not verify, with what is wrong, ascending.
    pub(crate) bad: Vec<(i64, String)>,
}

impl Walk {
    /// Whether nothing good follows what is bad.
    pub(crate) fn only_at_the_end(&self) -> bool {
        self.bad.iter().all(|(position, _)| *position > self.last)
    }
}

/// Walks the chain. After a bad row it goes on from the hash that the row claims.
pub(crate) fn verify(connection: &Connection, path: &Path) -> Result<Walk, OpenError> {
    let failed = |source: rusqlite::Error, position: i64| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            OpenError::Damaged { path: path.to_owned(), position, reason: source.to_string() }
        }
        _ => OpenError::Sqlite { path: path.to_owned(), source },
    };
    let mut statement = connection
        .prepare("SELECT position, payload, hash FROM journal ORDER BY position")
        .map_err(|error| failed(error, 1))?;
    let mut rows = statement.query([]).map_err(|error| failed(error, 1))?;
    let mut walk = Walk { last: 0, hash: chain::GENESIS, bad: Vec::new() };
    let (mut before, mut claimed) = (0_i64, chain::GENESIS);
    while let Some(found) = rows.next().map_err(|error| failed(error, before + 1))? {
        let read = (|| Ok((found.get(0)?, found.get(1)?, found.get(2)?)))();
        let (position, payload, stored): (i64, String, Vec<u8>) =
            read.map_err(|error: rusqlite::Error| failed(error, before + 1))?;
        let hash = chain::next(&claimed, &payload);
        let wrong = if position != before + 1 {
            Some("rows before it are missing".to_owned())
        } else if stored != hash {
            Some("its hash does not match".to_owned())
        } else {
            row::decode(&payload).err().map(|error| format!("it cannot be read: {error}"))
        };
        match wrong {
            Some(reason) => walk.bad.push((position, reason)),
            None => (walk.last, walk.hash) = (position, hash),
        }
        claimed = stored.try_into().unwrap_or(hash);
        before = position;
    }
    Ok(walk)
}

/// Takes bad rows out, keeps a copy of all as it was, and chains the rest again.
fn set_aside(connection: &Connection, path: &Path, walk: &Walk) -> Result<Quarantined, OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let rows: Vec<i64> = walk.bad.iter().map(|(position, _)| *position).collect();
    let first = rows.first().copied().unwrap_or_default();
    let mut copy = path.with_file_name(format!("journal.quarantined-{first}.sqlite"));
    for again in 2.. {
        if !copy.exists() {
            break;
        }
        copy = path.with_file_name(format!("journal.quarantined-{first}-{again}.sqlite"));
    }
    connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]).map_err(failed)?;
    let good: Vec<String> = {
        let mut statement =
            connection.prepare("SELECT position, payload FROM journal ORDER BY position").map_err(failed)?;
        let found = statement
            .query_map([], |found| Ok((found.get::<_, i64>(0)?, found.get::<_, String>(1)?)))
            .map_err(failed)?;
        let all: Vec<(i64, String)> = found.collect::<Result<_, _>>().map_err(failed)?;
        all.into_iter().filter(|(position, _)| !rows.contains(position)).map(|(_, payload)| payload).collect()
    };
    let reason = walk.bad.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
    let damaged: Vec<String> = rows.iter().map(ToString::to_string).collect();
    let change = || -> rusqlite::Result<()> {
        connection.execute_batch("BEGIN IMMEDIATE; DELETE FROM journal;")?;
        let mut insert =
            connection.prepare("INSERT INTO journal (position, payload, hash) VALUES (?1, ?2, ?3)")?;
        let mut hash = chain::GENESIS;
        for (position, payload) in (1_i64..).zip(&good) {
            hash = chain::next(&hash, payload);
            insert.execute(rusqlite::params![position, payload, hash])?;
        }
        connection.execute(
            "INSERT INTO quarantine (journal_end, damaged, reason, copy) VALUES (?1, ?2, ?3, ?4)",
            rusqlite::params![
                i64::try_from(good.len()).unwrap_or(i64::MAX),
                damaged.join(","),
                reason,
                copy.to_string_lossy()
            ],
        )?;
        connection.execute_batch("COMMIT")
    };
    change().map_err(failed)?;
    tracing::error!(rows = ?rows, %reason, copy = %copy.display(), "damaged rows of the journal were set aside");
    Ok(Quarantined { rows, reason, copy })
}

/// What was taken out before, if nothing was written since.
fn set_aside_before(connection: &Connection, last: i64) -> rusqlite::Result<Option<Quarantined>> {
    let newest =
        "SELECT damaged, reason, copy FROM quarantine WHERE journal_end = ?1 ORDER BY rowid DESC LIMIT 1";
    connection
        .query_row(newest, [last], |found| {
            let (damaged, reason, copy): (String, String, String) =
                (found.get(0)?, found.get(1)?, found.get(2)?);
            let rows = damaged.split(',').filter_map(|row| row.parse().ok()).collect();
            Ok(Quarantined { rows, reason, copy: PathBuf::from(copy) })
        })
        .optional()
}

/// Ties answers that a crash left open to the operation that the journal has, and gives back the keys of requests that
/// never began. An operation that was named and is not in the journal did nothing, unless rows were taken out of it.
pub(crate) fn settle_answers(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "UPDATE answers SET operation = coalesce(
             (SELECT payload ->> '$.operation' FROM journal
              WHERE payload ->> '$.type' = 'operationAccepted' AND payload ->> '$.key' = answers.key
                  AND (payload ->> '$.operation' = answers.operation OR payload ->> '$.at' >= answers.at)
              ORDER BY position DESC LIMIT 1),
             CASE WHEN EXISTS (SELECT 1 FROM quarantine) THEN operation END
         ) WHERE status IS NULL;
         DELETE FROM answers WHERE status IS NULL AND operation IS NULL;",
    )
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
