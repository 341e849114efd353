# SPDX-License-Identifier: Apache-2.0
"""Whole sweeps of real programs on the engines that every machine can start: what is killed goes
on, and the end is that of a sweep that nobody disturbed. tests/cluster has the same on SLURM."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.sweep.manifest import Sweep
from sdi_gs.sweep.status import standing

from .. import acceptance
from ..acceptance import in_the_middle, planned, require_end, until, workers

ROOT = Path(__file__).parents[2]
LIMIT = 200.0  # seconds
SMALL = ("steps=40", "batch=1", "resolution=16", "output.turntable.frames=2",
         "output.turntable.size=32", "output.preview_every=20")  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

Run = Callable[..., Any]


class Drivers:
    """What starts 'sweep run' on an engine, as programs of their own that end with the test."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self, sweep: Sweep, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sdi_gs", "sweep", "run", str(sweep.path), *words]
        with self.log.open("ab") as log:
            made = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                # Ray gives way to everything else, and a busy machine would starve its tasks.
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                     "RAY_worker_niceness": "0"},
            )  # fmt: skip
        self.all.append(made)
        return made


@pytest.fixture
def drivers(tmp_path: Path) -> Any:
    made = Drivers(tmp_path / "driver.log")
    yield made
    for one in made.all:
        one.kill()
        one.wait()


def one_in_the_middle(sweep: Sweep) -> int:
    """The process of a run, once there is one that has done a step."""
    found: list[int] = []
    until(lambda: found.extend(in_the_middle(sweep)) or found, LIMIT, "a run in the middle")
    return found[0]


@pytest.mark.slow
def test_on_this_machine(drivers: Drivers, sdi_gs: Run, tmp_path: Path) -> None:
    """The driver is killed with its run, then a run alone."""
    sweep = planned(tmp_path / "s", 2, *SMALL)
    words = ("--jobs", "1", "--cores", "1")
    first = drivers.start(sweep, *words)
    acceptance.kill([first.pid, one_in_the_middle(sweep)])
    first.wait()
    second = drivers.start(sweep, *words)
    acceptance.kill([one_in_the_middle(sweep)])
    assert second.wait(LIMIT) == 1, drivers.log.read_text()
    assert len(list(sweep.state.glob("*/*.crash"))) == 1
    require_end(sweep, tmp_path / "alone", sdi_gs)
    said = sdi_gs("sweep", "report", sweep.path)
    assert said.code == 0, said.err
    rows = list(csv.DictReader((sweep.path / "report" / "runs.csv").open()))
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert [float(row["psnr_db"]) > float(row["blank_db"]) for row in rows[::2]] == [True, True]


@pytest.mark.slow
def test_on_ray(drivers: Drivers, sdi_gs: Run, tmp_path: Path) -> None:
    """The driver is killed, and started again; then the process of a task is killed, which Ray
    starts again. Each time the run saves by itself and is continued."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'sdi-gs[ray]'")
    sweep = planned(tmp_path / "s", 1, *SMALL)
    words = ("--on", "ray", "parallelism=1", "cpus=1")
    first = drivers.start(sweep, *words)
    one_in_the_middle(sweep)
    first.kill()
    first.wait()
    until(lambda: not workers(sweep) and not in_the_middle(sweep), LIMIT, "the end of its run")
    second = drivers.start(sweep, *words)
    one_in_the_middle(sweep)
    (worker,) = workers(sweep)
    os.kill(acceptance.parents()[worker], signal.SIGKILL)
    assert second.wait(LIMIT) == 1, drivers.log.read_text()
    assert "1 failed" in drivers.log.read_text()
    assert sum(state.claim for state in standing(sweep).states.values()) == 2 + 2
    require_end(sweep, tmp_path / "alone", sdi_gs)
