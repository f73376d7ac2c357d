"""Prints the microseconds that ccxt takes to sign one order. Usage: sign_with_ccxt.py binance|aster|pacifica"""

import statistics
import sys
import time

import ccxt

ORDER = {
    "symbol": "BTCUSDT",
    "side": "SELL",
    "type": "LIMIT",
    "timeInForce": "IOC",
    "quantity": "0.25",
    "price": "65670",
    "newClientOrderId": "00010001-0000-8000-8004-0fefdb942fd1",
    "reduceOnly": "true",
}
# Throwaway keys that documentation prints.
HMAC_SECRET = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9"
AGENT_KEY = "0x4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
PAIR = "2Ana1pUpv2ZbMVkwF5FXapYeBEjdxDatLn7nvJkhgTSdZd8hbDHTd21as7EAsg7ypityqfsw2pMQKJcVDVcAEsd"


def signer(venue):
    if venue == "binance":
        exchange = ccxt.binanceusdm({"apiKey": "key", "secret": HMAC_SECRET})
        return lambda: exchange.sign("order", ["fapiPrivate"], "POST", dict(ORDER))
    if venue == "aster":
        exchange = ccxt.aster({"privateKey": AGENT_KEY, "options": {"builderFee": False}})
        return lambda: exchange.sign("v3/order", ["fapiPrivate"], "POST", dict(ORDER))
    account = "9C6hybhQ6Aycep9jaUnP6uL9ZYvDjUp1aSkFWPUFJtpj"
    exchange = ccxt.pacifica({"walletAddress": account, "privateKey": PAIR, "options": {"builderFee": False}})
    payload = {
        "symbol": "BTC",
        "side": "ask",
        "tif": "IOC",
        "amount": "0.25",
        "price": "65670",
        "client_order_id": ORDER["newClientOrderId"],
        "reduce_only": True,
    }

    def sign():
        request = exchange.post_action_request("create_order", dict(payload), {})
        return exchange.sign("orders/create", ["private"], "POST", request)

    return sign


def main():
    sign = signer(sys.argv[1])
    sign()
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(50):
            sign()
        rounds.append((time.perf_counter() - began) / 50)
    print(statistics.median(rounds) * 1e6)


main()
