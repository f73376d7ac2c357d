//! Where an exchange's prices come from.

mod recording;
mod synthetic;

use std::path::PathBuf;
use std::sync::Arc;

use deltaplane_types::Decimal;

pub use recording::{RecordedFrame, Recording, RecordingError};

use crate::sim::Sim;

/// Where prices come from.
#[derive(Clone, Debug)]
pub enum Market {
    /// A seeded random walk. Exchanges with the same `seed` share its course; `venue` makes the small spread
    /// between them, which returns to zero.
    Synthetic {
        /// The course.
        seed: u64,
        /// The spread to the course.
        venue: u64,
        /// Stands still at this price where given.
        mark: Option<Decimal>,
    },
    /// The frames of a recording, as they are.
    Replay {
        /// The file, plain or gzip.
        path: PathBuf,
        /// Percent of real speed; zero is as fast as subscribers read.
        speed_percent: u32,
        /// Whether it begins again at its end.
        repeat: bool,
    },
}

/// Drives the exchange's market until the task is dropped.
pub(crate) async fn run(sim: Arc<Sim>, market: Market) {
    match market {
        Market::Synthetic { seed, venue, mark } => synthetic::run(sim, seed, venue, mark).await,
        Market::Replay { path, speed_percent, repeat } => {
            recording::run(sim, path, speed_percent, repeat).await;
        }
    }
}
