# SPDX-License-Identifier: Apache-2.0
"""The curves of a run for TensorBoard (extra 'tensorboard'), beside stats.jsonl, which has more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from representations.checks import pip_install

from ..config import Config
from ..errors import UserError
from ..trainer import StepReport
from .run_folder import RunFolder

NEEDS = "tensorboardX>=2.6"


def require(config: Config) -> None:
    """UserError with the command that installs the writer, where it is wanted and missing."""
    if config.output.tensorboard and find_spec("tensorboardX") is None:
        raise UserError(
            "output.tensorboard=true needs the package tensorboardX, which is not installed; "
            f"install it with: {pip_install(NEEDS)}"
        )


@contextmanager
def logging(
    config: Config, run: RunFolder, first_step: int
) -> Iterator[Callable[[StepReport], None]]:
    """What each step is told to. Steps from ``first_step`` on that are in the log already, from
    before a resumed run's checkpoint was left behind, are marked as replaced."""
    if not config.output.tensorboard:
        yield lambda report: None
        return
    from tensorboardX import SummaryWriter

    purge = first_step if first_step > 0 else None
    # The name of the file holds only whole seconds; two processes must not get the same.
    suffix = f".from_{first_step:07d}"
    writer = SummaryWriter(str(run.tensorboard), purge_step=purge, filename_suffix=suffix)
    try:
        if first_step == 0:
            writer.add_text("prompt", config.prompt)
        yield lambda report: _write(writer, report)
    finally:
        writer.close()


def _write(writer, report: StepReport) -> None:  # type: ignore[no-untyped-def]
    writer.add_scalar("loss/total", report.loss, report.step)
    for name, value in report.losses.items():
        writer.add_scalar(f"loss/{name}", value, report.step)
    for stage, seconds in report.seconds.items():
        writer.add_scalar(f"seconds/{stage}", seconds, report.step)
    writer.add_scalar("t", report.t, report.step)
    writer.add_scalar(report.refined.unit, report.refined.size, report.step)
