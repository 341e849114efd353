# SPDX-License-Identifier: Apache-2.0
"""Threads: as many as asked for, and no more than find a core."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdi_gs import build, cores, trainer
from sdi_gs.config import load

ROOT = Path(__file__).parents[2]

# numba's own parallel loops would start a pool of OpenMP, which sets the threads of everybody.
AFTER_A_KERNEL = """
import torch
from sdi_gs import build
from sdi_gs.config import load
config = load("mini_nerf", ["prompt=a red mug", "device=cpu", *{settings!r}])
shape = build.renderer(config, torch.device("cpu"))
from representations.cameras import turntable
shape.render(turntable(1, 15.0, 3.0, 30.0, (16, 16)), torch.ones(1, 3))
print("omp" in str(__import__("sys").modules.get("numba.np.ufunc.omppool")), end=" ")
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("settings", "environment"), [(["threads=1"], {}), ([], {"OMP_NUM_THREADS": "1"})]
)
def test_one_thread_stays_one_after_a_kernel(
    settings: list[str], environment: dict[str, str]
) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    clean |= {"PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", AFTER_A_KERNEL.format(settings=settings)],
        capture_output=True, text=True, env=clean | environment, check=False, timeout=300,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert out.stdout.split()[-2:] == ["False", "1"]  # no second pool, one thread


def ticks(*idle: float) -> cores.Ticks:
    """Of cores that had nothing to do for these shares of 100 ticks."""
    return {core: (int(100 * share) + 7, 100 + 9) for core, share in enumerate(idle)}


BEGIN: cores.Ticks = dict.fromkeys(range(16), (7, 9))


@pytest.mark.parametrize(
    ("most", "idle", "expected"),
    [
        (2, (1.0, 1.0), 2),
        (2, (0.9, 0.8), 2),  # a browser in the background
        (2, (0.5, 0.45), 1),  # one job that moves between the cores
        (2, (0.0, 1.0), 1),
        (2, (0.0, 0.0), 1),  # somebody else has them all: one thread, not none
        (16, (0.0,) * 4 + (1.0,) * 12, 12),
        (4, (1.0,) * 16, 4),  # never more than torch would take
        (2, (), 2),  # the system does not tell
    ],
)
def test_busy_cores_are_left_alone(most: int, idle: tuple[float, ...], expected: int) -> None:
    assert cores.spare(most, BEGIN, ticks(*idle)) == expected


def test_a_machine_at_work_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other processes on all cores that this one may use, one thread is taken."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    loop = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(loop) for _ in range(2 * len(os.sched_getaffinity(0)))]
    try:
        said: list[str] = []
        config = build.with_threads(load("mini", ["prompt=a red mug"]), said.append)
        assert config.threads == 1
        assert "1 of 2 threads are used" in said[0]
        assert "threads=2" in said[0]
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_what_the_user_says_about_threads_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(cores, "_ticks", lambda: pytest.fail("nobody asked"))
    config = build.with_threads(load("mini", ["prompt=a red mug", "threads=2"]), pytest.fail)
    assert config.threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert build.with_threads(load("mini", ["prompt=a red mug"]), pytest.fail).threads == 2


class Machine:
    """A pretended machine of some cores: who uses how much of them, second by second."""

    def __init__(self, count: int) -> None:
        self.count, self.now, self.used = count, 0.0, 0.0
        self.idle = self.every = 1000.0

    def passes(self, mine: float, others: float, seconds: float = 1.0) -> None:
        """Cores that this process and all others keep busy meanwhile."""
        self.now += seconds
        self.used += mine * seconds
        self.every += 100 * seconds
        self.idle += 100 * seconds * (1.0 - (mine + others) / self.count)

    def ticks(self) -> cores.Ticks:
        return {core: (round(self.idle), round(self.every)) for core in range(self.count)}

    def pace(self, now: int) -> cores.Pace:
        return cores.Pace(
            self.count, now, ticks=self.ticks, clock=lambda: self.now, own=lambda: self.used
        )


