//! Names. Input becomes one of these at the border and is not checked again inside.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A text that is not a legal name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a legal {kind}: {rule}")]
pub struct IdError {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The rule that a text must follow.
            pub const RULE: &'static str = $rule;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    // A hostile text may be long; enough of it to be recognized is kept.
                    let text = text.chars().take(80).collect();
                    Err(IdError { kind: $kind, text, rule: $rule })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

fn is_slug(text: &str) -> bool {
    let mut bytes = text.bytes();
    let start = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 64
        && bytes.next().is_some_and(start)
        && bytes.all(|b| start(b) || matches!(b, b'.' | b'_' | b'-'))
}

fn is_printable(text: &str, most: usize) -> bool {
    !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_graphic())
}

name! {
    /// One configured login on one venue.
    AccountId, "account id", "1 to 64 of a-z, 0-9, dot, underscore and hyphen, the first a letter or digit", is_slug
}
name! {
    /// Where an account trades, by its configured name.
    VenueId, "venue id", "1 to 64 of a-z, 0-9, dot, underscore and hyphen, the first a letter or digit", is_slug
}
name! {
    /// One venue's live price stream.
    FeedId, "feed id", "1 to 64 of a-z, 0-9, dot, underscore and hyphen, the first a letter or digit", is_slug
}
name! {
    /// What is traded, in canonical form: `BTC-USD`. Contracts with a delivery date carry it: `BTC-USDT-260327`.
    Symbol, "symbol", "BASE-QUOTE in capital letters and digits, for example BTC-USD",
    |text| {
        let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        let date = |p: &str| p.len() == 6 && p.bytes().all(|b| b.is_ascii_digit());
        let mut parts = text.split('-');
        text.len() <= 32
            && parts.next().is_some_and(part)
            && parts.next().is_some_and(part)
            && parts.next().is_none_or(date)
            && parts.next().is_none()
    }
}
name! {
    /// One request's whole life; opaque to clients.
    OperationId, "operation id", "1 to 96 letters, digits and hyphens",
    |text| !text.is_empty() && text.len() <= 96 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}
name! {
    /// A digest of everything that a plan says.
    PlanId, "plan id", "1 to 64 printable characters", |text| is_printable(text, 64)
}
name! {
    /// Our name for an order, chosen before the venue hears of it.
    ClientOrderId, "client order id", "1 to 36 of A-Z, a-z, 0-9 and . : / _ -",
    |text| !text.is_empty() && text.len() <= 36
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'/' | b'_' | b'-'))
}
name! {
    /// The venue's name for an order.
    VenueOrderId, "venue order id", "1 to 64 printable characters", |text| is_printable(text, 64)
}
name! {
    /// The venue's name for one trade of an account and symbol.
    TradeId, "trade id", "1 to 64 printable characters", |text| is_printable(text, 64)
}

impl Symbol {
    /// The asset that quantities count.
    pub fn base(&self) -> &str {
        self.0.split_once('-').map_or("", |(base, _)| base)
    }

    /// The currency that money is in.
    pub fn quote(&self) -> &str {
        self.0.split('-').nth(1).unwrap_or_default()
    }

    /// Whether it is a contract with a delivery date.
    pub fn is_dated(&self) -> bool {
        self.0.split('-').nth(2).is_some()
    }

    /// The symbol without a delivery date.
    #[must_use]
    pub fn undated(&self) -> Self {
        match self.0.rsplit_once('-') {
            Some((rest, _)) if self.is_dated() => Self(rest.into()),
            _ => self.clone(),
        }
    }

    /// The symbol that the contract's position counts into, where some are split off.
    #[must_use]
    pub fn counted_in(&self, split: &BTreeSet<Self>) -> Self {
        let undated = self.undated();
        if split.contains(&undated) { undated } else { self.counted_as() }
    }

    /// The symbol that contracts of one coin count into, whichever dollar they are settled in and whenever they are
    /// delivered: `BTC-USD` of `BTC-USDC` and of `BTC-USDT-260327`.
    #[must_use]
    pub fn counted_as(&self) -> Self {
        if crate::is_money(self.quote()) {
            Self(format!("{}-USD", self.base()).into())
        } else {
            self.undated()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_ids_follow_the_contract() {
        let long = "a".repeat(65);
        for good in ["pacifica-main", "a", "0", "a.b_c-d", &"z".repeat(64)] {
            assert_eq!(good.parse::<AccountId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "a b", "../../etc", "a\0", "a\u{202e}b", "ａ", "a%2f", "é", long.as_str()]
        {
            assert!(bad.parse::<AccountId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn symbols_have_two_parts() {
        let symbol: Symbol = "1000PEPE-USD".parse().unwrap();
        assert_eq!((symbol.base(), symbol.quote()), ("1000PEPE", "USD"));
        for bad in [
            "BTC",
            "BTC-",
            "-USD",
            "btc-usd",
            "BTC-USD-X",
            "BTC-USD-26032",
            "BTC-USD-260327-1",
            "BTC/USD",
            "",
        ] {
            assert!(bad.parse::<Symbol>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn contracts_of_a_coin_count_into_one_symbol() {
        for (text, counted) in [
            ("BTC-USD", "BTC-USD"),
            ("BTC-USDC", "BTC-USD"),
            ("BTC-USDT-260327", "BTC-USD"),
            ("1000CAT-USD", "1000CAT-USD"),
            ("BTC-EUR", "BTC-EUR"),
            ("BTC-EUR-260327", "BTC-EUR"),
        ] {
            assert_eq!(text.parse::<Symbol>().unwrap().counted_as().as_str(), counted);
        }
        let dated: Symbol = "BTC-USDT-260327".parse().unwrap();
        assert_eq!((dated.quote(), dated.is_dated(), dated.undated().as_str()), ("USDT", true, "BTC-USDT"));
    }

    #[test]
    fn an_error_names_the_text_and_the_rule() {
        let error = "Bad Id".parse::<AccountId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"Bad Id\" is not a legal account id: 1 to 64 of a-z, 0-9, dot, underscore and hyphen, the first a letter or digit"
        );
    }
}
