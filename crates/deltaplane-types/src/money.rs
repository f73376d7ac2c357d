//! Assets that are worth about a dollar.

/// Dollars by whichever name, and assets that venues count as such for margin: they carry no delta.
const MONEY: [&str; 11] =
    ["USD", "USDT", "USDC", "USD1", "USDF", "FDUSD", "BUSD", "BFUSD", "BNFCR", "LDUSDT", "RWUSD"];

/// Whether an asset counts as money: an amount of it is an amount of quote currency.
pub fn is_money(asset: &str) -> bool {
    MONEY.contains(&asset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_and_what_counts_as_them_are_money_and_coins_are_not() {
        for asset in ["USDT", "USDC", "BFUSD", "BNFCR", "LDUSDT", "RWUSD"] {
            assert!(is_money(asset), "{asset}");
        }
        for asset in ["BTC", "BNB", "usdt", ""] {
            assert!(!is_money(asset), "{asset}");
        }
    }
}
