//! Embeds the engine with two venues in process and brings a skewed book back to neutral.

use std::sync::Arc;

use deltaplane_engine::{AccountParts, Engine, EngineConfig, EngineParts, IdKey};
use deltaplane_ports::{Clock, ControlPlane, DeltaControl, IdSource, PriceFeed};
use deltaplane_types::{Decimal, Delta, Ratio, Timestamp, parse_exact};
use deltaplane_venue_sim::config::ExchangeConfig;
use deltaplane_venue_sim::{Dialect, InProcessVenue};

/// A clock and names that are good enough for one run of an example.
struct Example(tokio::time::Instant);
impl Clock for Example {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000).after(self.0.elapsed())
    }
}
impl IdSource for Example {
    fn unique(&self) -> String {
        self.0.elapsed().as_nanos().to_string()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let time = Arc::new(Example(tokio::time::Instant::now()));
    let file = "[[account]]\nid='long'\napi_key='k'\nsecret='s'\npositions={BTCUSDT='0.5'}
        [[account]]\nid='short'\napi_key='k'\nsecret='s'\npositions={BTCUSDT='-0.25'}";
    let (mut accounts, mut feeds) = (Vec::new(), Vec::<Arc<dyn PriceFeed>>::new());
    for account in ExchangeConfig::from_toml(file, Dialect::Binance)?.accounts {
        let id = account.id.clone();
        let venue = InProcessVenue::new(account, Decimal::from(66_000), time.clone())?;
        feeds.push(venue.clone());
        let (reader, gateway, exchange) = (venue.clone(), venue, "in process".to_owned());
        accounts.push(AccountParts {
            id: id.parse()?,
            venue: id.parse()?,
            exchange,
            reader,
            gateway,
            feed: id.parse()?,
        });
    }
    let folder = tempfile::tempdir()?;
    let journal = Arc::new(deltaplane_store_sqlite::SqliteStore::open(folder.path())?);
    let config = EngineConfig::new("BTC-USD".parse()?, IdKey::new(b"a secret of this installation"));
    let engine = Engine::start(EngineParts {
        config,
        accounts,
        feeds,
        proxy_pools: Vec::new(),
        budgets: Vec::new(),
        journal,
        history: Arc::new(deltaplane_engine::MemoryHistory::default()),
        clock: time.clone(),
        ids: time,
    })
    .await?;
    let names = vec!["long".parse()?, "short".parse()?];
    let limit = Ratio::new(parse_exact("0.1")?);
    let request = DeltaControl::new("BTC-USD".parse()?, names, Delta::ZERO, limit);
    let started = engine.control_delta(request).await.map_err(|failure| anyhow::anyhow!(failure.error))?;
    let report = started.report.await?;
    let shown =
        |delta: Option<Delta>| delta.map_or_else(|| "not known".to_owned(), |delta| delta.to_string());
    println!("net delta {} -> {}", shown(report.initial_delta), shown(report.final_delta));
    report.failure.map_or(Ok(()), |failure| Err(anyhow::anyhow!(failure.error)))
}
