# SPDX-License-Identifier: Apache-2.0
"""A page in the browser that shows a shape from where the visitor stands (extra 'viewer').

viser serves the page and tells where the visitors' cameras are. The pictures are drawn here, by the
representation itself, and laid behind an empty scene: what is seen is what is trained, whether it
is made of splats or a field.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup
from torch import Tensor

from representations.cameras import fov_from_focal
from representations.checks import pip_install
from representations.reading import Reading

from ..artefacts import media
from ..artefacts.records import lost
from ..config import Config
from ..differences import differing
from ..errors import UserError
from ..look import reopen, stage
from ..pages.parts import html_table, inset
from ..pages.run import thin
from ..run import Scene
from ..splat_files import open_splats
from ..trainer import StepReport
from .gate import guarded
from .live import MOVING_EVERY, SHARE, STILL_EVERY, Budget, Controls, Limits, Look, RenderScheduler

if TYPE_CHECKING:
    import viser

    from .progress import Terminal

HOST = "127.0.0.1"  # of this machine only; a page that can pause a run is not for everybody
NEEDS = "viser>=1.1"
REFRESH = 1.0  # seconds between two updates of the numbers and curves
NAP = 0.03  # seconds between two looks at the visitors while nothing else is to be done
TRAINING = Limits(moving=SHARE * MOVING_EVERY, still=SHARE * STILL_EVERY)
CURVES = {"loss": "loss", "size": "splats or cells"}  # key in stats.jsonl: what is written above
RESTING = Limits(moving=0.1, still=1.5)  # nothing else has to be done


def require_viser() -> None:
    """UserError with the command that installs it, where viser is missing or too old."""
    from importlib import metadata

    try:
        found = metadata.version("viser")
        import viser
    except ImportError as error:
        raise UserError(
            f"the viewer needs the package viser, which is not installed ({error}); install it "
            f"with: {pip_install(NEEDS)}"
        ) from error
    if not hasattr(viser.GuiApi, "main_panel"):
        raise UserError(
            f"the viewer needs viser 1.1 or newer, found {found}; update it: {pip_install(NEEDS)}"
        )


class Exhibit(NamedTuple):
    """What is written beside a shape, and where visitors stand at first."""

    title: str
    settings: Sequence[tuple[str, str, str]]  # name, value, default
    steps: int  # of the whole run; 0: no run
    position: tuple[float, float, float]  # world units
    target: tuple[float, float, float]
    fov_y_rad: float


def exhibit(config: Config) -> Exhibit:
    """The prompt and settings of a run, seen as in its turntable."""
    first = config.views.showcase(1, 64, config.output.turntable.elevation_deg)
    x, y, z = first.positions[0].tolist()
    fov = math.radians(fov_from_focal(float(first.intrinsics[0, 1, 1]), first.height))
    return Exhibit(config.prompt, differing(config), config.steps, (x, y, z), (0.0, 0.0, 0.0), fov)


@dataclass
class Buttons:
    pause: viser.GuiButtonHandle
    resume: viser.GuiButtonHandle
    save: viser.GuiButtonHandle


class Page:
    """The page. Satisfies :class:`sdi_gs.watch.live.Viewers`.

    Raises UserError when viser is missing or no port is free.
    """

    def __init__(self, port: int) -> None:
        require_viser()
        import viser

        try:
            # viser greets with a box of its own; the caller prints the address.
            with contextlib.redirect_stdout(io.StringIO()), guarded():
                self.server = viser.ViserServer(host=HOST, port=port, verbose=False)
        except (OSError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"--port {port}: no page can be opened there ({error}); try another port"
            ) from error
        self.controls = Controls()
        gui = self.server.gui
        self.server.scene.set_up_direction("+z")
        # Sharing would send everything through somebody's server.
        gui.configure_theme(show_logo=False, show_share_button=False)
        gui.main_panel.dock_right()
        gui.set_panel_label("sdi-gs")
        self._title = gui.add_html("")
        self._numbers = gui.add_html(_html(inset("loading")))
        self._note = gui.add_html("")
        self._buttons: Buttons | None = None
        self._plots: dict[str, viser.GuiUplotHandle] = {}

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server.get_port()}"

    def present(self, shown: Exhibit, curves: Sequence[str], with_buttons: bool) -> None:
        """Fill the panel: title, buttons of a run in progress, empty curves by name, settings."""
        gui = self.server.gui
        early = [client.camera for client in self.server.get_clients().values()]
        for camera in (self.server.initial_camera, *early):  # some came while a model was loaded
            camera.position, camera.look_at = shown.position, shown.target
            camera.fov = shown.fov_y_rad
        self._title.content = _html(inset(shown.title, strong=True))
        if with_buttons:
            self._add_buttons()
        if curves:
            none = np.zeros(1)
            with gui.add_folder("Curves"):
                for name in curves:
                    self._plots[name] = gui.add_uplot(
                        (none, none),
                        (
                            {"label": "step"},
                            {"label": CURVES[name], "stroke": "#1f6f8b", "width": 2},
                        ),
                        # A fixed range: viser keeps the scale of the first points otherwise.
                        scales={"x": {"time": False, "range": (0.0, float(shown.steps))}},
                        axes=({}, {"size": 64}),  # pixels: room for a number of five digits
                        title=CURVES[name],
                        aspect=1.6,
                    )
        if shown.settings:
            with gui.add_folder("Settings", expand_by_default=False):
                table = html_table(shown.settings, head=("setting", "here", "default"))
                gui.add_html(_html(table))

    def _add_buttons(self) -> None:
        gui = self.server.gui
        made = Buttons(
            gui.add_button("Pause"), gui.add_button("Resume", visible=False), gui.add_button("Save")
        )
        made.pause.on_click(lambda _: self._set_paused(True))
        made.resume.on_click(lambda _: self._set_paused(False))
        made.save.on_click(lambda _: self.controls.ask_save())
        self._buttons = made

    def _set_paused(self, paused: bool) -> None:
        if self._buttons is None:
            return
        (self.controls.pause if paused else self.controls.resume)()
        self._buttons.pause.visible, self._buttons.resume.visible = not paused, paused

    def finish(self) -> None:
        """Take away what a run that is over does not answer to."""
        self.controls.resume()
        if self._buttons is not None:
            for button in (self._buttons.pause, self._buttons.resume, self._buttons.save):
                button.visible = False

    def looks(self) -> Mapping[int, Look]:
        found = {}
        for name, client in self.server.get_clients().items():
            camera = client.camera
            height = camera.image_height
            found[name] = Look(
                wxyz=tuple(camera.wxyz.tolist()),
                position=tuple(camera.position.tolist()),
                fov_y_rad=float(camera.fov),
                aspect=camera.image_width / height if height > 0 else math.nan,
            )
        return found

    def show(self, visitor: int, picture: Tensor) -> None:
        client = self.server.get_clients().get(visitor)
        if client is not None:  # else gone since it was asked
            client.scene.set_background_image(
                media.to_uint8(picture[None])[0], format="jpeg", jpeg_quality=85
            )

    def numbers(self, text: str) -> None:
        self._numbers.content = _html(inset(text))

    def note(self, text: str) -> None:
        self._note.content = _html(inset(text)) if text else ""

    def curve(self, name: str, points: Sequence[tuple[float, float]]) -> None:
        """Draw (step, value) as one of the curves that were presented."""
        usable = [(x, y) for x, y in thin(points) if math.isfinite(y)]
        if len(usable) > 1:
            x, y = np.array(usable, dtype=np.float64).T
            self._plots[name].data = (np.ascontiguousarray(x), np.ascontiguousarray(y))

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()


def _html(made: Markup) -> str:
    """HTML in the only type that viser sends."""
    return str(made)


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
        self.page.present(exhibit(scene.config), tuple(CURVES), with_buttons=True)
        self.page.numbers(f"step {scene.first_step} of {scene.config.steps}")
        self.page.note("")
        self._refreshed = -math.inf
        self._left = self.clock()

    def step(self, report: StepReport) -> float:
        """Between two steps: draw, save, wait while paused. Seconds that were spent waiting."""
        scene = self.scene
        assert scene is not None
        now = self.clock()
        training_seconds = now - self._left
        self.budget.earn(training_seconds)
        done = report.step + 1
        self._losses.append((float(done), report.loss))
        self._sizes.append((float(done), float(report.refined.size)))
        self._newest, self._seconds = report, training_seconds
        if now - self._refreshed >= REFRESH and self.budget.affords(0.0):
            self._refresh()
            self._refreshed = self.clock()
            self.budget.spend(self._refreshed - now)
        self.scheduler.draw_next(done, TRAINING, self.budget)
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
        self.page.numbers(
            f"step {report.step + 1} of {scene.config.steps}, t {report.t:.0f}, loss "
            f"{report.loss:.4g}, {refined.unit} {refined.size:,}, {self._seconds:.2f} s a step"
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
            if controls.take_save():
                self._save(scene, done)
            if not self.scheduler.draw_next(done, RESTING):
                controls.wait(NAP)
        self.page.note("")
        waited = self.clock() - began
        scene.rested(waited)
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
        stand(self.page, self.scheduler, lambda: bool(self.page.looks()))


def stand(shown_on: Page, scheduler: RenderScheduler, going_on: Callable[[], bool]) -> None:
    """Serve visitors of a shape that does not change, until told or until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while going_on():
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
        shown = exhibit(run.config)
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
        page_.present(shown, tuple(CURVES) if lines else (), with_buttons=False)
        page_.numbers(what)
        for name in CURVES if lines else ():
            page_.curve(name, [(line.step + 1.0, float(getattr(line, name))) for line in lines])
        say(f"{path}: look at it in a browser at {page_.address} (Ctrl-C ends)")
        stand(page_, RenderScheduler(page_, on_stage.draw), lambda: True)
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

    def hush(self) -> None:
        self.terminal.hush()

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
