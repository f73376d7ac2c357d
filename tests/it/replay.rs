//! A recorded market through the exchange, the connector and the engine.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_ports::{Journal as _, Record};
use deltaplane_risk::{ExposureStep, unhedged_dollar_seconds};
use deltaplane_store_sqlite::SqliteStore;
use deltaplane_testkit::{delta, ratio};
use deltaplane_tests::recording::{is_synthetic, recording};
use deltaplane_tests::{Place, World, engine, exchange, ready, until};
use deltaplane_types::{Decimal, Delta, Price, Side, parse_exact};
use deltaplane_venue_fapi::{BookStep, BookSync, fold_frame, wire};
use deltaplane_venue_sim::{Market, Recording};
use rand::{Rng as _, SeedableRng as _};

/// A fold of the recording that shares no code with the connector: loose JSON into a plain map.
#[derive(Default)]
struct PlainBook {
    bids: BTreeMap<Decimal, Decimal>,
    asks: BTreeMap<Decimal, Decimal>,
    id: u64,
}

impl PlainBook {
    fn apply(&mut self, event: &serde_json::Value) {
        let id = event["u"].as_u64().unwrap();
        if id > self.id {
            self.id = id;
            Self::set(&mut self.bids, &event["b"]);
            Self::set(&mut self.asks, &event["a"]);
        }
    }

    fn set(side: &mut BTreeMap<Decimal, Decimal>, levels: &serde_json::Value) {
        for level in levels.as_array().unwrap() {
            let number = |index: usize| parse_exact(level[index].as_str().unwrap()).unwrap();
            side.insert(number(0), number(1));
        }
        side.retain(|_, quantity| !quantity.is_zero());
    }
}

#[test]
fn the_connectors_book_equals_an_independent_fold() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ours, mut plain) = (BookSync::default(), PlainBook::default());
    let (mut checkpoints, mut depth_frames, mut top_frames) = (0, 0, 0);
    let mut early: Vec<serde_json::Value> = Vec::new();
    for frame in Recording::open(&recording(folder.path())).unwrap() {
        let frame = frame.unwrap();
        let json: serde_json::Value = serde_json::from_str(&frame.data).unwrap();
        let Some(stream) = frame.stream else {
            let snapshot: wire::DepthSnapshot = serde_json::from_str(&frame.data).unwrap();
            assert_ne!(ours.on_snapshot(&snapshot), BookStep::Gap);
            plain = PlainBook { id: json["lastUpdateId"].as_u64().unwrap(), ..PlainBook::default() };
            PlainBook::set(&mut plain.bids, &json["bids"]);
            PlainBook::set(&mut plain.asks, &json["asks"]);
            early.drain(..).for_each(|json| plain.apply(&json));
            continue;
        };
        let text = format!(r#"{{"stream":"{stream}","data":{}}}"#, frame.data);
        let step = fold_frame(&mut ours, &text).unwrap();
        if !stream.contains("@depth") {
            top_frames += 1;
            continue;
        }
        depth_frames += 1;
        assert_ne!(step.unwrap().0, BookStep::Gap, "frame {depth_frames}");
        if plain.id > 0 {
            plain.apply(&json);
        } else {
            early.push(json);
        }
        if plain.id > 0 && depth_frames % 50 == 0 {
            let (bids, asks) = ours.levels();
            let pairs = |levels: Vec<deltaplane_types::Level>| -> Vec<(Decimal, Decimal)> {
                levels.into_iter().map(|level| (level.price.value(), level.quantity.value())).collect()
            };
            assert_eq!(pairs(bids), plain.bids.iter().rev().map(|(p, q)| (*p, *q)).collect::<Vec<_>>());
            assert_eq!(pairs(asks), plain.asks.iter().map(|(p, q)| (*p, *q)).collect::<Vec<_>>());
            checkpoints += 1;
        }
    }
    println!("{depth_frames} depth frames, {top_frames} other frames, {checkpoints} checkpoints equal");
    assert!(checkpoints >= if is_synthetic() { 70 } else { 130 });
}

