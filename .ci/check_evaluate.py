"""Compares what the evaluate example prints with the worked cases, to 1e-15 relative.

Usage: check_evaluate.py PATH_OF_THE_EXAMPLE
"""

import decimal
import json
import subprocess
import sys

COMMAND = sys.argv[1:2]


def same(got, want, place):
    if isinstance(want, dict):
        assert set(got) == set(want), (place, got, want)
        for key in want:
            same(got[key], want[key], f"{place}.{key}")
    elif isinstance(want, list):
        assert len(got) == len(want), (place, got, want)
        for index, value in enumerate(want):
            same(got[index], value, f"{place}[{index}]")
    else:
        try:
            g, w = decimal.Decimal(got), decimal.Decimal(want)
        except decimal.InvalidOperation:
            assert got == want, (place, got, want)
            return
        assert abs(g - w) <= abs(w) * decimal.Decimal("1e-15"), (place, got, want)


def expected(cases):
    if isinstance(cases, dict):
        return {key: expected(value) for key, value in cases.items()}
    return [case["expected"] for case in cases]


for kind, path in [
    ("deviation", "crates/deltaplane-math/tests/data/deviation.json"),
    ("worst-case", "crates/deltaplane-math/tests/data/worst_case.json"),
    ("plan", "crates/deltaplane-plan/tests/data/plan.json"),
    ("risk", "crates/deltaplane-risk/tests/data/risk.json"),
    ("rebalance", "crates/deltaplane-math/tests/data/rebalance.json"),
]:
    with open(path, encoding="utf-8") as file:
        text = file.read()
    printed = subprocess.run([*COMMAND, kind], input=text, capture_output=True, text=True)
    if printed.returncode:
        sys.exit(f"{kind}: {printed.stderr}")
    same(json.loads(printed.stdout), expected(json.loads(text)), kind)
    print(f"evaluate {kind}: as worked out")
