# SPDX-License-Identifier: Apache-2.0
"""A few of the kills of benchmarks/crashes.py, and of the races of benchmarks/races.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits of Linux")


SCRIPTS = {
    "crashes": ("8 --cases splats --seed 3", "8 kills, 0 not mended"),
    "races": ("2 --pairs generate+generate,resume+resume", "2 of 2"),
}
ONE_AFTER_THE_OTHER = """
import importlib, sys

codes = []
for line in sys.argv[1:]:
    name, *words = line.split()
    sys.argv = [name, *words]
    codes.append(importlib.import_module(name).main())
print("codes", codes)
"""


def test_what_is_killed_or_raced_ends_as_if_nothing_had_happened() -> None:
    """Both scripts in one process, whose imports take longer than all the forks."""
    lines = [f"{name} {words}" for name, (words, _) in SCRIPTS.items()]
    ended = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, *lines], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS)}, timeout=500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "codes [0, 0]" in ended.stdout, ended.stdout + ended.stderr
    for _, said in SCRIPTS.values():
        assert said in ended.stdout