/// Foreign trades push the book out of balance; the engine brings it back, over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_book_is_kept_neutral_under_foreign_trades_while_a_recording_plays() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path());
    let places = vec![Place::new("main", "0.5"), Place::new("hedge", "-0.5"), Place::new("backup", "0")];
    let speed_percent = if is_synthetic() { 200 } else { 1_200 };
    let mut exchanges = Vec::new();
    for place in &places {
        let market = Market::Replay { path: path.clone(), speed_percent, repeat: false };
        exchanges.push(exchange(place, market).await);
    }
    let data = folder.path().join("data");
    let journal = Arc::new(SqliteStore::open(&data).unwrap());
    let engine = engine(&places, &exchanges, journal.clone()).await;
    ready(&engine).await;
    let accounts = places.iter().map(|place| place.name.parse().unwrap()).collect();
    let world = World { exchanges, engine, accounts };
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let mut steps: Vec<ExposureStep> = Vec::new();
    let began = tokio::time::Instant::now();
    let playing = Duration::from_secs(if is_synthetic() { 6 } else { 18 });
    let (mut operations, mut foreign, mut orders) = (0, 0_usize, 0);
    let (mut fees, mut slippage) = (Decimal::ZERO, Decimal::ZERO);
    let mut notice = |world: &World| {
        let price = mark(world);
        let at_ms = i64::try_from(began.elapsed().as_millis()).unwrap();
        steps.push(ExposureStep {
            at_ms,
            net: Delta::new(world.true_net()),
            price: Price::try_new(price).unwrap(),
        });
    };
    while began.elapsed() < playing {
        let index = random.random_range(0..world.exchanges.len());
        let quantity = Decimal::from_i128_with_scale(random.random_range(5..150), 3);
        let side = if random.random_bool(0.5) { Side::Buy } else { Side::Sell };
        if trade(&world, index, side, quantity) {
            foreign += 1;
        }
        notice(&world);
        for _ in 0..if is_synthetic() { 1 } else { random.random_range(3..8) } {
            let before = mark(&world);
            until("the recording plays on", async || mark(&world) != before).await;
        }
        let report = world
            .control(deltaplane_ports::DeltaControl { tolerance: ratio("0.01"), ..world.to_flat() })
            .await;
        notice(&world);
        operations += 1;
        orders += report.orders.len();
        fees += report.total_fees.unwrap().value();
        slippage += report.slippage_cost.unwrap().value();
        assert_eq!(report.failure, None, "{report:?}");
        assert!(report.deviation_ratio.unwrap() <= ratio("0.1"), "{report:?}");
        assert!(report.orders.iter().all(|order| order.evidence.is_some()), "P3: {report:?}");
        let start = report.initial_delta.unwrap().minus(report.target.unwrap()).unwrap().abs();
        assert!(report.max_transient_delta.unwrap() <= start, "P4: {report:?}");
    }
    let dollars = unhedged_dollar_seconds(delta("0"), &steps).unwrap().round_dp(2);
    println!(
        "{operations} operations, {foreign} foreign trades, {orders} orders, fees {}, slippage {}, {dollars} USD x s unhedged in {playing:?}",
        fees.round_dp(4),
        slippage.round_dp(4)
    );
    assert!(orders > 0 && foreign > 0);
    audit(&world, journal.as_ref()).await;
    drop(world);
    drop(journal);
    // The chain of hashes holds from the first row to the last.
    // The engine's last task lets go of the folder a moment after its end.
    until("it opens again", async || SqliteStore::open(&data).is_ok()).await;
}

fn mark(world: &World) -> Decimal {
    world.exchanges[0].sim().with(|exchange| exchange.markets["BTCUSDT"].mark)
}

/// A person's market order on the same account, through the exchange's own front door.
fn trade(world: &World, index: usize, side: Side, quantity: Decimal) -> bool {
    use deltaplane_venue_sim::core::{Command, NewOrder};
    let order = NewOrder::market("BTCUSDT", side, quantity);
    let account = world.accounts[index].to_string();
    world.exchanges[index].sim().apply(Command::Place { account, order }).is_ok()
}

/// The journal against the exchanges' own books.
async fn audit(world: &World, journal: &SqliteStore) {
    let records: Vec<Record> =
        journal.load().await.unwrap().into_iter().map(|stored| stored.record).collect();
    let mut intents = BTreeSet::new();
    let mut ended = BTreeSet::new();
    let mut fills = BTreeSet::new();
    let mut last_sequence = None;
    for record in &records {
        match record {
            Record::Intent(intent) => {
                assert!(
                    last_sequence.is_none_or(|last| intent.sequence == last + 1),
                    "I15: numbers without gaps"
                );
                last_sequence = Some(intent.sequence);
                assert!(intents.insert(intent.client_order_id.to_string()), "I1: one intent per order");
            }
            Record::Outcome { client_order_id, outcome, .. } => {
                assert!(intents.contains(client_order_id.as_str()), "an outcome without an intent");
                if matches!(outcome, deltaplane_ports::OutcomeRecord::Ended { .. }) {
                    ended.insert(client_order_id.to_string());
                }
            }
            Record::Fill { fill, .. } => {
                assert!(
                    fills.insert((fill.account.clone(), fill.trade_id.clone())),
                    "I9: a trade counted once"
                );
            }
            _ => {}
        }
    }
    let mut seen = 0;
    for running in &world.exchanges {
        running.sim().with(|exchange| {
            for order in exchange.orders.values().filter(|order| !order.client_id.starts_with("web_")) {
                assert!(intents.contains(&order.client_id), "P1: {} has no durable intent", order.client_id);
                assert!(
                    ended.contains(&order.client_id),
                    "P3: {} has no end in the journal",
                    order.client_id
                );
                seen += 1;
                for trade in exchange.trades.iter().filter(|trade| trade.order_id == order.id) {
                    let key = (trade.account.parse().unwrap(), trade.id.to_string().parse().unwrap());
                    assert!(fills.remove(&key), "I9: a trade of ours is missing");
                }
            }
        });
    }
    assert!(fills.is_empty(), "fills that no exchange knows: {fills:?}");
    // Nothing was refused here, so each intent made exactly one order: one wire attempt each.
    assert_eq!(seen, intents.len(), "P2");
}
