# SPDX-License-Identifier: Apache-2.0
"""A sweep of 100,000 lines and 500 workers that claim, die and return, on one machine.

    python benchmarks/sweep_scale.py [--lines 100000] [--workers 500] [--sleep 0.2] [--deaths 0.01]

The workers are processes with the code of 'sdi-gs sweep work'; in place of a run they sleep, and
leave a file. Some are killed in the middle of a line, and some between the end of a run and the
note about it; each is replaced. At the end every line must be done, and must have been made once;
made twice is one that was finished and begun again.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import children
import machine

DIED = 9  # exit code of a worker that was killed


def synthetic(out: Path, lines: int) -> Any:
    """The folder of a sweep with so many lines, and none of its runs."""
    from sdi_gs.sweep.manifest import BLOCK, FORMAT, Line, open_sweep, version

    out.mkdir()
    with (out / "manifest.jsonl").open("w") as stream:
        for number in range(lines):
            digest = hashlib.sha256(str(number).encode()).hexdigest()[:16]
            folder = f"runs/{number // BLOCK:03}/a-red-mug-sdi-gaussians-{number}-{digest[:8]}"
            one = Line("a red mug", "mini", "sdi", "gaussians", number, (), 400, folder, digest)
            stream.write(one.text() + "\n")
    (out / "sweep.json").write_text(json.dumps({**FORMAT, "planned_by": version(), "tries": 3}))
    (out / "state").mkdir()
    return open_sweep(out)


class StandIn:
    """In place of a run: sleeps, leaves a file, and sometimes ends the whole worker."""

    def __init__(self, journal: Path, sleep: float, deaths: float) -> None:
        self._handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._sleep, self._deaths = sleep, deaths

    def __call__(self, path: Path, *_: object) -> None:
        result = path.with_name(f"{path.name}.result")
        if result.exists():
            self._note("found", path)
            return
        self._note("begun", path)
        time.sleep(random.expovariate(1 / self._sleep) if self._sleep else 0.0)
        if random.random() < self._deaths / 2:
            os._exit(DIED)
        result.touch()
        self._note("made", path)
        if random.random() < self._deaths / 2:
            os._exit(DIED)

    def _note(self, word: str, path: Path) -> None:
        os.write(self._handle, f"{word} {path.name}\n".encode())


def worker(sweep: Any, known: Any, journal: Path, options: argparse.Namespace) -> None:
    """A worker in a fork, from its first claim to its end."""
    from sdi_gs.sweep import work

    random.seed()
    work.obtain = StandIn(journal, options.sleep, options.deaths)  # type: ignore[assignment]
    work.configuration = lambda line: None  # type: ignore[assignment, return-value]
    with work.Worker(sweep, lambda told: None) as one:
        one.seeker._known = known  # every worker reads it once; its seconds are told apart
        one.work()


def start(sweep: Any, known: Any, journal: Path, options: argparse.Namespace) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        worker(sweep, known, journal, options)
        code = 0
    except BaseException as error:
        print(f"worker {os.getpid()}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def crowd(sweep: Any, known: Any, folder: Path, options: argparse.Namespace) -> Counter[int]:
    """Keep so many workers at it until none finds anything; how they ended."""
    ends: Counter[int] = Counter()
    living: set[int] = set()
    number = 0
    while ends[0] == 0 or living:
        while ends[0] == 0 and len(living) < options.workers:
            living.add(start(sweep, known, folder / f"journal-{number}", options))
            number += 1
        pid, status = os.wait()
        living.discard(pid)
        ends[os.waitstatus_to_exitcode(status)] += 1
        if ends[70]:
            raise RuntimeError("a worker broke")
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--sleep", type=float, default=0.2, help="mean seconds of a stand-in")
    parser.add_argument("--deaths", type=float, default=0.01, help="share of lines that kill")
    options = parser.parse_args()
    children.load()
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> int:
    from sdi_gs.sweep import status
    from sdi_gs.sweep.seek import Known

    sweep = synthetic(folder / "s", options.lines)
    began = time.perf_counter()
    manifest = sweep.read()
    reading = time.perf_counter() - began
    blocks: dict[str, Any] = {}
    for line in manifest.lines:
        blocks.setdefault(line.block, []).append(line)
    known = Known(sweep.stamp(), manifest, blocks)
    gc.freeze()  # forks share what is not touched
    empty = _status_seconds(sweep, status)
    began = time.perf_counter()
    ends = crowd(sweep, known, folder, options)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    noted = Counter(word for path in folder.glob("journal-*")
                    for word in path.read_text().splitlines())  # fmt: skip
    made = Counter(text.split()[1] for text in noted.elements() if text.startswith("made "))
    seen = status.standing(sweep)
    claims = sum(state.claim for state in seen.states.values())
    lost = options.lines - seen.counts["done"]
    twice = sum(count > 1 for count in made.values())
    print(f"{machine.cpu_name()}, {len(os.sched_getaffinity(0))} cores")
    print(f"{options.lines:,} lines, {options.workers} workers, {options.sleep} s a stand-in")
    print(f"{seconds:.1f} s, {claims / seconds:,.0f} claims a second, "
          f"{1000 * (used.ru_utime + used.ru_stime) / claims:.2f} ms of a core each")  # fmt: skip
    print(f"{ends[DIED]} workers died, {claims - options.lines} lines were taken over")
    print(f"{lost} lines lost, {twice} made twice, {dict(seen.counts)}")
    print(f"reading the manifest {reading:.2f} s, {sweep.manifest.stat().st_size / 2**20:.1f} MiB")
    print(f"status: {empty:.2f} s before, {_status_seconds(sweep, status):.2f} s after")
    return 1 if lost or twice or len(made) != options.lines else 0


def _status_seconds(sweep: Any, status: Any) -> float:
    """All of 'sweep status' but the start of the program."""
    began = time.perf_counter()
    status.text(sweep, status.standing(sweep))
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
