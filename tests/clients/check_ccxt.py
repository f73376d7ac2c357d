"""Drives venue-sim with ccxt's binanceusdm, a client that nobody here wrote.

Usage: check_ccxt.py PATH_OF_VENUE_SIM
"""

import json
import pathlib
import subprocess
import sys

import ccxt

HERE = pathlib.Path(__file__).parent
KEY = "dbefbc809e3e83c283a984c3a1459732ea7db1360ca80c5c2c8867408d28cc83"
SECRET = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9"
SYMBOL = "BTC/USDT:USDT"
checked = 0


def check(what, holds):
    global checked
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    checked += 1


def raises(what, kind, call):
    try:
        call()
    except kind:
        check(what, True)
        return
    except Exception as other:  # the wrong exception is the finding
        raise SystemExit(f"FAILED: {what}: {type(other).__name__}: {other}")
    raise SystemExit(f"FAILED: {what}: nothing was raised")


class LocalBinance(ccxt.binanceusdm):
    """ccxt tells the meaning of a code by the host: here the host is ours, so it is named as the real one."""

    local = ""

    def handle_errors(self, code, reason, url, *rest):
        return super().handle_errors(code, reason, url.replace(self.local, "https://fapi.binance.com"), *rest)


def client(rest, key=KEY, secret=SECRET):
    exchange = LocalBinance(
        {
            "apiKey": key,
            "secret": secret,
            "options": {"fetchCurrencies": False, "fetchMarkets": {"types": ["linear"]}},
        }
    )
    exchange.local = rest
    for name, url in exchange.urls["api"].items():
        if isinstance(url, str) and name.startswith("fapi"):
            exchange.urls["api"][name] = rest + url.split(".com", 1)[1]
    return exchange


def run(rest, control):
    exchange = client(rest)
    markets = exchange.load_markets()
    check("BTC market", markets[SYMBOL]["precision"]["price"] == 0.1)
    check("step", markets[SYMBOL]["precision"]["amount"] == 0.001)
    check("minimum cost", markets[SYMBOL]["limits"]["cost"]["min"] == 50)

    book = exchange.fetch_order_book(SYMBOL, 20)
    check("book is not crossed", book["bids"][0][0] < book["asks"][0][0] and len(book["bids"]) == 20)
    ticker = exchange.fetch_ticker(SYMBOL)
    check("last price", ticker["last"] > 0)
    funding = exchange.fetch_funding_rate(SYMBOL)
    check("funding rate", funding["fundingRate"] == 0.0001)

    balance = exchange.fetch_balance()
    check("wallet", balance["info"]["totalWalletBalance"] == "100000")
    check("margin balance", abs(balance["USDT"]["total"] - 100000) < 100)
    positions = exchange.fetch_positions()
    check("start position", [(p["symbol"], p["side"], p["contracts"]) for p in positions] == [("ETH/USDT:USDT", "short", 2)])

    check("leverage", int(exchange.set_leverage(5, SYMBOL)["leverage"]) == 5)
    check("leverage is kept", exchange.fetch_leverage(SYMBOL)["longLeverage"] == 5)

    bought = exchange.create_order(SYMBOL, "market", "buy", 0.01)
    check("market order fills", bought["status"] == "closed" and bought["filled"] == 0.01)
    found = exchange.fetch_order(bought["id"], SYMBOL)
    check("average price", abs(found["average"] / book["asks"][0][0] - 1) < 0.01)
    trades = exchange.fetch_my_trades(SYMBOL)
    mine = [trade for trade in trades if trade["order"] == bought["id"]]
    check("own trades", abs(sum(trade["amount"] for trade in mine) - 0.01) < 1e-9)
    fee = sum(trade["fee"]["cost"] for trade in mine)
    check("taker fee of 5 bp", abs(fee / sum(trade["cost"] for trade in mine) - 0.0005) < 1e-9)

    low = round(book["bids"][0][0] * 0.97, 1)
    resting = exchange.create_order(SYMBOL, "limit", "buy", 0.01, low)
    check("limit order rests", resting["status"] == "open")
    check("open orders", [order["id"] for order in exchange.fetch_open_orders(SYMBOL)] == [resting["id"]])
    canceled = exchange.cancel_order(resting["id"], SYMBOL)
    check("cancel", canceled["status"] == "canceled")
    raises("cancel twice", ccxt.OrderNotFound, lambda: exchange.cancel_order(resting["id"], SYMBOL))

    ioc = exchange.create_order(SYMBOL, "limit", "buy", 0.01, low, {"timeInForce": "IOC"})
    check("IOC that finds nothing expires", ioc["status"] == "expired" and ioc["filled"] == 0)
    named = exchange.create_order(SYMBOL, "limit", "buy", 0.01, low, {"clientOrderId": "ours-1"})
    check("query by client id", exchange.fetch_order(None, SYMBOL, {"origClientOrderId": "ours-1"})["id"] == named["id"])
    exchange.cancel_all_orders(SYMBOL)
    check("cancel all", exchange.fetch_open_orders(SYMBOL) == [])

    post_only = {"postOnly": True}
    high = round(book["asks"][0][0] * 1.02, 1)
    raises("post-only that would take", ccxt.OrderNotFillable, lambda: exchange.create_order(SYMBOL, "limit", "buy", 0.01, high, post_only))

    closed = exchange.create_order(SYMBOL, "market", "sell", 0.01, None, {"reduceOnly": True})
    check("reduce-only closes", closed["status"] == "closed")
    raises("reduce-only without a position", ccxt.InvalidOrder, lambda: exchange.create_order(SYMBOL, "market", "sell", 0.01, None, {"reduceOnly": True}))

    raises("too small", ccxt.InvalidOrder, lambda: exchange.create_order(SYMBOL, "limit", "buy", 0.001, 40000))
    poor = client(rest, "poorkey", "poorsecret")
    poor.load_markets()
    raises("missing margin", ccxt.InsufficientFunds, lambda: poor.create_order(SYMBOL, "market", "buy", 0.1))
    wrong = client(rest, KEY, "not-the-secret")
    wrong.load_markets()
    raises("bad signature", ccxt.AuthenticationError, wrong.fetch_balance)
    raises("unknown key", ccxt.AuthenticationError, client(rest, "nobody", "x").fetch_balance)


def main():
    command = [sys.argv[1], "--venue", "binance", "--config", str(HERE / "binance.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(process.stdout.readline())
        run(ready["rest"], ready["control"])
    finally:
        process.kill()
    print(f"ccxt {ccxt.__version__}: {checked} checks passed")


if __name__ == "__main__":
    main()
