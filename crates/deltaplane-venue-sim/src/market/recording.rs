//! Recorded frames: one a line, receive time in nanoseconds, a space, the JSON of a combined stream.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_types::{Decimal, parse_exact};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::core::Command;
use crate::sim::{Frame, Sim, lock};

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("cannot read the recording {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is not a frame.
    #[error("line {line} of the recording is not a frame: {reason}")]
    NotAFrame {
        /// The line, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
}

/// One frame.
#[derive(Clone, Debug)]
pub struct RecordedFrame {
    /// When it was received, nanoseconds since the epoch.
    pub received_ns: i64,
    /// The stream's name; none for the REST snapshot.
    pub stream: Option<String>,
    /// The event's JSON.
    pub data: Arc<str>,
}

/// A file of frames, read as it goes.
pub struct Recording {
    lines: Box<dyn BufRead + Send>,
    path: PathBuf,
    line: usize,
}

#[derive(Deserialize)]
struct Combined<'a> {
    #[serde(borrow)]
    stream: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct DepthEvent {
    u: u64,
    b: Vec<(String, String)>,
    a: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    last_update_id: u64,
    bids: Vec<(String, String)>,
    asks: Vec<(String, String)>,
}

impl Recording {
    /// Opens a file, plain or gzip.
    ///
    /// # Errors
    ///
    /// [`RecordingError::Unreadable`].
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let fail = |source| RecordingError::Unreadable { path: path.to_owned(), source };
        let mut magic = [0_u8; 2];
        let mut file = File::open(path).map_err(fail)?;
        let read = file.read(&mut magic).map_err(fail)?;
        let file = File::open(path).map_err(fail)?;
        let lines: Box<dyn BufRead + Send> = if read == 2 && magic == [0x1f, 0x8b] {
            Box::new(BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Box::new(BufReader::new(file))
        };
        Ok(Self { lines, path: path.to_owned(), line: 0 })
    }
}

impl Iterator for Recording {
    type Item = Result<RecordedFrame, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = String::new();
        match self.lines.read_line(&mut text) {
            Ok(0) => return None,
            Ok(_) => self.line += 1,
            Err(source) => return Some(Err(RecordingError::Unreadable { path: self.path.clone(), source })),
        }
        Some(
            parse_line(text.trim_end())
                .map_err(|reason| RecordingError::NotAFrame { line: self.line, reason }),
        )
    }
}

fn parse_line(text: &str) -> Result<RecordedFrame, String> {
    let (time, json) = text.split_once(' ').ok_or("no space after the time")?;
    let received_ns = time.parse().map_err(|error| format!("time {time:?}: {error}"))?;
    let combined: Combined<'_> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    Ok(match (combined.stream, combined.data) {
        (Some(stream), Some(data)) => {
            RecordedFrame { received_ns, stream: Some(stream.into_owned()), data: data.get().into() }
        }
        _ => RecordedFrame { received_ns, stream: None, data: json.into() },
    })
}

fn levels(texts: &[(String, String)]) -> Result<Vec<(Decimal, Decimal)>, String> {
    let decimal = |text: &str| parse_exact(text).map_err(|error| format!("{text:?}: {error}"));
    texts.iter().map(|(price, quantity)| Ok((decimal(price)?, decimal(quantity)?))).collect()
}

/// The command that folds a frame into the book, where the frame is of the book.
fn command(symbol: &str, frame: &RecordedFrame) -> Result<Option<Command>, String> {
    let (bids, asks, update_id, reset) = match frame.stream.as_deref() {
        None => {
            let snapshot: Snapshot = serde_json::from_str(&frame.data).map_err(|error| error.to_string())?;
            (levels(&snapshot.bids)?, levels(&snapshot.asks)?, snapshot.last_update_id, true)
        }
        Some(stream) if stream.contains("@depth") => {
            let event: DepthEvent = serde_json::from_str(&frame.data).map_err(|error| error.to_string())?;
            (levels(&event.b)?, levels(&event.a)?, event.u, false)
        }
        Some(_) => return Ok(None),
    };
    Ok(Some(Command::Market { symbol: symbol.to_owned(), bids, asks, update_id, reset, mark: None }))
}

