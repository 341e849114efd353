# SPDX-License-Identifier: Apache-2.0
"""A sweep on SLURM: preempted, killed, and its driver killed; and the script of docs/sweep.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.sweep.engines.slurm import job_name
from sdi_gs.sweep.manifest import Sweep

from .. import acceptance
from ..acceptance import in_the_middle, planned, require_end, runs_of, until, workers

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sweep.md"
LIMIT = 420.0  # seconds for anything
STEPS = "steps=30"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def slurm(*words: object) -> str:
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=True, env=environment()
    ).stdout.strip()


def tasks(name: str) -> list[str]:
    return slurm("squeue", "-h", "--array", f"--name={name}", "-o", "%T").splitlines()


def preempt() -> None:
    """A job in the high partition that needs the whole node: those in low are queued again."""
    number = slurm("sbatch", "--parsable", "-p", "high", "-n", "2", "-o", "/dev/null",
                   "--wrap", "sleep 5")  # fmt: skip
    until(lambda: not slurm("squeue", "-h", "-j", number, "-o", "%T"), LIMIT, "the other job")


@pytest.fixture
def driver(tmp_path: Path) -> Callable[[Sweep], subprocess.Popen[bytes]]:
    """What starts 'sweep run --on slurm'."""

    def start(sweep: Sweep) -> subprocess.Popen[bytes]:
        words = ["sweep", "run", str(sweep.path), "--on", "slurm", "partition=low", "time=30",
                 "parallelism=2", "cpus=1"]  # fmt: skip
        with (tmp_path / "driver.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "sdi_gs", *words], stdout=log, stderr=log, env=environment()
            )

    return start


def disturb(sweep: Sweep, alone: Path, sdi_gs: Callable[..., Any]) -> None:
    """Two runs are preempted in the middle, and a task is killed with all that it has started. In
    the two minutes until SLURM starts the preempted ones again, runs are made alone."""
    until(lambda: len(in_the_middle(sweep)) == 2, LIMIT, "two runs at a time")
    preempt()
    assert len(list(sweep.state.glob("*/*.back"))) == 2
    acceptance.make_alone(sweep, alone, sdi_gs, lambda: not workers(sweep))
    until(lambda: in_the_middle(sweep) and workers(sweep), LIMIT, "a run that goes on")
    worker = workers(sweep)[0]
    above = acceptance.parents()[worker]
    acceptance.kill([above, worker, *runs_of(worker)])


@pytest.mark.slow
def test_a_sweep_survives_preemption_and_kills(
    cluster: Path, driver: Callable[[Sweep], subprocess.Popen[bytes]], tmp_path: Path,
    sdi_gs: Callable[..., Any],
) -> None:  # fmt: skip
    """12 runs, of which one cannot work: two are preempted, one is killed with its task, and so is
    the driver, which finds the tasks of the first one again."""
    sweep = planned(tmp_path / "s", 11, STEPS)
    name = job_name(sweep)
    first = driver(sweep)
    try:
        until(lambda: len(tasks(name)) == 2, LIMIT, "two tasks")
    finally:
        first.kill()
        first.wait()
    second = driver(sweep)
    try:
        disturb(sweep, tmp_path / "alone", sdi_gs)
        code = second.wait(LIMIT)
    finally:
        second.kill()
    said = (tmp_path / "driver.log").read_text()
    assert code == 1, said  # one run has no result
    assert "1 failed" in said
    arrays = re.findall(r"sent (\d) tasks", said)
    assert arrays[0] == "2"
    assert arrays[1:] in ([], ["1"])  # for the one that was killed, if anything still waited
    require_end(sweep, tmp_path / "alone", sdi_gs)


def script() -> str:
    found = re.search(r"<!-- file: sweep\.sbatch -->\n```sh\n(.*?)```", PAGE.read_text(), re.S)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_the_script_of_the_documentation(
    cluster: Path, tmp_path: Path, sdi_gs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array with an index a task: one is told that its time is over, another is preempted, and
    both go on when they are queued again; that of the run that cannot work says why."""
    sweep = planned(tmp_path / "s", 2, STEPS)
    told = script()
    assert "sweeps/first" in told
    (tmp_path / "sweep.sbatch").write_text(told.replace("sweeps/first", str(sweep.path)))
    command = tmp_path / "bin" / "sdi-gs"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sdi_gs "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    number = send(tmp_path, "--array=0-2", "-p", "low", "-n", "1", "-o", f"{tmp_path}/%a.log")
    until(lambda: len(in_the_middle(sweep)) == 2, LIMIT, "two runs at a time")
    slurm("scancel", "--batch", "--signal=USR2", f"{number}_0")
    until(lambda: len(list(sweep.state.glob("*/*.back"))) == 1, LIMIT, "a run that is put back")
    preempt()
    assert len(list(sweep.state.glob("*/*.back"))) == 2
    until(lambda: not slurm("squeue", "-h", "-j", number, "-o", "%T"), LIMIT, "the array")
    require_end(sweep, tmp_path / "alone", sdi_gs)
    for index in (0, 2):
        assert "goes on where it was stopped" in (tmp_path / f"{index}.log").read_text()
    assert "xyzzy" in (tmp_path / "1.log").read_text()


def send(folder: Path, *flags: str, script: str = "sweep.sbatch") -> str:
    words: Sequence[object] = ("sbatch", "--parsable", *flags, folder / script)
    number = slurm(*words)
    time.sleep(1.0)
    return number
