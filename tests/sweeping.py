# SPDX-License-Identifier: Apache-2.0
"""Sweeps whose runs are stand-ins: a sentence says how its run ends, and no program is started."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdi_gs import child
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.errors import NO_ROOM
from sdi_gs.stopping import Interrupted
from sdi_gs.sweep import plan
from sdi_gs.sweep.manifest import Line, Sweep
from sdi_gs.sweep.plan import Plan

MUG = "a red mug"


def small(folder: Path) -> str:
    """A file of settings that is quick to read."""
    path = folder / "small.yaml"
    path.write_text("# For tests.\nbase: mini\nsteps: 4\n")
    return str(path)


def planned(folder: Path, *prompts: str, seeds: int = 1, **changed: object) -> Sweep:
    """A sweep of one method in ``folder``/sweep."""
    what = Plan(
        prompts or (MUG,), representations=(small(folder),), seeds=tuple(range(seeds)),
        **changed,  # type: ignore[arg-type]
    )  # fmt: skip
    return plan.write(what, folder / "sweep").sweep


def lines(sweep: Sweep) -> list[Line]:
    return sweep.read().lines


class Stage:
    """What the stand-ins do, by words of their sentence; and how often each was begun."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.order: list[str] = []  # as they were begun
        self.hold = threading.Event()  # those that say "slow" wait for it, or for a stop
        self.mended = False  # those that crash or find no room do so no more
        self._lock = threading.Lock()

    def call(self, run: RunFolder, verb: list[str], orders: child.Orders) -> None:
        name = run.path.name
        with self._lock:
            self.begun[name] += 1
            self.order.append(name)
        run.path.mkdir(parents=True, exist_ok=True)
        if verb[0] == "generate":
            run.config_file.write_bytes(Path(verb[2]).read_bytes())
        elif "crash" not in name:
            assert verb == ["resume", str(run.path)]
        child.beside(run.path, "log").write_text(f"sdi-gs: {name}\n")
        self._fail(name, orders)
        with self._lock:
            self.finished[name] += 1
        run.summary_file.write_text("{}")

    def _fail(self, name: str, orders: child.Orders) -> None:
        if "slow" in name:
            for _ in self._until_held(orders):
                time.sleep(0.01)
        if "mistake" in name:
            raise child.NotRun("it cannot work\nreally", 2)
        if "wild" in name:
            raise child.Diverged("step 1: the loss is inf")
        if "crash" in name and not self.mended:
            raise child.NotRun("killed by SIGKILL", -9)
        if "full" in name and not self.mended:
            raise child.NotRun("No space left on device", NO_ROOM)

    def _until_held(self, orders: child.Orders) -> Iterator[None]:
        while not self.hold.is_set():
            number = orders.asked() if orders.asked else None
            if number is not None:
                raise Interrupted("stopped", number)
            yield


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Runs are stand-ins."""
    made = Stage()
    monkeypatch.setattr(child, "call", made.call)
    return made


def quiet(said: str) -> None:
    pass