pub(super) async fn run(sim: Arc<Sim>, path: PathBuf, speed_percent: u32, repeat: bool) {
    loop {
        if let Err(error) = replay(&sim, &path, speed_percent).await {
            tracing::error!(%error, "the replay ended");
            return;
        }
        if !repeat {
            return;
        }
    }
}

async fn replay(sim: &Arc<Sim>, path: &Path, speed_percent: u32) -> Result<(), RecordingError> {
    let bad = |line: usize| move |reason| RecordingError::NotAFrame { line, reason };
    // The book begins with the recorded snapshot; frames before it are sent and not applied.
    let mut first = None;
    let mut symbol = None;
    for frame in Recording::open(path)? {
        let frame = frame?;
        match &frame.stream {
            Some(stream) => symbol = symbol.or_else(|| stream.split('@').next().map(str::to_owned)),
            None => {
                first = Some(frame);
                break;
            }
        }
    }
    let lower: Arc<str> = symbol.unwrap_or_else(|| "btcusdt".to_owned()).into();
    // An exchange that names its markets by the base asset alone replays the frames under that name.
    let recorded = lower.to_uppercase();
    let base = recorded.strip_suffix("USDT").unwrap_or(&recorded).to_owned();
    let upper = if sim.with(|exchange| exchange.markets.contains_key(&recorded)) { recorded } else { base };
    sim.with_mut(|exchange| {
        if let Some(market) = exchange.markets.get_mut(&upper) {
            market.consumes = false;
        }
    });
    let mut newest = 0;
    if let Some(frame) = &first
        && let Some(command) = command(&upper, frame).map_err(bad(0))?
    {
        if let Command::Market { update_id, .. } = &command {
            newest = *update_id;
        }
        let _ = sim.apply(command);
    }
    let began = tokio::time::Instant::now();
    let mut origin = None;
    let mut marked = began;
    for (index, frame) in Recording::open(path)?.enumerate() {
        let frame = frame?;
        let origin = *origin.get_or_insert(frame.received_ns);
        pace(began, frame.received_ns - origin, speed_percent).await;
        let Some(stream) = frame.stream.clone() else { continue };
        let channel = channel_of(&stream);
        if let Some(command) = command(&upper, &frame).map_err(bad(index + 1))? {
            if let Command::Market { update_id, .. } = &command
                && *update_id > newest
            {
                newest = *update_id;
                let _ = sim.apply(command);
            }
            if lock(&sim.faults).drops_depth() {
                continue;
            }
        }
        let _ = sim.frames.send(Frame { symbol: lower.clone(), channel, json: frame.data.clone() });
        if marked.elapsed() >= Duration::from_secs(1) {
            marked = tokio::time::Instant::now();
            super::synthetic::publish_mark(sim, &upper);
        }
        if speed_percent == 0 && index % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

async fn pace(began: tokio::time::Instant, recorded_ns: i64, speed_percent: u32) {
    if speed_percent == 0 {
        return;
    }
    let nanos = u64::try_from(recorded_ns).unwrap_or(0).saturating_mul(100) / u64::from(speed_percent);
    let due = began + Duration::from_nanos(nanos);
    if due > tokio::time::Instant::now() + Duration::from_millis(1) {
        tokio::time::sleep_until(due).await;
    }
}

fn channel_of(stream: &str) -> &'static str {
    if stream.contains("@depth") {
        "depth"
    } else if stream.ends_with("@bookTicker") {
        "bookTicker"
    } else if stream.ends_with("@aggTrade") {
        "aggTrade"
    } else if stream.contains("@markPrice") {
        "markPrice"
    } else {
        "trade"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_frames_or_say_why_not() {
        let frame = parse_line(r#"17 {"stream":"btcusdt@trade","data":{"p":"1.0"}}"#).unwrap();
        assert_eq!(
            (frame.received_ns, frame.stream.as_deref(), &*frame.data),
            (17, Some("btcusdt@trade"), r#"{"p":"1.0"}"#)
        );
        assert_eq!(parse_line(r#"17 {"lastUpdateId":5,"bids":[],"asks":[]}"#).unwrap().stream, None);
        for bad in ["", "17", "x {}", "17 {", "17 []x"] {
            assert!(parse_line(bad).is_err(), "{bad:?}");
        }
    }
}
