# SPDX-License-Identifier: Apache-2.0
"""Something that happens in the middle of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from sdi_gs.trainer import StepReport
from sdi_gs.watch import progress


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something in the middle of a run, right after a step is reported."""
    real = progress.Plain.step

    def acting(self: progress.Plain, report: StepReport) -> None:
        real(self, report)
        if report.step == step:
            action()

    monkeypatch.setattr(progress.Plain, "step", acting)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