def test_a_run_gives_way_and_comes_back() -> None:
    """Two threads beside nobody stay; one job and they are one thread, after two seconds; once the
    job is done they are two again, after five, and after ten if that was wrong."""
    machine = Machine(2)
    pace = machine.pace(2)

    steps = itertools.count()

    def go_on(mine: float, others: float, times: int) -> list[int | None]:
        said = []
        for _ in range(times):
            machine.passes(mine, others)
            said.append(pace.look(next(steps)))
        return said

    assert go_on(2.0, 0.0, 5) == [None] * 5
    assert go_on(1.7, 0.3, 5) == [None] * 5  # a browser in the background
    assert go_on(1.33, 0.67, 2) == [None, 1]  # three threads share two cores
    assert go_on(1.0, 1.0, 9) == [None] * 9
    assert go_on(1.0, 0.0, 5) == [None, None, None, None, 2]
    # It came back too soon: ten looks now.
    assert go_on(1.0, 1.0, 2) == [None, 1]
    assert go_on(1.0, 0.0, 10) == [None] * 9 + [2]
    assert pace.changes == {11: 1, 25: 2, 27: 1, 37: 2}


@pytest.mark.parametrize(
    ("count", "mine", "others", "expected"),
    [
        (2, 1.0, 1.0, 1),
        (2, 0.4, 1.6, 1),  # never none
        (8, 4.0, 4.0, 4),
        (8, 7.0, 1.0, 7),
        (8, 7.8, 0.2, None),  # as many as there are
    ],
)
def test_cores_that_are_left(count: int, mine: float, others: float, expected: int | None) -> None:
    machine = Machine(count)
    pace = machine.pace(count)
    for k in range(2):
        machine.passes(mine, others)
        said = pace.look(k)
    assert said == expected


def test_looks_are_a_second_apart() -> None:
    machine = Machine(2)
    pace = machine.pace(2)
    for k in range(15):  # of an eighth of a second each: one look at the end of the first second
        machine.passes(0.5, 1.5, 0.125)
        assert pace.look(k) is None
    machine.passes(0.5, 1.5, 0.125)
    assert pace.look(15) == 1
    assert pace.changes == {15: 1}


def test_one_long_step_is_enough() -> None:
    machine = Machine(2)
    pace = machine.pace(2)
    machine.passes(0.9, 1.1, 10.0)  # it lost its cores
    assert pace.look(0) == 1


def test_where_nobody_tells_the_number_stays() -> None:
    machine = Machine(2)
    pace = cores.Pace(2, 2, ticks=dict, clock=lambda: machine.now, own=lambda: machine.used)
    for k in range(9):
        machine.passes(0.1, 1.9)
        assert pace.look(k) is None


def test_whoever_is_told_a_number_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    free = cores.pace(False, 1)
    assert free is not None
    assert (free.most, free.now) == (2, 1)
    assert cores.pace(True, 2) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cores.pace(False, 2) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert cores.pace(False, 1) is None


def test_a_run_that_gives_way_says_so_and_notes_it(
    fast: Path, sdi_gs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another job takes a core during the second step."""
    machine = Machine(2)
    taken: list[int | None] = []
    monkeypatch.setattr(cores, "pace", lambda fixed, now: None if fixed else machine.pace(2))
    monkeypatch.setattr(build, "use_threads", taken.append)
    step = trainer.train_step

    def busy(training: trainer.Training, index: int) -> trainer.StepReport:
        if index == 0:
            taken.clear()  # what the run began with
        machine.passes(*((1.9, 0.1) if index == 0 else (1.0, 1.0)), seconds=3.0)
        return step(training, index)

    monkeypatch.setattr(trainer, "train_step", busy)
    said = sdi_gs("generate", "a mug", "--config", fast, "steps=4", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert "1 of 2 threads are used after step 2 (threads=2 keeps them all)" in said.out + said.err
    assert taken == [1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["threads_after_step"] == {"2": 1}
    sdi_gs("generate", "a mug", "--config", fast, "steps=2", "threads=1", "--out", tmp_path / "own")
    assert "threads_after_step" not in (tmp_path / "own" / "summary.json").read_text()


@pytest.mark.parametrize("words", [("generate2d", "a mug"), ("experiment", "fig9", "a mug")])
def test_pictures_and_measures_leave_busy_cores_alone(
    fast: Path, sdi_gs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    taken: list[int | None] = []
    monkeypatch.setattr(build, "spare_threads", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(build, "use_threads", taken.append)
    said = sdi_gs(*words, "--config", fast, "--samples", 1, "steps=1", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert taken == [1]
    assert "1 of 2 threads are used" in said.out + said.err
