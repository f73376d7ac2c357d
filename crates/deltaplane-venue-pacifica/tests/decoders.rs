//! Every wire decoder reads or refuses what it gets; nothing panics.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use deltaplane_ports::SymbolMap;
use deltaplane_venue_pacifica::{NAMES, TopOfBook, wire};
use proptest::prelude::*;

/// Messages in the forms that the venue documents, to be damaged.
const SAMPLES: [&str; 10] = [
    r#"{"channel":"book","data":{"l":[[{"a":"37.86","n":4,"p":"157.47"}],[{"a":"12.72","n":2,"p":"157.49"}]],"s":"SOL","t":1749051881187,"li":1559885104}}"#,
    r#"{"channel":"bbo","data":{"s":"BTC","i":1,"li":1559885104,"t":1764133203991,"b":"87185","B":"1.58","a":"87186","A":"0.33"}}"#,
    r#"{"success":true,"data":{"balance":"2000.000000","fee_level":0,"account_equity":"2150.250000","available_to_spend":"1800.75","total_margin_used":"349.5","cross_mmr":"420.69"},"error":null,"code":null}"#,
    r#"{"success":true,"data":[{"symbol":"AAVE","side":"ask","amount":"223.72","entry_price":"279.283134","margin":"0","funding":"13.159593","isolated":false,"created_at":1754928414996,"updated_at":1759223365538}],"last_order_id":1557431179}"#,
    r#"{"success":true,"data":[{"history_id":19329801,"order_id":315293920,"client_order_id":"acf","symbol":"LDO","amount":"0.1","price":"1.1904","entry_price":"1.176247","fee":"0","pnl":"-0.001415","event_type":"fulfill_maker","side":"close_short","created_at":1759215599188,"cause":"normal"}],"next_cursor":"11114Lz77","has_more":true}"#,
    r#"{"channel":"account_order_updates","data":[{"i":1559665358,"I":null,"u":"BrZp","s":"BTC","d":"bid","p":"89501","ip":"89501","lp":"89501","a":"0.00012","f":"0.00012","oe":"fulfill_limit","os":"filled","ot":"limit","r":false,"ct":1765017049008,"ut":1765017219639,"li":1559696133}]}"#,
    r#"{"channel":"account_trades","data":[{"h":80063441,"i":1559912767,"I":null,"u":"BrZp","s":"BTC","p":"89477","o":"89505","a":"0.00036","te":"fulfill_taker","ts":"close_long","tc":"normal","f":"0.012885","n":"-0.022965","t":1765018588190,"li":1559912767}]}"#,
    r#"{"channel":"account_positions","data":[{"s":"BTC","d":"bid","a":"0.00022","p":"87185","m":"0","f":"-0.00023989","i":false,"l":null,"t":1764133203991}],"li":1559395580}"#,
    r#"{"code":200,"data":{"I":"79f948fd-7556-4066-a128-083f3ea49322","i":645953,"s":"BTC"},"id":"660065de-8f32-46ad-ba1e-83c93d3e3966","t":1749223025962,"type":"create_order"}"#,
    r#"{"code":420,"err":"Insufficient balance for x","id":"660065de","t":1749223025962,"type":"create_market_order"}"#,
];

/// Decodes as the connector does: by every type that could be meant.
fn decode_all(text: &str) {
    let body = text.as_bytes();
    let _ = wire::Failure::read(body);
    let _ = wire::answer::<wire::Account>(body);
    let _ = wire::answer::<wire::Placed>(body);
    let _ = wire::answer::<wire::Settings>(body);
    let _ = wire::answer::<Vec<wire::Market>>(body);
    let _ = wire::answer::<Vec<wire::PriceRow>>(body);
    let _ = wire::answer::<Vec<wire::PositionRow>>(body);
    let _ = wire::answer::<Vec<wire::OpenOrder>>(body);
    let _ = wire::answer::<Vec<wire::PastOrder>>(body);
    let _ = wire::answer::<Vec<wire::PastTrade>>(body);
    let _ = wire::answer::<Vec<wire::PastFunding>>(body);
    let Ok(frame) = serde_json::from_str::<wire::Frame<'_>>(text) else { return };
    let Some(data) = frame.data else { return };
    let data = data.get();
    let _ = serde_json::from_str::<Vec<wire::OrderUpdate>>(data);
    let _ = serde_json::from_str::<Vec<wire::TradeUpdate>>(data);
    let _ = serde_json::from_str::<Vec<wire::PositionUpdate>>(data);
    let _ = serde_json::from_str::<wire::AccountInfo>(data);
    let _ = serde_json::from_str::<wire::PlacedReply>(data);
    let mut top = TopOfBook::default();
    if let Ok(book) = serde_json::from_str(data) {
        top.on_book(book);
    }
    if let Ok(best) = serde_json::from_str(data) {
        top.on_best(best);
    }
    let _ = top.levels(&SymbolMap::contract_of_name(NAMES, "BTC").unwrap());
}

fn data(text: &str) -> &str {
    serde_json::from_str::<wire::Frame<'_>>(text).unwrap().data.unwrap().get()
}

