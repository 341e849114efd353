# SPDX-License-Identifier: Apache-2.0
"""Threads: as many as asked for, and no more than find a core."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdi_gs import build, cores
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
