# SPDX-License-Identifier: Apache-2.0
"""Does a long run grow? Memory, open files and seconds of a step, tenth by tenth of a run.

    python benchmarks/flatness.py [--config mini] [--steps 2000] [key=value ...]

A child makes the run; its resident memory and its open handles are read from /proc twice a second,
the seconds of its steps from stats.jsonl. Splats are not densified, so that every step has the same
work. The last line compares the last tenth with the second.
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


class Sample(NamedTuple):
    step: int
    resident_mb: float
    handles: int


def sample(pid: int, stats: Path) -> Sample | None:
    """What the process holds now; None once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        handles = len(os.listdir(f"/proc/{pid}/fd"))
        lines = stats.read_bytes().count(b"\n")
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return Sample(lines, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, handles)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="mini")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("settings", nargs="*", help="key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdi-gs-flatness-") as name:
        out = Path(name) / "run"
        words = ["generate", "a red mug", "--config", args.config, "--steps", str(args.steps),
                 "--out", str(out), *args.settings]  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, "-m", "sdi_gs", *words], stdout=subprocess.DEVNULL
        )
        samples: list[Sample] = []
        while child.poll() is None:
            found = sample(child.pid, out / "stats.jsonl")
            if found is not None:
                samples.append(found)
            time.sleep(0.5)
        if child.returncode != 0:
            return child.returncode
        lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    report(samples, lines)
    return 0


def report(samples: list[Sample], lines: list[dict]) -> None:  # type: ignore[type-arg]
    """A line per tenth of the run."""
    print(f"{'steps':>12} {'ms/step':>8} {'resident MB':>12} {'handles':>8} {'size':>8}")
    tenth, rows = len(lines) // 10, []
    for k in range(10):
        part = lines[k * tenth : (k + 1) * tenth]
        here = [s for s in samples if k * tenth <= s.step < (k + 1) * tenth]
        if not here:
            continue
        row = (1e3 * statistics.median(sum(line["seconds"].values()) for line in part),
               max(s.resident_mb for s in here), max(s.handles for s in here))  # fmt: skip
        rows.append(row)
        span = f"{k * tenth}-{(k + 1) * tenth}"
        print(f"{span:>12} {row[0]:>8.1f} {row[1]:>12.0f} {row[2]:>8} {part[-1]['size']:>8}")
    first, last = rows[1], rows[-1]
    print(
        f"last tenth against the second: time x{last[0] / first[0]:.2f}, "
        f"memory {last[1] - first[1]:+.0f} MB, handles {last[2] - first[2]:+d}"
    )


if __name__ == "__main__":
    sys.exit(main())
