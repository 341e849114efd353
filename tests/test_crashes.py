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


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("crashes.py", ("8", "--cases", "splats", "--seed", "3"), "8 kills, 0 not mended"),
        ("races.py", ("2", "--pairs", "generate+generate,resume+resume"), "2 of 2"),
    ],
)
def test_what_is_killed_or_raced_ends_as_if_nothing_had_happened(
    script: str, words: tuple[str, ...], said: str
) -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *words], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert said in ended.stdout
