# SPDX-License-Identifier: Apache-2.0
"""A shape that is watched: a run while it goes on, and one that is finished or lies in a file
(extra 'viewer')."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from representations.interface import HasDensity, HasSplats, HasTexture, Renderer
from representations.reading import Reading

from .. import assets
from ..artefacts import media
from ..artefacts.records import lost
from ..artefacts.run_folder import slug
from ..errors import UserError
from ..look import Stage, reopen, stage
from ..run import Scene
from ..splat_files import open_splats
from ..trainer import StepReport
from .live import MOVING_EVERY, SHARE, STILL_EVERY, Budget, Limits, RenderScheduler
from .page import CURVES, Exhibit, Page, exhibit, require_viser
from .progress import Pace

if TYPE_CHECKING:
    from .progress import Terminal

REFRESH = 1.0  # seconds between two updates of the numbers and curves
NAP = 0.03  # seconds between two looks at the visitors while nothing else is to be done
SNAPSHOT = 1024  # pixels of its longer side
TRAINING = Limits(moving=SHARE * MOVING_EVERY, still=SHARE * STILL_EVERY)
RESTING = Limits(moving=0.1, still=1.5)  # nothing else has to be done


def unit_of(shape: Renderer) -> str:
    """What its size counts, for people."""
    if isinstance(shape, HasSplats):
        return "splats"
    if isinstance(shape, HasTexture):
        return "texels"
    return "cells" if isinstance(shape, HasDensity) else "size"


class Errands:
    """What visitors ask for that takes the shape: a picture, a file."""

    def __init__(self, shown_on: Page, shown: Stage, name: str) -> None:
        self.page, self.stage, self.name = shown_on, shown, slug(name)

    def run(self, done: int) -> None:
        """Answer everything that was asked for since the last time; ``done``: steps."""
        for what, visitor in self.page.controls.take_wishes():
            named = f"{self.name}-{done}" if done else self.name
            try:
                made = self._picture(visitor) if what == "snapshot" else self._file()
            except (UserError, ValueError) as error:
                self.page.note(f"no {what}: {error}")
                continue
            if made is not None:
                self.page.send(visitor, f"{named}.{made[0]}", made[1])

    def _picture(self, visitor: int) -> tuple[str, bytes] | None:
        look = self.page.looks().get(visitor)
        if look is None or not look.usable():
            return None
        drawn = self.stage.draw(look.cameras(SNAPSHOT))
        return "png", media.png_bytes(media.contact_sheet(drawn))

    def _file(self) -> tuple[str, bytes]:
        kind = assets.final_format(self.stage.renderer)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"shape.{assets.ending(kind)}"
            named = assets.MeshOptions(name=self.name)
            assets.export(self.stage.renderer, path, kind, self.stage.views, named)
            return assets.ending(kind), path.read_bytes()


class LiveRun:
    """Shows a run on a page and does what its buttons ask, within the budget."""

    def __init__(
        self,
        shown_on: Page,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.page, self.say, self.clock = shown_on, say, clock
        self.budget = Budget()
        self.scene: Scene | None = None
        self._newest: StepReport | None = None

    def begin(self, scene: Scene) -> None:
        self.scene = scene
        self.scheduler = RenderScheduler(self.page, scene.stage.draw, self.clock)
        lines = scene.run.stats()
        self._losses = [(line.step + 1.0, line.loss) for line in lines]
        self._sizes = [(line.step + 1.0, float(line.size)) for line in lines]
        shape = scene.stage.renderer
        self.page.present(exhibit(scene.config, unit_of(shape)), CURVES, with_buttons=True)
        self.page.numbers(f"step {scene.first_step} of {scene.config.steps}")
        self.page.note("")
        self.errands = Errands(self.page, scene.stage, scene.config.prompt)
        self.pace = Pace(scene.config.steps)
        # The first step may take minutes: whoever is here already sees what it begins with.
        for _ in self.page.looks():
            self.scheduler.draw_next(scene.first_step, RESTING)
        self._refreshed = -math.inf
        self._left = self.clock()

    def step(self, report: StepReport) -> float:
        """Between two steps: draw, save, wait while paused. Seconds that were spent waiting."""
        scene = self.scene
        assert scene is not None
        now = self.clock()
        training_seconds = now - self._left
        self.budget.earn(training_seconds)
        self.pace.lap()
        done = report.step + 1
        self._losses.append((float(done), report.loss))
        self._sizes.append((float(done), float(report.refined.size)))
        self._newest, self._seconds = report, training_seconds
        if now - self._refreshed >= REFRESH and self.budget.affords(0.0):
            self._refresh()
            self._refreshed = self.clock()
            self.budget.spend(self._refreshed - now)
        self.scheduler.draw_next(done, TRAINING, self.budget)
        self.errands.run(done)
        if self.page.controls.take_save():
            self._save(scene, done)
        waited = self._wait(scene, done) if self.page.controls.paused else 0.0
        self._left = self.clock()
        return waited

    def _refresh(self) -> None:
        """Numbers and curves of the newest step, for those who look."""
        scene, report = self.scene, self._newest
        if scene is None or report is None or not self.page.looks():
            return
        refined = report.refined
        done = report.step + 1
        left = self.pace.left(done) if done < scene.config.steps else ""
        self.page.numbers(
            f"step {done} of {scene.config.steps}{f', {left} left' if left else ''}, "
            f"{self._seconds:.2f} s a step, {refined.size:,} {refined.unit}, loss "
            f"{report.loss:.4g}, t {report.t:.0f}"
        )
        self.page.curve("loss", self._losses)
        self.page.curve("size", self._sizes)

    def _save(self, scene: Scene, done: int) -> None:
        try:
            scene.save(done)
        except UserError as error:  # a full disk; the run goes on, and may have room later
            self.page.note(f"not saved: {error}")
        else:
            self.page.note(f"saved after step {done}")

    def _wait(self, scene: Scene, done: int) -> float:
        controls, began = self.page.controls, self.clock()
        self._refresh()
        self.page.note(f"paused after step {done}")
        self.say(f"paused after step {done} by a visitor of {self.page.address}")
        while controls.paused and not scene.stopping():
            self.errands.run(done)
            if controls.take_save():
                self._save(scene, done)
            if not self.scheduler.draw_next(done, RESTING):
                controls.wait(NAP)
        self.page.note("")
        waited = self.clock() - began
        scene.rested(waited)
        self.pace.rest(waited)
        return waited

    def linger(self) -> None:
        """After the run: show the finished shape for as long as somebody looks."""
        self._refresh()
        self.page.finish()
        if self.scene is None:
            return
        steps = self.scene.config.steps
        self.page.numbers(f"finished after {steps} steps")
        self.page.note("this page closes with its last visitor; see also report.html")
        stand(self.page, self.scheduler, lambda: bool(self.page.looks()), self.errands)


def stand(
    shown_on: Page,
    scheduler: RenderScheduler,
    going_on: Callable[[], bool],
    errands: Errands | None = None,
) -> None:
    """Serve visitors of a shape that does not change, until told or until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while going_on():
            if errands is not None:
                errands.run(0)
            if not scheduler.draw_next(0, RESTING):
                time.sleep(NAP)


