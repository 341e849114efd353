# SPDX-License-Identifier: Apache-2.0
"""What is promised about the time that is left."""

from __future__ import annotations

import time

import pytest
import torch

from representations.interface import RefineReport
from representations.ops import cpu_jit
from sdi_gs import build
from sdi_gs.config import load
from sdi_gs.trainer import StepReport
from sdi_gs.watch.progress import Pace, describe


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def report(step: int) -> StepReport:
    return StepReport(step, 700.0, {"guidance": 0.5}, RefineReport(3000, unit="splats"), 8, {})


def test_the_first_step_promises_nothing_and_counts_for_nothing(clock: list[float]) -> None:
    """It took 30 s of compiling: of 400 steps, 3:19 hours were said to be left."""
    pace, said = Pace(400), []
    for step, spent in enumerate((30.0, 0.5, 0.5)):
        clock[0] += spent
        pace.lap()
        said.append(describe(report(step), pace))
    assert "left" not in said[0]
    assert "s/step" not in said[0]
    assert said[0].endswith("splats 3000")
    assert said[1].endswith("0.50 s/step  3:19 left")
    assert said[2].endswith("0.50 s/step  3:18 left")


def test_a_pause_is_no_work(clock: list[float]) -> None:
    pace = Pace(10)
    for _ in range(2):
        clock[0] += 1.0
        pace.lap()
    clock[0] += 61.0
    pace.rest(60.0)
    pace.lap()
    assert pace.told(3) == "1.00 s/step  0:07 left"


def test_compiling_is_named_where_a_kernel_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def waiting(family: str) -> bool:
        asked.append(family)
        return True

    monkeypatch.setattr(cpu_jit, "waiting", waiting)
    for preset in ("mini", "mini_nerf"):
        shape = build.renderer(load(preset, ["prompt=a mug", "device=cpu"]), torch.device("cpu"))
        assert build.must_compile(shape)
    assert asked == ["representations.ops.splats", "representations.ops.fields"]
    settings = ["prompt=a mug", "device=cpu", "representation.backend=torch"]
    assert not build.must_compile(build.renderer(load("mini", settings), torch.device("cpu")))
