# SPDX-License-Identifier: Apache-2.0
"""Does a long run grow? Memory, open files and seconds of a step, tenth by tenth of a run.

    python benchmarks/flatness.py [--config mini] [--steps 2000] [key=value ...]

A child makes the run; its resident memory, its open handles and the processor's seconds that it has
used are read from /proc twice a second, the seconds of its steps from stats.jsonl. Splats are not
densified, so that every step has the same work. The last line compares the last tenth with the
second; beside other work, the processor's seconds say more than the clock's.
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
    cpu_s: float  # of all threads, so far


def sample(pid: int, stats: Path) -> Sample | None:
    """What the process holds now; None once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        handles = len(os.listdir(f"/proc/{pid}/fd"))
        lines = stats.read_bytes().count(b"\n")
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    cpu_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Sample(lines, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, handles, cpu_s)


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
    print(
        f"{'steps':>12} {'ms/step':>8} {'cpu ms':>8} {'resident MB':>12} {'handles':>8} {'size':>8}"
    )
    tenth, rows = len(lines) // 10, []
    for k in range(10):
        part = lines[k * tenth : (k + 1) * tenth]
        here = [s for s in samples if k * tenth <= s.step < (k + 1) * tenth]
        if not here or here[0].step == here[-1].step:
            continue
        cpu = (here[-1].cpu_s - here[0].cpu_s) / (here[-1].step - here[0].step)
        row = (1e3 * statistics.median(sum(line["seconds"].values()) for line in part), 1e3 * cpu,
               max(s.resident_mb for s in here), max(s.handles for s in here))  # fmt: skip
        rows.append(row)
        span = f"{k * tenth}-{(k + 1) * tenth}"
        shown = (f"{row[0]:.1f}", f"{row[1]:.1f}", f"{row[2]:.0f}", row[3], part[-1]["size"])
        print(f"{span:>12} " + " ".join(f"{value:>11}" for value in shown))
    first, last = rows[1], rows[-1]
    print(
        f"last tenth against the second: time x{last[0] / first[0]:.2f}, processor "
        f"x{last[1] / first[1]:.2f}, memory {last[2] - first[2]:+.0f} MB, "
        f"handles {last[3] - first[3]:+d}"
    )


if __name__ == "__main__":
    sys.exit(main())
