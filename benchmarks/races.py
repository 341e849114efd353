# SPDX-License-Identifier: Apache-2.0
"""Start two commands on one folder within milliseconds of one another, and look who won.

    python benchmarks/races.py [N] [--pairs generate+generate,resume+resume,...]

N times each pair: one of the two must end with exit code 0, the other be refused with the name of
the holder (or, where it came after the end, find the run there), and the folder must be the one
that a single command leaves, byte for byte, with one line of stats.jsonl for each step.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import crashes

PAIRS = ("generate+generate", "resume+resume", "resume+generate", "table+table", "compare+compare",
         "table+compare")  # fmt: skip
REFUSED = ("is held by process", "it is a run: continue it")


def here() -> None:
    """A hook: the runs of a study are made in the process of the study."""
    from sdi_gs import child
    from sdi_gs.cli.main import main

    def call(run: Any, verb: list[str], orders: child.Orders) -> None:
        if main(verb) != 0:
            raise child.NotRun(run.path.name)

    child.call = call


def after(instant: float) -> Callable[[], None]:
    """A hook: wait for that instant of the monotonic clock."""

    def hook() -> None:
        here()
        while time.monotonic() < instant:
            pass

    return hook


class Track:
    """The words of both commands, and what one of them alone leaves."""

    def __init__(self, pair: str, folder: Path) -> None:
        self.out, self.log = folder / "out", folder / "log"
        config = folder.parent / "fast.yaml"
        study = ("a mug", "--representations", config, "--guidances", "sdi", "--steps", 3)
        self.verbs = {
            "generate": ("generate", "a mug", "--config", config, "--out", self.out),
            "resume": ("resume", self.out),
            "table": ("table1", *study, "--out", self.out),
            "compare": ("compare", *study, "--out", self.out),
        }
        self.one, self.other = pair.split("+")
        self.stopped = folder / "stopped" if self.one == "resume" else None
        if self.stopped is not None:
            self._stop()
        self.alone = {name: self._alone(name) for name in {self.one, self.other} - {"generate"}}
        if "generate" in pair:
            self.alone["generate"] = self._alone("generate") if self.stopped is None else {}

    def _stop(self) -> None:
        """A run that was killed after its third step, kept to be copied."""
        generate, third = self.verbs["generate"], self.out / "checkpoints" / "step_0000002.pt"
        children.empty(self.out).rmdir()
        if children.warm(generate, self.log) != 0:
            raise SystemExit(f"generate does not run at all:\n{self.log.read_text()}")
        children.empty(self.out).rmdir()
        ended = children.run(generate, self.log, children.die_after(third, self.out))
        if ended.code != -signal.SIGKILL:
            raise SystemExit(f"generate went on after its third step:\n{ended.said}")
        shutil.copytree(self.out, self.stopped)  # type: ignore[arg-type]

    def prepare(self) -> None:
        children.empty(self.out).rmdir()
        if self.stopped is not None:
            shutil.copytree(self.stopped, self.out)

    def _alone(self, name: str) -> dict[str, object]:
        self.prepare()
        ended = children.run(self.verbs[name], self.log, here)
        if ended.code != 0:
            raise SystemExit(f"{name} does not run at all:\n{ended.said}")
        return crashes.files(self.out)

    def race(self) -> str:
        """Run both; what is wrong with what they leave, or "" """
        self.prepare()
        at = time.monotonic() + 0.2
        logs = [self.log.with_name(f"log{k}") for k in range(2)]
        words = (self.verbs[self.one], self.verbs[self.other])
        pids = [children.start(w, log, after(at)) for w, log in zip(words, logs, strict=True)]
        codes = [children.wait(pid) for pid in pids]
        said = [log.read_text() for log in logs]
        if sorted(str(code) for code in codes) != ["0", "2"]:
            return f"exit codes {codes}: {[text[-300:] for text in said]}"
        loser = said[codes.index(2)]
        if not any(word in loser for word in REFUSED):
            return f"refused without a name: {loser[-300:]}"
        won = (self.one, self.other)[codes.index(0)]
        found = crashes.files(self.out)
        wanted = self.alone[won]
        return "" if found == wanted else f"other files than those of {won} alone"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=50)
    parser.add_argument("--pairs", default=",".join(PAIRS))
    args = parser.parse_args()
    children.load()
    bad, outcomes = 0, Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory(prefix="sdi-gs-races-") as name:
        folder = Path(name)
        crashes.cases(folder, [])
        for pair in args.pairs.split(","):
            track = Track(pair, children.empty(folder / pair))
            for _ in range(args.count):
                why = track.race()
                outcomes[pair, "one held" if not why else "BAD"] += 1
                if why:
                    bad += 1
                    print(f"{pair}: {why}", flush=True)
            print(f"{pair:<18} {outcomes[pair, 'one held']} of {args.count}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
