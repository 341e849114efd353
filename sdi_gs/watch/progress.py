# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: a live line in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ..errors import leading
from ..trainer import StepReport

if TYPE_CHECKING:
    from ..run import Scene

PLAIN_LINES = 20  # about this many lines for a whole run
SMOOTHING = 0.9  # of the seconds per step that are shown


def watcher() -> Silent | Plain | Live:
    """The one that fits standard output."""
    if not leading():
        return Silent()
    return Live() if sys.stdout.isatty() else Plain()


class Pace:
    """Seconds per step, smoothed, and what they promise."""

    def __init__(self, first_step: int, steps: int) -> None:
        self.steps = steps
        self.per_step: float | None = None
        self._last = time.perf_counter()
        self._warm = False

    def lap(self) -> None:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        if self.per_step is None or not self._warm:
            # The first step compiles kernels: the second one replaces its time.
            self._warm = self.per_step is not None
            self.per_step = spent
        else:
            self.per_step = SMOOTHING * self.per_step + (1 - SMOOTHING) * spent

    def rest(self, seconds: float) -> None:
        """That long nothing was done, on purpose."""
        self._last += seconds

    def left(self, done: int) -> str:
        seconds = round((self.steps - done) * (self.per_step or 0.0))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def describe(report: StepReport, pace: Pace) -> str:
    """The numbers of a step, in a fixed order."""
    return (
        f"t {report.t:4.0f}  loss {report.loss:.4g}  "
        f"{report.refined.unit} {report.refined.size}  "
        f"{pace.per_step or 0.0:.2f} s/step  {pace.left(report.step + 1)} left"
    )


class Silent:
    """Nothing, because another process speaks."""

    def say(self, text: str) -> None: ...

    def begin(self, scene: Scene) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def rest(self, seconds: float) -> None: ...

    def linger(self) -> None: ...

    def end(self) -> None: ...


class Plain:
    """A line now and then, for logs and pipes."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, scene: Scene) -> None:
        steps = scene.config.steps
        self._pace = Pace(scene.first_step, steps)
        self._first, self._every = scene.first_step, max(1, steps // PLAIN_LINES)

    def step(self, report: StepReport) -> None:
        self._pace.lap()
        done, steps = report.step + 1, self._pace.steps
        if done == self._first + 1 or done == steps or done % self._every == 0:
            print(f"step {done:>5}/{steps}  {describe(report, self._pace)}", flush=True)

    def rest(self, seconds: float) -> None:
        self._pace.rest(seconds)

    def linger(self) -> None:
        """A terminal keeps what it was told."""

    def end(self) -> None:
        """Nothing to put away."""


class Live:
    """One line that moves."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            console=Console(highlight=False, soft_wrap=True),
        )

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def begin(self, scene: Scene) -> None:
        first, steps = scene.first_step, scene.config.steps
        self._pace = Pace(first, steps)
        self._task = self._progress.add_task("", total=steps, completed=first, numbers="")
        self._progress.start()

    def step(self, report: StepReport) -> None:
        self._pace.lap()
        numbers = describe(report, self._pace)
        self._progress.update(self._task, completed=report.step + 1, numbers=numbers)

    def rest(self, seconds: float) -> None:
        self._pace.rest(seconds)

    def linger(self) -> None:
        """A terminal keeps what it was told."""

    def end(self) -> None:
        self._progress.stop()
