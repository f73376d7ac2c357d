//! The deltaplane server. Without configuration it starts paper mode on `127.0.0.1:3000`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use deltaplane_server::Options;

/// Keeps books of perpetual futures delta-neutral over several exchanges.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// TOML file; without it the server starts paper mode.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address of the API; loopback only.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address of a second listener for health, kill switch, flatten and stop alone, on a thread of its own; loopback only.
    #[arg(long)]
    control_listen: Option<SocketAddr>,
    /// A name under which the server is reached beside localhost and addresses, as behind a TLS proxy; may be repeated.
    #[arg(long = "public-host", value_name = "NAME")]
    public_hosts: Vec<String>,
    /// Folder of the journal.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Paper mode: replays this recording instead of a synthetic market.
    #[arg(long)]
    market_recording: Option<PathBuf>,
    /// Paper mode: how long a request takes to a simulated exchange, and an answer or event back, milliseconds each way.
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u16).range(..=5_000))]
    paper_latency: Option<u16>,
    /// Sends real orders; the configuration must say mode = "live" too.
    #[arg(long)]
    live: bool,
    /// Accepts that rows of the journal are damaged or lost, this once: they are set aside, and only what reduces
    /// risk is traded until you say RUNNING.
    #[arg(long)]
    accept_quarantine: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    deltaplane_server::process::prepare();
    let Arguments {
        config,
        listen,
        control_listen,
        public_hosts,
        data_dir,
        market_recording,
        paper_latency,
        live,
        accept_quarantine,
    } = Arguments::parse();
    let paper_latency = paper_latency.map(|millis| Duration::from_millis(millis.into()));
    let options = Options {
        config,
        listen,
        control_listen,
        public_hosts,
        data_dir,
        market_recording,
        paper_latency,
        live,
        accept_quarantine,
    };
    match deltaplane_server::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "deltaplane cannot start: {error:#}");
            ExitCode::FAILURE
        }
    }
}