def view(path: Path, port: int, say: Callable[[str], None], how: Reading | None = None) -> None:
    """Show the newest state of a run, or a splat file, until Ctrl-C.

    Raises UserError for a missing viser, and for anything that is neither.
    """
    require_viser()
    if path.is_dir():
        run = reopen(path)
        on_stage, (lines, _, damage) = run.stage, run.run.read_stats()
        if damage:
            say(lost(damage))
        shown = exhibit(run.config, unit_of(run.renderer))
        what = f"step {run.saved.step} of {run.config.steps}"
    elif path.exists():
        opened = open_splats(path, how)
        for note in opened.notes:
            say(f"note: {note}")
        on_stage, lines = stage(opened.config, opened.shown), []
        eye, middle = opened.position_shown, (0.0, 0.0, 0.0)
        shown = Exhibit(path.name, (), 0, eye, middle, opened.fov_y_rad)
        what = f"{opened.splats:,} splats"
    else:
        raise UserError(f"{path} does not exist; give the folder of a run, or a splat file")
    page_ = Page(port)
    try:
        page_.present(shown, CURVES if lines else (), with_buttons=False)
        page_.numbers(what)
        for name in CURVES if lines else ():
            page_.curve(name, [(line.step + 1.0, float(getattr(line, name))) for line in lines])
        say(f"{path}: look at it in a browser at {page_.address} (Ctrl-C ends)")
        errands = Errands(page_, on_stage, shown.title)
        stand(page_, RenderScheduler(page_, on_stage.draw), lambda: True, errands)
    finally:
        page_.close()


class Audience:
    """A terminal and a page, as one watcher. A page that breaks is given up; the run goes on."""

    def __init__(self, terminal: Terminal, port: int) -> None:
        self.terminal = terminal
        self.page = Page(port)
        self._live: LiveRun | None = LiveRun(self.page, terminal.say)
        terminal.say(f"watch it in a browser at {self.page.address}")

    def say(self, text: str) -> None:
        self.terminal.say(text)
        self._safely(lambda live: live.page.note(text))

    def begin(self, scene: Scene) -> None:
        self.terminal.begin(scene)
        self._safely(lambda live: live.begin(scene))

    def step(self, report: StepReport) -> None:
        self.terminal.step(report)
        self._safely(lambda live: self.terminal.rest(live.step(report)))

    def linger(self) -> None:
        self._safely(lambda live: live.linger())

    def end(self) -> None:
        self.terminal.end()
        self.page.close()

    def _safely(self, act: Callable[[LiveRun], object]) -> None:
        if self._live is None:
            return
        try:
            act(self._live)
        except Exception as error:
            self._live = None
            self.terminal.say(
                f"the page was closed, the run goes on: {type(error).__name__}: {error}"
            )
