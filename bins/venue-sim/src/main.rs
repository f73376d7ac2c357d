//! A simulated exchange on real sockets, alone. Prints one line of JSON when it is ready.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use deltaplane_ports::Clock;
use deltaplane_types::{Decimal, Timestamp, parse_exact};
use deltaplane_venue_sim::config::ExchangeConfig;
use deltaplane_venue_sim::{Dialect, Market, SimClock, SimOptions};

/// Which exchange's protocol is spoken.
#[derive(Clone, Copy, ValueEnum)]
enum Venue {
    /// Binance USDⓈ-M Futures.
    Binance,
    /// Aster perpetual futures, V1 and V3.
    Aster,
    /// Pacifica perpetual futures.
    Pacifica,
}

impl From<Venue> for Dialect {
    fn from(venue: Venue) -> Self {
        match venue {
            Venue::Binance => Self::Binance,
            Venue::Aster => Self::Aster,
            Venue::Pacifica => Self::Pacifica,
        }
    }
}

/// A simulated exchange on real sockets.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Whose protocol to speak.
    #[arg(long, value_enum)]
    venue: Venue,
    /// TOML file with the accounts and, optionally, the instruments.
    #[arg(long)]
    config: PathBuf,
    /// Address of REST and streams.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the control port; loopback only.
    #[arg(long, default_value = "127.0.0.1:0")]
    control: SocketAddr,
    /// Freezes the clock at this many milliseconds since the epoch.
    #[arg(long)]
    clock_ms: Option<i64>,
    /// Freezes the price.
    #[arg(long, value_parser = parse_price)]
    mark: Option<Decimal>,
    /// Seed of the synthetic market.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Replays this recording instead of a synthetic market.
    #[arg(long)]
    recording: Option<PathBuf>,
    /// Speed of the replay in percent of the recorded one; 0 is as fast as possible.
    #[arg(long, default_value_t = 100)]
    speed: u32,
    /// Delay on each way of a REST request, milliseconds.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// How long Pacifica holds back an order that may take, milliseconds.
    #[arg(long, default_value_t = 200)]
    speed_bump_ms: u64,
    /// Multiplies Pacifica's credits.
    #[arg(long, default_value_t = 1)]
    credit_factor: u64,
    /// What goes wrong when: a file with one request to the control port a line, as
    /// `{"atMs": 500, "method": "POST", "path": "/faults", "body": {"kind": "acceptThenSilence"}}`.
    #[arg(long)]
    script: Option<PathBuf>,
    /// Chain id of Aster's signatures: 1666, or 714 on its test network.
    #[arg(long, default_value_t = 1_666)]
    chain_id: u64,
}

fn parse_price(text: &str) -> Result<Decimal, String> {
    let price = parse_exact(text).map_err(|error| error.to_string())?;
    if price > Decimal::ZERO { Ok(price) } else { Err("a price is above zero".to_owned()) }
}

struct WallClock;

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "the real clock is made here, once")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let file = arguments.config.display();
    let text = std::fs::read_to_string(&arguments.config).with_context(|| format!("cannot read {file}"))?;
    let dialect = Dialect::from(arguments.venue);
    let mut config = ExchangeConfig::from_toml(&text, dialect)
        .with_context(|| format!("{file} is not a configuration"))?;
    if let Some(mark) = arguments.mark {
        // Entry prices of start positions follow the frozen price.
        for symbol in config.symbols.iter_mut().take(1) {
            symbol.start_price.0 = mark;
        }
    }
    let clock = match arguments.clock_ms {
        Some(at) => SimClock::Frozen(Arc::new(AtomicI64::new(at))),
        None => SimClock::Running(Arc::new(WallClock)),
    };
    let market = match arguments.recording {
        Some(path) => Market::Replay { path, speed_percent: arguments.speed, repeat: false },
        None => Market::Synthetic { seed: arguments.seed, venue: arguments.seed, mark: arguments.mark },
    };
    let script = match &arguments.script {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            deltaplane_venue_sim::read_script(&text).with_context(|| path.display().to_string())?
        }
        None => Vec::new(),
    };
    let options = SimOptions {
        script,
        latency: Duration::from_millis(arguments.latency_ms),
        speed_bump: Duration::from_millis(arguments.speed_bump_ms),
        credit_factor: arguments.credit_factor,
        chain_id: arguments.chain_id,
        ..SimOptions::new(dialect, config, clock, market)
    };
    let running = deltaplane_venue_sim::start(options, arguments.listen, Some(arguments.control)).await?;
    println!(
        "{}",
        serde_json::json!({"rest": running.rest(), "ws": running.ws(), "control": running.control()})
    );
    tokio::signal::ctrl_c().await.context("cannot wait for the interrupt")
}
