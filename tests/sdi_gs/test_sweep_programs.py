# SPDX-License-Identifier: Apache-2.0
"""Sweeps with real programs: what is killed goes on, and comes to the same bytes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.sweep.manifest import open_sweep
from sdi_gs.sweep.status import standing

from ..programs import Forked

Run = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="processes are killed by their group on POSIX only")
def test_a_driver_and_its_run_that_are_killed_lose_nothing(
    sdi_gs: Run, fast: Path, tmp_path: Path, programs_forked: type[Forked]
) -> None:
    """kill -9 of both in the middle of a run, once it has saved a state; the same command ends
    with the bytes of a run that was made alone."""
    out = tmp_path / "s"
    said = sdi_gs("sweep", "plan", "a mug", "steps=40", "--representations", fast, "--out", out)
    assert said.code == 0, said.err
    sweep = open_sweep(out)
    line = sweep.read().lines[0]
    run = sweep.run(line)
    with (tmp_path / "log").open("w") as log:
        driver = programs_forked(
            [sys.executable, "-m", "sdi_gs", "sweep", "run", str(out), "--jobs", "1",
             "--cores", "1"],
            stdout=log, env=dict(os.environ),
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not [*run.glob("checkpoints/step_*.pt")] and time.monotonic() < until:
            time.sleep(0.02)
        child = int((run / ".holder.json").read_text().split('"pid": ')[1].split(",")[0])
    finally:
        driver.kill()
        driver.wait()
    os.kill(child, signal.SIGKILL)
    assert not (run / "summary.json").exists()
    assert standing(sweep).counts == {"running": 1}  # nobody could write anything down
    again = sdi_gs("sweep", "run", out, "--jobs", 1, "--cores", 1)
    assert again.code == 0, again.err
    assert "goes on where it was stopped" in again.out
    assert standing(sweep).state(line)[:2] == ("done", 2)
    alone = tmp_path / "alone"
    assert sdi_gs("generate", "--config", run / "config.yaml", "--out", alone).code == 0
    for name in ("final.ply", "turntable.gif"):
        assert (run / name).read_bytes() == (alone / name).read_bytes()
