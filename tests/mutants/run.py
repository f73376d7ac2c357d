#!/usr/bin/env python3
"""Applies one change that breaks a promise after another to a copy of the project: the simulation must fail each time,
or the test that the change names.

    python3 tests/mutants/run.py [--short] [--episodes N] [WORD ...]

WORDs choose the mutants whose names contain one of them.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "mutants"
TREE = WORK / "tree"


def copy_tree():
    """Brings the copy up to date; files that did not change keep their time, so that little is built again."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for name in names:
        source, copy = ROOT / name, TREE / name
        if not source.is_file() or (copy.exists() and copy.read_bytes() == source.read_bytes()):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def seed_target():
    """Takes over what was built of the dependencies: they are the same, and nothing here writes to them again."""
    built, target = ROOT / "target" / "debug", WORK / "target" / "debug"
    if target.exists() or not built.exists():
        return
    members = {path.parent.name for path in ROOT.glob("*/*/Cargo.toml")} | {"deltaplane"}
    members |= {"it", "system", "simulation", "soak", "kill-sweep", "operator", "alone"}

    def is_ours(name):
        stem = name.removeprefix("lib").rsplit("-", 1)[0].replace("_", "-")
        return stem in members or stem.startswith("deltaplane")

    for part in [".fingerprint", "build", "deps"]:
        names = [name for name in os.listdir(built / part) if not is_ours(name)]
        (target / part).mkdir(parents=True)
        for start in range(0, len(names), 500):
            sources = [str(built / part / name) for name in names[start : start + 500]]
            subprocess.run(["cp", "-al", *sources, str(target / part)], check=True)


SIMULATION = ["--workspace", "--test", "simulation", "nothing_wrong"]


def cargo(arguments, episodes=0):
    # A folder of its own: cargo would take what was built of the changed tree for the workspace's.
    environment = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "target"), SIM_EPISODES=str(episodes),
                       SIM_ANY_DECISION="1")
    command = ["cargo", "test", "--quiet", *arguments]
    return subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="only those marked short")
    parser.add_argument("--episodes", type=int, default=4000, help="episodes for each mutant")
    parser.add_argument("words", nargs="*")
    chosen = parser.parse_args()
    with open(pathlib.Path(__file__).with_name("mutants.toml"), "rb") as file:
        mutants = tomllib.load(file)["mutant"]
    mutants = [m for m in mutants if not chosen.short or m.get("short")]
    mutants = [m for m in mutants if not chosen.words or any(word in m["name"] for word in chosen.words)]
    if not mutants:
        sys.exit("no mutant has such a name")
    copy_tree()
    seed_target()
    for test in {tuple(mutant.get("test", SIMULATION)) for mutant in mutants}:
        clean = cargo(test, chosen.episodes)
        if clean.returncode != 0:
            sys.exit(f"{test} fails without any change:\n{clean.stdout[-4000:]}{clean.stderr[-4000:]}")
        # A run over several binaries passes none in most of them.
        if not re.search(r" [1-9]\d* passed", clean.stdout):
            sys.exit(f"{test} names no test")
    survived = []
    for mutant in mutants:
        path = TREE / mutant["file"]
        text = path.read_text()
        old, new = mutant["old"].strip("\n"), mutant["new"].strip("\n")
        if text.count(old) != 1:
            sys.exit(f"{mutant['name']}: its old text is {text.count(old)} times in {mutant['file']}, not once")
        try:
            path.write_text(text.replace(old, new))
            test = mutant.get("test", SIMULATION)
            built = cargo([*test, "--no-run"])
            if built.returncode != 0:
                sys.exit(f"{mutant['name']}: does not build:\n{built.stderr[-4000:]}")
            result = cargo(test, chosen.episodes)
        finally:
            path.write_text(text)
        seen = [line.strip() for line in result.stdout.splitlines() if "VIOLATION" in line]
        if result.returncode == 0:
            survived.append(mutant["name"])
            print(f"SURVIVED  {mutant['name']}", flush=True)
        else:
            why = seen[0].removeprefix("VIOLATION ")[:110] if seen else test[-1]
            print(f"seen      {mutant['name']}: {why}", flush=True)
    print(f"{len(mutants) - len(survived)} of {len(mutants)} mutants were seen")
    sys.exit(1 if survived else 0)


main()