#[test]
fn documented_forms_are_read() {
    let book: wire::Book = serde_json::from_str(data(SAMPLES[0])).unwrap();
    assert_eq!(book.l.0[0].p.0.to_string(), "157.47");
    let best: wire::BestPrices = serde_json::from_str(data(SAMPLES[1])).unwrap();
    assert_eq!(best.ask_amount.0.to_string(), "0.33");
    let account = wire::answer::<wire::Account>(SAMPLES[2].as_bytes()).unwrap().data;
    assert_eq!(account.account_equity.0.to_string(), "2150.250000");
    let positions = wire::answer::<Vec<wire::PositionRow>>(SAMPLES[3].as_bytes()).unwrap();
    assert_eq!((positions.data[0].side, positions.last_id), (wire::BookSide::Ask, Some(1_557_431_179)));
    let trades = wire::answer::<Vec<wire::PastTrade>>(SAMPLES[4].as_bytes()).unwrap();
    assert_eq!(trades.data[0].side, wire::TradeSide::CloseShort);
    assert_eq!(trades.next_cursor.as_deref(), Some("11114Lz77"));
    let orders: Vec<wire::OrderUpdate> = serde_json::from_str(data(SAMPLES[5])).unwrap();
    assert_eq!((orders[0].os, orders[0].f.0.to_string()), (wire::OrderState::Filled, "0.00012".to_owned()));
    let trades: Vec<wire::TradeUpdate> = serde_json::from_str(data(SAMPLES[6])).unwrap();
    assert_eq!((trades[0].h, trades[0].tc.clone()), (80_063_441, wire::TradeCause::Normal));
    let positions: Vec<wire::PositionUpdate> = serde_json::from_str(data(SAMPLES[7])).unwrap();
    assert_eq!(positions[0].a.0.to_string(), "0.00022");
    let placed: wire::PlacedReply = serde_json::from_str(data(SAMPLES[8])).unwrap();
    assert_eq!(placed.i, Some(645_953));
}

/// A float holds whole numbers up to 2^53 only; ids and amounts beyond that stay whole.
#[test]
fn large_ids_and_long_decimals_stay_exact() {
    let trade =
        SAMPLES[6].replace("80063441", "9007199254740993").replace("1559912767", "18446744073709551615");
    let trades: Vec<wire::TradeUpdate> = serde_json::from_str(data(&trade)).unwrap();
    assert_eq!((trades[0].h, trades[0].i), (9_007_199_254_740_993, u64::MAX));
    let placed =
        wire::answer::<wire::Placed>(br#"{"success":true,"data":{"order_id":9007199254740993}}"#).unwrap();
    assert_eq!(placed.data.order_id, 9_007_199_254_740_993);
    // As text and as a number, which are the same.
    for written in [r#""9007199254740993.0000001""#, "9007199254740993.0000001"] {
        let number: wire::Number = serde_json::from_str(written).unwrap();
        assert_eq!(number.0.to_string(), "9007199254740993.0000001");
    }
    let too_large = SAMPLES[6].replace("80063441", "18446744073709551616");
    assert!(serde_json::from_str::<Vec<wire::TradeUpdate>>(data(&too_large)).is_err());
}

#[test]
fn an_answer_that_failed_is_never_data() {
    let read = |body: &str| wire::answer::<wire::Placed>(body.as_bytes()).map(|answer| answer.data.order_id);
    assert_eq!(read(r#"{"success":true,"data":{"order_id":7}}"#), Ok(7));
    assert_eq!(read(r#"{"order_id":7}"#), Ok(7), "bare");
    let failed = [
        (r#"{"success":false,"data":{"order_id":7},"error":"no"}"#, "no"),
        (r#"{"success":true,"data":{"success":false,"order_id":7,"error":"inner no"}}"#, "inner no"),
        (r#"{"success":true,"data":{"success":false,"order_id":7}}"#, "the inner answer says that it failed"),
    ];
    for (body, text) in failed {
        assert_eq!(read(body), Err(text.to_owned()), "{body}");
    }
    for body in ["", " ", "null", "[]", "\"ok\"", "<html>Just a moment...</html>", r#"{"success":true}"#] {
        assert!(read(body).is_err(), "{body}");
    }
    assert!(wire::answer::<wire::Placed>(&[0xff, 0xfe]).is_err());
}

#[test]
fn a_failure_is_read_in_each_of_its_forms() {
    let read = |body: &str| wire::Failure::read(body.as_bytes());
    let bare = read(r#""agent is unauthorized""#).unwrap();
    assert_eq!((bare.text.as_str(), bare.code), ("agent is unauthorized", None));
    let whole =
        read(r#"{"success":false,"error":"too small","code":25,"error_id":"invalid_amount"}"#).unwrap();
    assert_eq!((whole.code, whole.slug.as_deref()), (Some(25), Some("invalid_amount")));
    assert_eq!(read(r#"{"error":"too small","code":"25"}"#), None, "a code in a string is no form of it");
    for body in ["", "<html></html>", "{}", "[]", "7"] {
        assert_eq!(read(body), None, "{body}");
    }
}

/// An unknown state of an order is not guessed; an unknown cause of a trade changes nothing in what traded.
#[test]
fn words_of_tomorrow() {
    let order = SAMPLES[5].replace("\"filled\"", "\"parked\"");
    let orders: Vec<wire::OrderUpdate> = serde_json::from_str(data(&order)).unwrap();
    assert_eq!(orders[0].os, wire::OrderState::Unknown);
    let trade = SAMPLES[6].replace("\"normal\"", "\"haircut\"").replace("\"li\":", "\"new\":{},\"li\":");
    let trades: Vec<wire::TradeUpdate> = serde_json::from_str(data(&trade)).unwrap();
    assert_eq!(trades[0].tc, wire::TradeCause::Other);
}

proptest! {
    #[test]
    fn damaged_messages_are_read_or_refused(
        which in 0..SAMPLES.len(), at in 0_usize..400, with in any::<char>(), cut in any::<bool>()
    ) {
        let mut chars: Vec<char> = SAMPLES[which].chars().collect();
        let at = at % chars.len();
        if cut { chars.truncate(at) } else { chars[at] = with }
        decode_all(&chars.into_iter().collect::<String>());
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        decode_all(&text);
    }
}
