# SPDX-License-Identifier: Apache-2.0
"""Kill everything of a sweep at random moments, its driver too, and start it again.

    python benchmarks/sweep_kills.py [KILLS] [--runs 12] [--steps 30] [--jobs 2] [--seed 0]

Every process of the sweep is killed (SIGKILL) at once: the driver and the runs that it makes; every
third time the runs are left to notice it, to save and to end. The same command then goes on. At the
end every run must have a result with the bytes of the same run made alone, no run that was finished
may have been touched since, and no step may be missing or counted twice.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import children
import crashes

COLOURS = ("red", "blue", "green", "yellow")


class Forked:
    """What stands for subprocess.Popen: a fork of the driver, which has loaded everything."""

    def __init__(
        self, argv: Sequence[str], stdout: Any, env: Mapping[str, str], **_: object
    ) -> None:
        self._code: int | None = None

        def hook() -> None:
            os.environ.update(env)

        log = Path(os.readlink(f"/proc/self/fd/{stdout.fileno()}"))
        self.pid = children.start(argv[3:], log, hook)

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (children.LIMIT if timeout is None else timeout)
        while self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            else:
                time.sleep(0.005)
        return self._code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._code is None:
            os.kill(self.pid, number)


def forks() -> None:
    """A hook: the runs of the driver are forks, which start in milliseconds."""
    from sdi_gs import child

    child.subprocess.Popen = Forked  # type: ignore[misc, assignment]


def runs_of(driver: int) -> list[int]:
    """The processes that the driver has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == driver:
            found.append(int(path.parent.name))
    return found


def strike(driver: int, also_runs: bool) -> None:
    """Kill the driver and what it has started."""
    below = runs_of(driver)
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    for pid in below if also_runs else ():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """What says of each finished run that it was not touched since: of its summary the file and its
    time."""
    found = {}
    for path in out.glob("runs/*/*/summary.json"):
        told = path.stat()
        found[path.parent.name] = (told.st_ino, told.st_mtime_ns)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    children.load()
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), options, random.Random(options.seed))


def measure(folder: Path, options: argparse.Namespace, rng: random.Random) -> int:
    from tests.tiny import save_model, save_settings

    preset = save_settings(folder / "fast.yaml", save_model(folder / "model"))
    out, log = folder / "s", folder / "log"
    (folder / "prompts.txt").write_text("".join(f"a {c} mug\n" for c in COLOURS))
    seeds = -(-options.runs // len(COLOURS))
    planned = children.run(
        ("sweep", "plan", folder / "prompts.txt", f"steps={options.steps}", "threads=1",
         "--representations", preset, "--seeds", seeds, "--out", out), log,
    )  # fmt: skip
    assert planned.code == 0, planned.said
    words = ("sweep", "run", out, "--jobs", options.jobs, "--cores", 1)
    began, faults, before = time.monotonic(), [], {}
    killed = 0
    while killed < options.kills:
        driver = children.start(words, log, forks)
        time.sleep(rng.uniform(0.05, 1.5))
        if os.waitpid(driver, os.WNOHANG)[0]:
            faults.append(f"the sweep was over after {killed} kills: take more --runs or --steps")
            break
        strike(driver, also_runs=killed % 3 != 2)
        killed += 1
        now = finished(out)
        faults += [f"{name} was made again" for name in before if now.get(name) != before[name]]
        before = now
        print(f"kill {killed}: {len(now)} runs finished", flush=True)
    last = children.run(words, log, forks)
    if last.code != 0:
        faults.append(f"the last start: {last.said}")
    now = finished(out)
    faults += [f"{name} was made again" for name in before if now.get(name) != before[name]]
    faults += compare(out, folder, log, seeds * len(COLOURS))
    seconds = time.monotonic() - began
    print(f"{killed} kills in {seconds:.0f} s, {len(now)} runs, {len(faults)} faults")
    print("\n".join(faults))
    return 1 if faults else 0


def compare(out: Path, folder: Path, log: Path, runs: int) -> list[str]:
    """What is wrong with the end of a sweep: each run is made alone besides."""
    from sdi_gs.sweep.manifest import open_sweep
    from sdi_gs.sweep.status import standing

    sweep, faults = open_sweep(out), []
    seen = standing(sweep)
    if seen.counts != {"done": runs}:
        faults.append(f"of {runs} runs: {dict(seen.counts)}")
    claims = sum(state.claim for state in seen.states.values())
    print(f"{claims} claims for {runs} runs")
    for line in seen.manifest.lines:
        run, alone = sweep.run(line), folder / "alone" / line.name
        ended = children.run(("generate", "--config", run / "config.yaml", "--out", alone), log)
        if ended.code != 0:
            faults.append(f"{line.name} alone: {ended.said}")
        elif crashes.files(run) != crashes.files(alone):
            faults.append(f"{line.name} has other bytes than alone")
        ends = [path.name for path in (sweep.state / line.block).glob(f"{line.digest}.*.done")]
        if len(ends) != 1:
            faults.append(f"{line.name} was done {len(ends)} times: {ends}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
