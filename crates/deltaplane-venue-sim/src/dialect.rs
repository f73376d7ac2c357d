//! Whose protocol an exchange speaks, and what comes with it.

use std::time::Duration;

use deltaplane_types::{Decimal, parse_exact};

use crate::config::{Exact, SymbolConfig};
use crate::core::Rules;

/// Whose protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Binance USDⓈ-M Futures.
    Binance,
    /// Aster perpetual futures, V1 and V3.
    Aster,
    /// Pacifica perpetual futures.
    Pacifica,
}

/// Times and counts of an exchange's streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamRules {
    /// How often the exchange pings.
    pub ping_every: Duration,
    /// A client whose last pong is older than this is cut off.
    pub pong_within: Duration,
    /// A client that sends nothing for this long is cut off.
    pub idle_within: Duration,
    /// A connection is cut off at this age.
    pub lifetime: Duration,
    /// Streams on one connection.
    pub max_streams: usize,
    /// Messages of a client in a second.
    pub messages_per_second: u32,
}

/// Points that no published source settles: the exchange may behave either way, so connectors must bear both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Switches {
    /// Aster: `leverageBrackets` answers one object for one symbol; else an array.
    pub brackets_as_object: bool,
    /// Aster: numbers that are documented as JSON numbers come as strings.
    pub numbers_as_strings: bool,
    /// Aster: a post-only order that would take is refused with `-5022`; else it is taken in and expires.
    pub post_only_refused: bool,
    /// Aster: the decoded form of a signed string is accepted too.
    pub accepts_decoded_signatures: bool,
    /// Aster: the form of 2025 (ABI and EIP-191) is accepted too.
    pub accepts_legacy_signatures: bool,
    /// Pacifica: failures of signatures answer a bare JSON string; else an object.
    pub bare_string_errors: bool,
    /// Pacifica: success answers come without their envelope.
    pub bare_answers: bool,
    /// Pacifica: `account/settings` answers the array of old; else the object.
    pub settings_as_array: bool,
    /// Pacifica: business codes follow the short table of 2025.
    pub short_error_codes: bool,
    /// Pacifica: an identical signed body is refused the second time.
    pub refuses_replays: bool,
    /// Pacifica: the history of orders begins with the oldest; else with the newest.
    pub oldest_orders_first: bool,
    /// Pacifica: the account's trades are not told on the stream.
    pub silent_trades: bool,
}

impl Dialect {
    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binance => "binance",
            Self::Aster => "aster",
            Self::Pacifica => "pacifica",
        }
    }

    /// What its engine does in its own way.
    pub fn rules(self) -> Rules {
        match self {
            Self::Binance => Rules::binance(),
            Self::Aster => Rules::aster(),
            Self::Pacifica => Rules::pacifica(),
        }
    }

    /// Times and counts of its streams, as its documentation gives them.
    pub fn stream_rules(self) -> StreamRules {
        let minutes = |count: u64| Duration::from_secs(count * 60);
        let day = Duration::from_secs(24 * 60 * 60);
        match self {
            Self::Binance => StreamRules {
                ping_every: minutes(3),
                pong_within: minutes(10),
                idle_within: day,
                lifetime: day,
                max_streams: 1_024,
                messages_per_second: 10,
            },
            Self::Aster => StreamRules {
                ping_every: minutes(5),
                pong_within: minutes(15),
                idle_within: day,
                lifetime: day,
                max_streams: 200,
                messages_per_second: 10,
            },
            Self::Pacifica => StreamRules {
                ping_every: day,
                pong_within: day,
                idle_within: Duration::from_secs(60),
                lifetime: day,
                max_streams: 20,
                messages_per_second: 1_000,
            },
        }
    }

    /// What it lists: bitcoin, ether, and a thousand of a coin too cheap to list alone.
    pub fn default_symbols(self) -> Vec<SymbolConfig> {
        let exact = |text: &str| Exact(parse_exact(text).unwrap_or(Decimal::ONE));
        let symbol =
            |name: &str, base: &str, [tick, step, least, start, most]: [&str; 5], hours, leverage| {
                SymbolConfig {
                    is_trading: true,
                    delivers_at: None,
                    contract_type: "PERPETUAL".to_owned(),
                    name: name.to_owned(),
                    base: base.to_owned(),
                    tick_size: exact(tick),
                    step_size: exact(step),
                    min_quantity: exact(step),
                    market_max_quantity: exact(most),
                    min_notional: exact(least),
                    start_price: exact(start),
                    funding_rate: exact(if self == Self::Pacifica { "0.0000125" } else { "0.0001" }),
                    funding_interval_hours: hours,
                    max_leverage: leverage,
                }
            };
        match self {
            Self::Binance => vec![
                symbol("BTCUSDT", "BTC", ["0.1", "0.001", "50", "66000", "120"], 8, 125),
                symbol("ETHUSDT", "ETH", ["0.01", "0.001", "20", "2600", "2000"], 8, 125),
                symbol("1000BONKUSDT", "1000BONK", ["0.000001", "1", "5", "0.025", "10000000"], 4, 75),
            ],
            Self::Aster => vec![
                symbol("BTCUSDT", "BTC", ["0.1", "0.001", "5", "66000", "120"], 8, 125),
                symbol("ETHUSDT", "ETH", ["0.01", "0.001", "5", "2600", "2000"], 8, 125),
                symbol("ASTERUSDT", "ASTER", ["0.0001", "0.01", "5", "0.5", "200000"], 1, 75),
                symbol("1000BONKUSDT", "1000BONK", ["0.000001", "1", "5", "0.025", "10000000"], 1, 75),
            ],
            Self::Pacifica => vec![
                symbol("BTC", "BTC", ["1", "0.00001", "10", "66000", "60"], 1, 50),
                symbol("ETH", "ETH", ["0.1", "0.0001", "10", "2600", "1500"], 1, 50),
                symbol("kBONK", "kBONK", ["0.000001", "1", "10", "0.025", "10000000"], 1, 10),
            ],
        }
    }
}
