//! The book: whole every time, with newer best prices put in place.

use deltaplane_ports::Contract;
use deltaplane_types::{Level, Side};

use crate::wire::{BestPrices, Book, BookLevel};

/// The newest whole book and the newest best prices.
#[derive(Debug, Default)]
pub struct TopOfBook {
    book: Option<Book>,
    best: Option<BestPrices>,
}

impl TopOfBook {
    /// Takes a whole book; an older one than the known changes nothing.
    pub fn on_book(&mut self, book: Book) -> bool {
        let newer = self.book.as_ref().is_none_or(|known| known.t <= book.t);
        if newer {
            self.book = Some(book);
        }
        newer
    }

    /// Takes best prices; older ones than the known change nothing.
    pub fn on_best(&mut self, best: BestPrices) -> bool {
        let newer = self.best.is_none_or(|known| known.t <= best.t);
        if newer {
            self.best = Some(best);
        }
        newer
    }

    /// The venue's time of the newest of them.
    pub fn venue_time(&self) -> Option<i64> {
        let book = self.book.as_ref()?.t;
        Some(self.best.map_or(book, |best| best.t.max(book)))
    }

    /// Bids and asks in base units, best first; none before the first whole book.
    pub fn levels(&self, contract: &Contract) -> Option<(Vec<Level>, Vec<Level>)> {
        let book = self.book.as_ref()?;
        let newer = self.best.filter(|best| best.t > book.t);
        let side = |levels: &[BookLevel], best: Option<BookLevel>, side: Side| -> Vec<Level> {
            // A best price of zero says that the side is empty.
            if best.is_some_and(|best| best.p.0.is_zero()) {
                return Vec::new();
            }
            let behind = |level: &&BookLevel| match (best, side) {
                (None, _) => true,
                (Some(best), Side::Buy) => level.p.0 < best.p.0,
                (Some(best), Side::Sell) => level.p.0 > best.p.0,
            };
            let rest = levels.iter().filter(behind).copied();
            let all = best.into_iter().chain(rest).filter(|level| !level.a.0.is_zero());
            all.filter_map(|level| {
                let price = contract.base_price(level.p.0).ok()?;
                Some(Level { price, quantity: contract.base_quantity(level.a.0).ok()? })
            })
            .collect()
        };
        let bid = newer.map(|best| BookLevel { p: best.bid, a: best.bid_amount });
        let ask = newer.map(|best| BookLevel { p: best.ask, a: best.ask_amount });
        Some((side(&book.l.0, bid, Side::Buy), side(&book.l.1, ask, Side::Sell)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_ports::SymbolMap;

    fn contract() -> Contract {
        SymbolMap::contract_of_name(crate::NAMES, "BTC").unwrap()
    }

    fn shown(top: &TopOfBook) -> (Vec<String>, Vec<String>) {
        let (bids, asks) = top.levels(&contract()).unwrap();
        let text =
            |levels: Vec<Level>| levels.iter().map(|l| format!("{}x{}", l.price, l.quantity)).collect();
        (text(bids), text(asks))
    }

    const BOOK: &str = r#"{"s":"BTC","l":[[{"p":"100","a":"1","n":1},{"p":"99","a":"2","n":1}],[{"p":"101","a":"3","n":1}]],"t":10,"li":7}"#;

    #[test]
    fn newer_best_prices_replace_what_they_reach_over() {
        let mut top = TopOfBook::default();
        assert!(top.levels(&contract()).is_none());
        assert!(top.on_book(serde_json::from_str(BOOK).unwrap()));
        assert_eq!(shown(&top), (vec!["100x1".into(), "99x2".into()], vec!["101x3".into()]));
        // The bid fell to 99 and the ask side emptied.
        let best = r#"{"s":"BTC","t":11,"b":"99","B":"0.5","a":"0","A":"0","li":8}"#;
        assert!(top.on_best(serde_json::from_str(best).unwrap()));
        assert_eq!(shown(&top).0, ["99x0.5"]);
        assert!(shown(&top).1.is_empty(), "a price of zero is no ask");
        assert_eq!(top.venue_time(), Some(11));
        // A book that is older than the known one is old news.
        assert!(!top.on_book(serde_json::from_str(&BOOK.replace("\"t\":10", "\"t\":9")).unwrap()));
    }
}
