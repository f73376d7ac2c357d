//! What the operating system gives this process: file handles, and who may read what it writes.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use deltaplane_api::ServerLimits;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

/// Handles that clients of the API never get: connections to exchanges, the journal, the history, logs and the control
/// listener need them.
const RESERVED_HANDLES: u64 = 384;

/// Makes every file that is written from now on private, and raises the limit on open files as far as the system allows.
pub fn prepare() {
    umask(Mode::RWXG | Mode::RWXO);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Where it stays, fewer clients are served.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// The limits of the API: its connections leave [`RESERVED_HANDLES`] of the process's open files to everything else.
pub(crate) fn server_limits() -> ServerLimits {
    let usual = ServerLimits::default();
    let Some(handles) = getrlimit(Resource::Nofile).current else { return usual };
    ServerLimits { connections: connections(handles, usual.connections), ..usual }
}

fn connections(handles: u64, usual: usize) -> usize {
    // A connection that is being closed holds its handle for a moment longer.
    let most = handles.saturating_sub(RESERVED_HANDLES) / 2;
    usize::try_from(most).unwrap_or(usize::MAX).clamp(16, usual)
}

/// Creates the data folder for its owner alone. One of before that others can open is closed to them, if it is ours.
pub(crate) fn private_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let shown = folder.display();
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    created.with_context(|| format!("cannot use the data folder {shown}: choose another with --data-dir"))?;
    let mode =
        std::fs::metadata(folder).with_context(|| format!("cannot read {shown}"))?.permissions().mode();
    // A folder that holds other things than our data stays as it is; our files are private in any case.
    let is_ours = folder.join("journal.sqlite").exists();
    if is_ours && mode & 0o077 != 0 {
        let private = std::fs::Permissions::from_mode(mode & 0o7700);
        if let Err(error) = std::fs::set_permissions(folder, private) {
            let _ = writeln!(std::io::stderr(), "{shown} is open to other users and stays so: {error}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_handles_to_exchanges_and_journal() {
        let of = |handles| connections(handles, 1_024);
        assert_eq!([of(1_024), of(4_096), of(1_048_576)], [320, 1_024, 1_024]);
        assert_eq!(of(256), 16, "some clients are always served");
    }
}
