//! Where the log goes: standard error, and files in the data folder that are kept for two weeks.
//!
//! Nothing waits for them: lines that a disk or a terminal does not take are dropped and counted, never an order.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// Days of which files are kept.
const KEPT: usize = 14;

/// Lines that wait for a terminal or pipe which does not read.
const CONSOLE_LINES: usize = 4_096;

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// How lines of the files look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// An object a line.
    #[default]
    Json,
    /// As on standard error.
    Text,
}

/// Keeps the files; what still waits is written when it is dropped.
pub(crate) struct Logs {
    _writers: Vec<WorkerGuard>,
}

/// Starts the log. Files that cannot be written are named and left out.
pub(crate) fn start(data_dir: &Path, format: LogFormat) -> Logs {
    let filter = || EnvFilter::try_from_env("DELTAPLANE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let (stderr, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(CONSOLE_LINES)
        .thread_name("stderr")
        .finish(std::io::stderr());
    let mut counters = vec![stderr.error_counter()];
    let on_terminal = fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(stderr)
        .with_filter(filter())
        .boxed();
    let mut layers: Vec<BoxedLayer> = vec![on_terminal];
    let mut writers = vec![guard];
    let folder = data_dir.join("logs");
    for (name, least) in [("system", LevelFilter::TRACE), ("error", LevelFilter::WARN)] {
        match file(&folder, name) {
            Ok((writer, guard)) => {
                writers.push(guard);
                counters.push(writer.error_counter());
                let lines = match format {
                    LogFormat::Json => fmt::layer().json().with_writer(writer).boxed(),
                    LogFormat::Text => fmt::layer().with_ansi(false).with_writer(writer).boxed(),
                };
                layers.push(lines.with_filter(filter()).with_filter(least).boxed());
            }
            // A closed standard error is no reason to end.
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "no log file in {}: {error}", folder.display());
            }
        }
    }
    // The log of a program that embeds the server stays.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    tokio::spawn(report_dropped(counters));
    Logs { _writers: writers }
}

/// Says how many lines were dropped, once a minute while more are.
async fn report_dropped(counters: Vec<ErrorCounter>) {
    let mut known = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let dropped = counters.iter().map(ErrorCounter::dropped_lines).fold(0_usize, usize::saturating_add);
        if dropped > known {
            tracing::warn!(
                lines = dropped - known,
                "log lines were dropped: a terminal, a pipe or the disk did not take them"
            );
            known = dropped;
        }
    }
}

/// A file of each day, and a link with the plain name to the newest.
fn file(folder: &Path, name: &str) -> Result<(NonBlocking, WorkerGuard), Box<dyn std::error::Error>> {
    // The link holds the path as it is given, and must not depend on where it is read from.
    let folder = std::path::absolute(folder)?;
    std::fs::create_dir_all(&folder)?;
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(name)
        .filename_suffix("log")
        .latest_symlink(format!("{name}.log"))
        .max_log_files(KEPT)
        .build(folder)?;
    Ok(tracing_appender::non_blocking(appender))
}
