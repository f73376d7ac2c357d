//! Tables of the exchanges in files of the data folder, so that a start asks for little.

use std::path::{Path, PathBuf};

use deltaplane_ports::TableStore;
use deltaplane_types::Timestamp;

/// The folder below the data folder.
const FOLDER: &str = "tables";

/// One file for each table: a line with the time at which the exchange was asked, in milliseconds, then the table as the
/// exchange wrote it.
#[derive(Debug)]
pub(crate) struct TableFolder(PathBuf);

impl TableFolder {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(data_dir.join(FOLDER))
    }

    fn path(&self, name: &str) -> PathBuf {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
        self.0.join(format!("{plain}.table"))
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // A table is there whole or as it was.
    let part = path.with_extension("part");
    std::fs::write(&part, text)?;
    std::fs::rename(&part, path)
}

impl TableStore for TableFolder {
    fn load(&self, name: &str) -> Option<(Timestamp, String)> {
        let text = std::fs::read_to_string(self.path(name)).ok()?;
        let (at, table) = text.split_once('\n')?;
        Some((Timestamp::from_millis(at.parse().ok()?), table.to_owned()))
    }

    fn store(&self, name: &str, at: Timestamp, text: &str) {
        let (path, text) = (self.path(name), format!("{}\n{text}", at.as_millis()));
        let write = move || {
            if let Err(error) = write(&path, &text) {
                tracing::warn!(path = %path.display(), %error, "a table of the exchange is not kept: the next start asks for it");
            }
        };
        match tokio::runtime::Handle::try_current() {
            // A slow disk holds no hedge up.
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_with_its_age_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let tables = TableFolder::new(folder.path());
        assert_eq!(tables.load("binance-main-brackets"), None);
        let at = Timestamp::from_millis(1_764_000_000_000);
        tables.store("binance-main-brackets", at, "[{\"symbol\":\"BTCUSDT\"}]\n");
        let kept = tables.load("binance-main-brackets");
        assert_eq!(kept, Some((at, "[{\"symbol\":\"BTCUSDT\"}]\n".to_owned())));
        // A name is no path.
        tables.store("../../etc/passwd", at, "x");
        assert!(folder.path().join("tables/.._.._etc_passwd.table").is_file());
        std::fs::write(folder.path().join("tables/binance-main-brackets.table"), "yesterday\n[]").unwrap();
        assert_eq!(tables.load("binance-main-brackets"), None);
    }
}
