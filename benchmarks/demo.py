# SPDX-License-Identifier: Apache-2.0
"""Seconds from the command to final.ply, and where they go; beside another checkout if named.

    python benchmarks/demo.py [--against DIR] [--repeats 5] [--cold] [--prompt "a red mug"]
                              [--config mini_fast,mini] [key=value ...]

Each run is the whole command in a process of its own, and the checkouts and presets take turns.
``--cold`` empties numba's cache before each run, as on the first run after an installation that
compiled nothing. ONEDNN_MAX_CPU_ISA=AVX2 in the environment shows a processor without AVX-512 and
AMX.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parents[1]
PARTS = ("render", "encode", "guidance", "backward", "refine")


class Timed(NamedTuple):
    whole_s: float  # from the command until final.ply is there
    start_s: float  # until the first step is done
    parts_s: dict[str, float]  # sums over the steps
    load: float  # of the machine before, processes that wanted a core


def once(checkout: Path, words: list[str], cold: bool) -> Timed:
    """One run of the command of that checkout."""
    with tempfile.TemporaryDirectory(prefix="sdi-gs-demo-") as name:
        out, environment = Path(name) / "run", {**os.environ, "PYTHONPATH": str(checkout)}
        if cold:
            environment["NUMBA_CACHE_DIR"] = f"{name}/numba"
        load, began = os.getloadavg()[0], time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "sdi_gs", "generate", *words, "--out", str(out)],
            env=environment, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        first = whole = 0.0
        while child.poll() is None:
            now = time.perf_counter() - began
            stats = out / "stats.jsonl"
            if not first and stats.is_file() and stats.stat().st_size:
                first = now
            if not whole and (out / "final.ply").is_file():
                whole = now
            time.sleep(0.02)
        if child.returncode != 0:
            assert child.stderr is not None
            raise SystemExit(child.stderr.read().decode())
        whole = whole or time.perf_counter() - began
        lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
        parts = {part: sum(line["seconds"].get(part, 0.0) for line in lines) for part in PARTS}
        return Timed(whole, first, parts, load)


def report(name: str, runs: list[Timed]) -> None:
    """Least, median and most of each figure."""
    columns = {"whole": [run.whole_s for run in runs], "start": [run.start_s for run in runs]}
    columns |= {part: [run.parts_s[part] for run in runs] for part in PARTS}
    print(f"{name}: {len(runs)} runs, load before {max(run.load for run in runs):.1f} at most")
    for column, values in columns.items():
        print(f"  {column:9} {min(values):7.1f} {statistics.median(values):7.1f} "
              f"{max(values):7.1f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout, with the same packages")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument(
        "--config", default="mini_fast,mini", help="presets, commas between; they take turns"
    )
    parser.add_argument("settings", nargs="*", help="key=value")
    args = parser.parse_args()
    checkouts = {"this": HERE, **({"against": args.against.resolve()} if args.against else {})}
    asked = {
        f"{name}, {preset}": (checkout, [args.prompt, "--config", preset, *args.settings])
        for name, checkout in checkouts.items()
        for preset in args.config.split(",")
    }
    runs: dict[str, list[Timed]] = {name: [] for name in asked}
    for k in range(args.repeats):
        for name, (checkout, words) in asked.items():
            runs[name].append(once(checkout, words, args.cold))
            print(f"{k + 1}/{args.repeats} {name}: {runs[name][-1].whole_s:.1f} s", flush=True)
    for name, found in runs.items():
        report(name, found)


if __name__ == "__main__":
    main()
