# SPDX-License-Identifier: Apache-2.0
"""The page in the browser: its panel, its buttons, and where its visitors stand.

viser serves the page and tells where the visitors' cameras are. The pictures are drawn here, by the
representation itself, and laid behind an empty scene: what is seen is what is trained, whether it
is made of splats or a field.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from representations.cameras import fov_from_focal, spherical_to_position
from representations.checks import pip_install

from ..artefacts import media
from ..config import Config
from ..differences import differing
from ..errors import UserError
from ..pages.parts import html_table, inset
from ..pages.run import thin
from .gate import guarded
from .live import Controls, Look

if TYPE_CHECKING:
    import viser

HOST = "127.0.0.1"  # of this machine only; a page that can pause a run is not for everybody
NEEDS = "viser>=1.1"
CURVES = ("loss", "size")  # keys in stats.jsonl
NARROW = 576  # pixels; in a window that is no wider, viser's panel is a sheet over its lower part
CURVES_LATE, SETTINGS_LAST = 1e6, 2e6  # places in the panel, where others are counted from 0
SIDES = {"Front": (0.0, None), "Side": (90.0, None), "Back": (180.0, None), "Top": (0.0, 89.9)}
"""Azimuth and elevation in degrees; None: the elevation of the turntable."""


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
    unit: str = "size"  # what the curve of the size counts

    def stand(self, side: str, aspect: float) -> tuple[float, float, float]:
        """Where a visitor stands who looks from that one of SIDES through a window of that aspect:
        from a narrow one farther away, so that as much is seen across as in a square."""
        eye, target = (torch.tensor(point).double() for point in (self.position, self.target))
        azimuth_deg, elevation_deg = SIDES[side]
        away = float((eye - target).norm())
        if elevation_deg is None:
            elevation_deg = math.degrees(math.asin(float((eye - target)[2]) / max(away, 1e-9)))
        away /= min(1.0, aspect) if 0.05 < aspect < 20.0 else 1.0
        at = (torch.tensor([value]) for value in (azimuth_deg, elevation_deg, away))
        x, y, z = (target + spherical_to_position(*at)[0]).tolist()
        return x, y, z


def exhibit(config: Config, unit: str = "size") -> Exhibit:
    """The prompt and settings of a run, seen as in its turntable."""
    first = config.views.showcase(1, 64, config.output.turntable.elevation_deg)
    x, y, z = first.positions[0].tolist()
    fov = math.radians(fov_from_focal(float(first.intrinsics[0, 1, 1]), first.height))
    return Exhibit(
        config.prompt, differing(config), config.steps, (x, y, z), (0.0, 0.0, 0.0), fov, unit
    )  # fmt: skip


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

        self._shown: Exhibit | None = None
        try:
            # viser greets with a box of its own; the caller prints the address.
            with contextlib.redirect_stdout(io.StringIO()), guarded(self.heading):
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
        self._lock = threading.Lock()  # visitors come in threads of viser
        self._curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._plots: dict[int, dict[str, viser.GuiUplotHandle]] = {}  # by visitor
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._farewell)

    def heading(self) -> str:
        """The title of the page in its tab."""
        return f"{self._shown.title} - sdi-gs" if self._shown is not None else "sdi-gs"

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server.get_port()}"

    def present(self, shown: Exhibit, curves: Sequence[str], with_buttons: bool) -> None:
        """Fill the panel: title, buttons of a run in progress, empty curves by name, settings."""
        gui = self.server.gui
        self._shown, first = shown, self.server.initial_camera
        first.position, first.look_at, first.fov = shown.position, shown.target, shown.fov_y_rad
        self._title.content = _html(inset(shown.title, strong=True))
        if with_buttons:
            self._add_buttons()
        self._add_views()
        self._curves = {name: (np.zeros(1), np.zeros(1)) for name in curves}
        for client in self.server.get_clients().values():  # some came while a model was loaded
            self._welcome(client)
        if shown.settings:
            with gui.add_folder("Settings", order=SETTINGS_LAST, expand_by_default=False):
                table = html_table(shown.settings, head=("setting", "here", "default"))
                gui.add_html(_html(table))

    def _welcome(self, client: viser.ClientHandle) -> None:
        """A visitor stands where all of the shape is seen, and has curves, which are folded where
        they would cover a small window."""
        with self._lock:
            if self._shown is None or client.client_id in self._plots:
                return
            self._place(client, "Front")
            self._plots[client.client_id] = plots = {}
            if not self._curves:
                return
            wide = client.camera.image_width > NARROW
            with client.gui.add_folder("Curves", order=CURVES_LATE, expand_by_default=wide):
                for name, data in self._curves.items():
                    called = self._shown.unit if name == "size" else name
                    plots[name] = client.gui.add_uplot(
                        data,
                        (
                            {"label": "step"},
                            {"label": called, "stroke": "#1f6f8b", "width": 2},
                        ),
                        # A fixed range: viser keeps the scale of the first points otherwise.
                        scales={"x": {"time": False, "range": (0.0, float(self._shown.steps))}},
                        axes=({}, {"size": 64}),  # pixels: room for a number of five digits
                        title=called,
                        aspect=1.6,
                    )

    def _farewell(self, client: viser.ClientHandle) -> None:
        with self._lock:
            self._plots.pop(client.client_id, None)

    def _place(self, client: viser.ClientHandle, side: str) -> None:
        shown, camera = self._shown, client.camera
        if shown is None:
            return
        aspect = camera.image_width / max(1, camera.image_height)
        with client.atomic():
            # In this order: viser moves what is looked at along with the position.
            camera.position = shown.stand(side, aspect)
            camera.look_at, camera.fov = shown.target, shown.fov_y_rad

    def _add_views(self) -> None:
        """Sides to look from, and what a visitor can take home."""
        gui = self.server.gui
        sides = gui.add_button_group("View", tuple(SIDES))

        def move(event: Any) -> None:
            if event.client is not None:
                self._place(event.client, event.target.value)

        sides.on_click(move)

        def ask(event: Any) -> None:
            if event.client is not None:
                what = event.target.value.lower()
                self.note(f"the {what} is being made")
                self.controls.ask_for(what, event.client.client_id)

        hint = "the picture that you see as a PNG; the shape as it is now: .ply, or .glb of a field"
        gui.add_button_group("Take", ("Snapshot", "Export"), hint=hint).on_click(ask)

    def send(self, visitor: int, name: str, data: bytes) -> None:
        """Give a file to a visitor, who may have left."""
        client = self.server.get_clients().get(visitor)
        if client is not None:
            client.send_file_download(name, data, save_immediately=True)
            self.note(f"{name}, {len(data):,} bytes")

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
            with self._lock:
                self._curves[name] = (np.ascontiguousarray(x), np.ascontiguousarray(y))
                for plots in self._plots.values():
                    plots[name].data = self._curves[name]

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()


def _html(made: Markup) -> str:
    """HTML in the only type that viser sends."""
    return str(made)
