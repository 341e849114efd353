# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: a live line in a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from markupsafe import escape

from representations import telling

from ..errors import leading
from ..trainer import StepReport
from .line import Line, Part, bar, clock

if TYPE_CHECKING:
    from ..run import Scene

PLAIN_LINES = 20  # about this many lines for a whole run
NOTEBOOK_EVERY = 0.3  # seconds between two updates of a notebook's bar
SMOOTHING = 0.9  # of the seconds per step that are shown


def watcher() -> Terminal:
    """The one that fits where the output goes."""
    if not leading():
        return Silent()
    if in_notebook():
        return Notebook()
    return Live() if sys.stdout.isatty() else Plain()


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this, which shows HTML."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and getattr(running, "kernel", None) is not None


class Pace:
    """Seconds per step, smoothed, and what they promise: nothing before the second step, because
    the first one compiles and loads whatever is called for the first time."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.per_step: float | None = None
        self._last = time.perf_counter()
        self._warm = False

    def lap(self) -> None:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        if not self._warm:
            self._warm = True
        elif self.per_step is None:
            self.per_step = spent
        else:
            self.per_step = SMOOTHING * self.per_step + (1 - SMOOTHING) * spent

    def rest(self, seconds: float) -> None:
        """That long nothing was done, on purpose."""
        self._last += seconds

    def told(self, done: int) -> str:
        """Seconds per step and the time that is left after ``done`` steps; empty before the pace is
        known."""
        if self.per_step is None:
            return ""
        return f"{self.per_step:.2f} s/step  {self.left(done)} left"

    def left(self, done: int) -> str:
        """The time that is left after ``done`` steps, as on a clock; empty before the pace is
        known."""
        return clock((self.steps - done) * self.per_step) if self.per_step is not None else ""


def describe(report: StepReport, pace: Pace) -> str:
    """The numbers of a step, in a fixed order."""
    return (
        f"t {report.t:4.0f}  loss {report.loss:.4g}  "
        f"{report.refined.unit} {report.refined.size}  {pace.told(report.step + 1)}"
    ).rstrip()


class Silent:
    """Nothing, because another process speaks."""

    def say(self, text: str) -> None: ...

    def begin(self, scene: Scene) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def rest(self, seconds: float) -> None: ...

    def hush(self) -> None: ...

    def linger(self) -> None: ...

    def end(self) -> None: ...


@contextmanager
def _unharmed() -> Iterator[None]:
    """A terminal that was closed, or a pipe that nobody reads any more, ends no run: what is said
    from then on goes nowhere."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


class Plain:
    """A line now and then, for logs and pipes."""

    @_unharmed()
    def say(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, scene: Scene) -> None:
        steps = scene.config.steps
        self._pace = Pace(steps)
        self._first, self._every = scene.first_step, max(1, steps // PLAIN_LINES)

    def step(self, report: StepReport) -> None:
        self._pace.lap()
        done, steps = report.step + 1, self._pace.steps
        if done == self._first + 1 or done == steps or done % self._every == 0:
            self.say(f"step {done:>5}/{steps}  {describe(report, self._pace)}")

    def rest(self, seconds: float) -> None:
        self._pace.rest(seconds)

    def hush(self) -> None:
        """Nothing moves here."""

    def linger(self) -> None:
        """A terminal keeps what it was told."""

    def end(self) -> None:
        """Nothing to put away."""


class Notebook:
    """One bar that moves, below a notebook's cell."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)
        self._said = ""
        self._bar = ""
        self._shown = 0.0

    def say(self, text: str) -> None:
        self._said = text
        self._show()

    def begin(self, scene: Scene) -> None:
        self._pace = Pace(scene.config.steps)

    def step(self, report: StepReport) -> None:
        self._pace.lap()
        done, steps = report.step + 1, self._pace.steps
        self._bar = (
            f'<progress value="{done}" max="{steps}" style="width: 16em"></progress> '
            f"<code>step {done}/{steps}&nbsp; {escape(describe(report, self._pace))}</code>"
        )
        if done == steps or time.perf_counter() - self._shown > NOTEBOOK_EVERY:
            self._said = ""
            self._show()

    def rest(self, seconds: float) -> None:
        self._pace.rest(seconds)

    def hush(self) -> None:
        """What is printed comes below."""

    def linger(self) -> None:
        """A notebook keeps what it was told."""

    def end(self) -> None:
        self._said = ""
        self._show()

    def _show(self) -> None:
        self._shown = time.perf_counter()
        self._handle.update(self._html(f"{self._bar} {escape(self._said)}"))


class Live(Line):
    """One line that moves: what is waited for, then the steps, then the pictures."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self._report: StepReport | None = None
        self._pace: Pace | None = None
        self._training = False
        self._listening = telling.listening(self)
        self._listening.__enter__()

    @_unharmed()
    def say(self, text: str) -> None:
        self._moved = time.perf_counter()
        self.show()
        print(text, flush=True)

    @_unharmed()
    def begin(self, scene: Scene) -> None:
        self._pace = Pace(scene.config.steps)
        self._first, self._training = scene.first_step, True
        self._moved = time.perf_counter()
        self.show()

    def step(self, report: StepReport) -> None:
        assert self._pace is not None
        self._pace.lap()
        self._report = report
        self._training = report.step + 1 < self._pace.steps

    def rest(self, seconds: float) -> None:
        if self._pace is not None:
            self._pace.rest(seconds)

    @_unharmed()
    def hush(self) -> None:
        """What is printed next comes from elsewhere, and nothing moves until something is said."""
        self.close()

    def linger(self) -> None:
        """A terminal keeps what it was told."""

    @_unharmed()
    def end(self) -> None:
        self._listening.__exit__(None, None, None)
        self.close()

    def parts(self) -> list[Part]:
        """The step, and what it was told; while it trains, what draws is a moment of a step."""
        if not self._training or self._pace is None:
            return super().parts()
        steps, report, pace = self._pace.steps, self._report, self._pace
        done = self._first if report is None else report.step + 1
        found = [Part(f"step {done}/{steps}", 0), Part(bar(done, steps), 3)]
        if report is None:
            return [*found, Part(self.waited(), 1)]
        left = f"{pace.left(done)} left" if pace.per_step else self.waited()
        return [
            *found,
            Part(f"t {report.t:.0f}", 5),
            Part(f"loss {report.loss:.4g}", 6),
            Part(f"{report.refined.unit} {report.refined.size}", 4),
            Part(f"{pace.per_step:.2f} s/step" if pace.per_step else "", 2),
            Part(left, 1),
        ]


Terminal = Silent | Plain | Live | Notebook
"""Where a person is told of a run; see :class:`sdi_gs.run.Watcher`."""
