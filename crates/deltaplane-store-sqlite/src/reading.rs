//! Reading a journal beside the process that writes it, for people.

use std::path::{Path, PathBuf};

use deltaplane_ports::StoredRecord;
use rusqlite::{Connection, OpenFlags};

use crate::open::{OpenError, verify};
use crate::row;

/// A journal as it stands, with what is wrong with it.
#[derive(Debug)]
pub struct JournalReading {
    /// The file.
    pub path: PathBuf,
    /// Every row that can be read, oldest first.
    pub records: Vec<StoredRecord>,
    /// The last good row.
    pub last: i64,
    /// Its hash, in hexadecimal: the head of the chain.
    pub head: String,
    /// Rows that do not verify, with what is wrong.
    pub bad: Vec<(i64, String)>,
}

impl JournalReading {
    /// Reads `journal.sqlite` in a folder. Nothing is written, and a server may be at work on it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if there is no such file or it is no journal.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join("journal.sqlite");
        let failed = |source| OpenError::Sqlite { path: path.clone(), source };
        let connection =
            Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        let walk = verify(&connection, &path)?;
        let mut statement =
            connection.prepare("SELECT position, payload FROM journal ORDER BY position").map_err(failed)?;
        let rows = statement
            .query_map([], |found| Ok((found.get::<_, i64>(0)?, found.get::<_, String>(1)?)))
            .map_err(failed)?;
        let mut records = Vec::new();
        for found in rows {
            let (position, payload) = found.map_err(failed)?;
            if let (Ok(record), Ok(position)) = (row::decode(&payload), u64::try_from(position)) {
                records.push(StoredRecord { position, record });
            }
        }
        let head = blake3::Hash::from_bytes(walk.hash).to_hex().to_string();
        drop(statement);
        Ok(Self { path, records, last: walk.last, head, bad: walk.bad })
    }
}
