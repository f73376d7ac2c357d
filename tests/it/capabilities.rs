//! The table of what each exchange can do stands in the book as the connectors state it.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fmt::Write as _;
use std::path::Path;

use deltaplane_ports::{Capabilities, OrderEntry};

const VENUES: [Capabilities; 3] = [
    deltaplane_venue_binance::CAPABILITIES,
    deltaplane_venue_aster::CAPABILITIES,
    deltaplane_venue_pacifica::CAPABILITIES,
];
const BEGIN: &str = "<!-- capabilities: written by tests/it/capabilities.rs -->\n";
const END: &str = "<!-- end of capabilities -->\n";

fn yes(holds: bool) -> String {
    if holds { "yes" } else { "no" }.to_owned()
}

fn table() -> String {
    type Row = (&'static str, fn(&Capabilities) -> String);
    let rows: [Row; 11] = [
        ("signature", |venue| venue.signing.to_owned()),
        ("order entry", |venue| match venue.order_entry {
            OrderEntry::Rest => "REST".to_owned(),
            OrderEntry::WebSocketThenRest => "WebSocket, else REST".to_owned(),
        }),
        ("validity of a signed order", |venue| venue.validity.to_owned()),
        ("order lookup by our id", |venue| yes(venue.finds_by_client_id)),
        ("our id is unique among", |venue| venue.client_id_scope.to_owned()),
        ("an unresolved order can be invalidated", |venue| yes(venue.invalidates)),
        ("dead man's switch for resting orders", |venue| yes(venue.counts_down)),
        ("hedge mode", |venue| yes(venue.hedge_mode)),
        ("reduce-only orders are free of the minimum notional", |venue| yes(venue.reduce_only_exempt)),
        ("order book", |venue| venue.book.to_owned()),
        ("hours between fundings", |venue| venue.funding.to_owned()),
    ];
    let budget: Row = ("requests of an address in a minute", |venue| venue.budget.to_owned());
    let mut text = "| |".to_owned();
    for venue in &VENUES {
        write!(text, " {} |", venue.venue).unwrap();
    }
    text.push_str("\n|---|---|---|---|\n");
    for (name, value) in rows.iter().chain([&budget]) {
        write!(text, "| {name} |").unwrap();
        for venue in &VENUES {
            write!(text, " {} |", value(venue)).unwrap();
        }
        text.push('\n');
    }
    text
}

/// `DELTAPLANE_WRITE_DOCS=1` writes the table instead of comparing it.
#[test]
fn the_documented_table_is_what_the_connectors_state() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/reference/capabilities.md");
    crate::book::compare(&path, (BEGIN, END), &format!("\n{}\n", table()));
}
