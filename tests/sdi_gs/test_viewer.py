# SPDX-License-Identifier: Apache-2.0
"""The page: what a run does for it, which files it shows, and once a real browser."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from representations.cameras import look_at
from representations.export import write_ply, write_splat
from representations.gaussians import SplatCloud
from representations.ops.constants import SH_DC
from sdi_gs.artefacts import checkpoint
from sdi_gs.cli import watch as cli_watch
from sdi_gs.config import load
from sdi_gs.errors import UserError
from sdi_gs.look import stage
from sdi_gs.splat_files import open_splats
from sdi_gs.watch import viewer
from sdi_gs.watch.live import Controls, Look, RenderScheduler
from sdi_gs.watch.progress import Pace

from .. import browser

PROMPT = "a red mug"
Run = Callable[..., Any]
RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.9)


class Pages:
    """Stands in for the page: one visitor who goes around, and a script of clicks."""

    made: Pages
    address = "http://nowhere"

    def __init__(self, port: int) -> None:
        Pages.made = self
        self.port = port
        self.controls = Controls()
        self.asked = 0
        self.pictures: list[Tensor] = []
        self.notes: list[str] = []
        self.sent: dict[str, bytes] = {}
        self.began_with: int | None = None  # pictures that were shown before the first step
        self.curves: dict[str, int] = {}
        self.closed = False

    click: Callable[[Pages], None] = staticmethod(lambda page: None)

    def looks(self) -> Mapping[int, Look]:
        self.asked += 1
        type(self).click(self)
        if self.closed or self.asked > 400:
            return {}
        return {0: visitor(math.radians(10.0 * self.asked))}

    def show(self, visitor: int, picture: Tensor) -> None:
        self.pictures.append(picture)

    def present(self, shown: viewer.Exhibit, curves: Sequence[str], with_buttons: bool) -> None:
        self.exhibit = shown

    def send(self, visitor: int, name: str, data: bytes) -> None:
        assert visitor == 0
        self.sent[name] = data

    def numbers(self, text: str) -> None:
        if self.began_with is None and text.startswith("step 1 "):
            self.began_with = len(self.pictures)
        self.notes.append(text)

    note = numbers

    def curve(self, name: str, points: Sequence[tuple[float, float]]) -> None:
        self.curves[name] = len(points)

    def finish(self) -> None:
        self.asked = 400  # the visitor leaves soon after the run

    def close(self) -> None:
        self.closed = True


def visitor(angle: float) -> Look:
    eye = (2.0 * math.cos(angle), 2.0 * math.sin(angle), 0.3)
    rotation = look_at(torch.tensor([eye]), torch.zeros(1, 3))[0, :3, :3].T
    x, y, z, w = Rotation.from_matrix(rotation.double().numpy()).as_quat()
    return Look((w, x, y, z), eye, math.radians(40.0), 1.5)


@pytest.fixture
def watched(
    sdi_gs: Run, fast: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Run:
    """Run 'generate' with the stand-in for a page, whose visitor does ``click`` at each look."""

    def generate(out: Path, click: Callable[[Pages], None], config: Path = fast) -> Any:
        monkeypatch.setattr(viewer, "Page", Pages)
        monkeypatch.setattr(Pages, "click", staticmethod(click))
        monkeypatch.setattr(viewer, "REFRESH", 0.0)
        return sdi_gs(
            "generate", PROMPT, "--config", config, "--out", out, "--view", "--port", 9000
        )

    return generate


def newest(run: Path) -> dict[str, Any]:
    path = checkpoint.latest(run / "checkpoints")
    assert path is not None
    return vars(checkpoint.load(path))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", ["fast", "field_config"])
def test_being_watched_changes_no_bit(
    sdi_gs: Run, watched: Run, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(kind)
    alone, seen = tmp_path / "alone", tmp_path / "seen"
    assert sdi_gs("generate", PROMPT, "--config", config, "--out", alone).code == 0

    def pause_and_save(page: Pages) -> None:
        if page.asked == 6:
            page.controls.ask_save()
            page.controls.ask_for("snapshot", 0)
            if kind == "fast":  # a field's surface takes seconds
                page.controls.ask_for("export", 0)
            page.controls.pause()
        if page.asked == 12:
            page.controls.resume()

    said = watched(seen, pause_and_save, config)
    assert said.code == 0, said.err
    page = Pages.made
    assert page.port == 9000
    assert page.closed
    assert len(page.pictures) >= 5  # one for each look while it was paused
    assert all(picture.min() < 0.99 for picture in page.pictures)  # not an empty white
    assert any("saved after step" in note for note in page.notes)
    assert page.exhibit.title == PROMPT
    assert page.exhibit.steps == 6
    assert page.exhibit.unit == ("splats" if kind == "fast" else "cells")
    assert page.began_with == 1  # what the run begins with, before its first step
    assert [note for note in page.notes if " left, " in note]
    named = {name.rpartition(".")[2]: data for name, data in page.sent.items()}
    assert named.keys() == ({"png", "ply"} if kind == "fast" else {"png"})
    with Image.open(io.BytesIO(named["png"])) as picture:
        assert picture.size == (1024, 683)  # the window of the visitor is 3 : 2
    assert all(name.startswith("a-red-mug-") for name in page.sent)
    assert page.curves == {"loss": 6, "size": 6}
    assert "paused after step" in said.out
    for part in ("renderer", "guidance", "rng"):
        assert same(newest(alone)[part], newest(seen)[part])
    for path in alone.glob("final.*"):
        assert (seen / path.name).read_bytes() == path.read_bytes()


def test_a_narrow_window_sees_as_much_across() -> None:
    shown = viewer.Exhibit("", (), 0, (3.0, 0.0, 1.0), (0.0, 0.0, 0.0), 0.6)
    away = math.hypot(3.0, 1.0)
    assert shown.stand("Front", 1.5) == pytest.approx((3.0, 0.0, 1.0), abs=1e-5)
    phone = shown.stand("Front", 0.5)
    assert phone == pytest.approx((6.0, 0.0, 2.0), abs=1e-5)
    assert shown.stand("Side", 1.0) == pytest.approx((0.0, 3.0, 1.0), abs=1e-5)
    assert shown.stand("Back", 1.0) == pytest.approx((-3.0, 0.0, 1.0), abs=1e-5)
    assert shown.stand("Top", 1.0) == pytest.approx((0.0, 0.0, away), abs=0.01)
    assert shown.stand("Front", math.nan) == shown.stand("Front", 1.0)


def test_an_errand_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor who has left gets nothing, and a shape that cannot be exported is named."""
    page: Any = Pages(0)
    asked = stage(load("mini"), open_splats(balls(tmp_path / "a.ply")).shown)
    errands = viewer.Errands(page, asked, "a red mug")
    page.looks = dict  # nobody is there
    page.controls.ask_for("snapshot", 0)
    errands.run(3)
    assert page.sent == {}

    def refused(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("sdi_gs.assets.export", refused)
    page.controls.ask_for("export", 0)
    page.controls.ask_for("export", 0)  # twice is once
    errands.run(3)
    assert page.sent == {}
    assert page.notes == ["no export: the disk is full"]


def balls(path: Path) -> Path:
    write_ply(path, blob(((0.0, 0.0, 0.0), RED)))
    return path


def test_ctrl_c_ends_a_pause(sdi_gs: Run, watched: Run, fast: Path, tmp_path: Path) -> None:
    def pause_then_interrupt(page: Pages) -> None:
        page.controls.pause()
        if page.asked == 5:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "r"
    said = watched(out, pause_then_interrupt)
    assert said.code == 130
    assert "the state is saved" in said.err
    assert Pages.made.closed
    assert sdi_gs("resume", out).code == 0


def test_a_page_that_breaks_does_not_take_the_run_with_it(watched: Run, tmp_path: Path) -> None:
    def fall(page: Pages) -> None:
        raise OSError("the page is gone")

    out = tmp_path / "r"
    said = watched(out, fall)
    assert said.code == 0, said.err
    assert said.out.count("the page was closed, the run goes on: OSError: the page is gone") == 1
    assert (out / "final.ply").exists()


def test_a_save_that_fails_is_told_and_the_run_goes_on(
    watched: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = checkpoint.save, []

    def once(folder: Path, saved: checkpoint.Checkpoint) -> Path:
        if saved.step == 1:  # no checkpoint of its own falls on this step
            failed.append(saved.step)
            raise checkpoint.CheckpointError("no room")
        return real(folder, saved)

    monkeypatch.setattr(checkpoint, "save", once)
    said = watched(tmp_path / "r", lambda page: page.controls.ask_save())
    assert said.code == 0, said.err
    assert failed == [1]
    assert "not saved: no room" in Pages.made.notes


def test_a_pause_is_no_time_of_the_run() -> None:
    """By a clock that only waiting moves."""
    now, rested = [100.0], []
    page: Any = Pages(0)
    live = viewer.LiveRun(page, lambda text: None, lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += 10.0
        if now[0] >= 160.0:
            page.controls.resume()

    page.controls.wait = wait
    page.looks = dict
    scene: Any = type("Scene", (), {"stopping": lambda self: False, "rested": rested.append})()
    scene.rested = rested.append
    live.scheduler = RenderScheduler(page, lambda cameras: torch.zeros(1, 3, 8, 8), lambda: now[0])
    live.errands, live.pace = viewer.Errands(page, Any, PROMPT), Pace(9)  # type: ignore[arg-type]
    page.controls.pause()
    assert live._wait(scene, 3) == 60.0
    assert rested == [60.0]


def blob(*parts: tuple[tuple[float, float, float], tuple[float, float, float]]) -> SplatCloud:
    """Opaque balls, each of many small splats around a point, in a colour."""
    rng = np.random.default_rng(1)
    means, colours = [], []
    for centre, colour in parts:
        points = rng.normal(size=(300, 3))
        points *= 0.18 / np.linalg.norm(points, axis=1, keepdims=True)
        means.append(points + np.array(centre))
        colours.append(np.tile(colour, (300, 1)))
    n = 300 * len(parts)
    return SplatCloud(
        means=torch.tensor(np.concatenate(means), dtype=torch.float32),
        log_scale=torch.full((n, 3), math.log(0.03)),
        quat_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        opacity_logit=torch.full((n,), 5.0),
        sh_dc=(torch.tensor(np.concatenate(colours), dtype=torch.float32) - 0.5) / SH_DC,
        sh_rest=torch.zeros(n, 0, 3),
    )


@pytest.mark.parametrize("ending", ["ply", "splat"])
def test_an_opened_file_is_in_the_middle_of_the_picture(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    (write_ply if ending == "ply" else write_splat)(path, blob(((5.0, -3.0, 1.0), RED)))
    opened = open_splats(path)
    assert opened.splats == 300
    eye, target = torch.tensor([opened.position]), torch.tensor([opened.target])
    rotation = look_at(eye, target)
    fov = torch.tensor([opened.fov_y_rad])
    from representations.cameras import pinhole
    from representations.interface import Cameras

    cameras = Cameras(rotation, pinhole(fov, 64, 64), 64, 64)
    picture = stage(opened.config, opened.renderer).draw(cameras)[0]
    covered = (picture[1] < 0.5).float()  # red on white
    assert covered.sum() > 400  # a tenth of the picture
    rows, columns = torch.nonzero(covered, as_tuple=True)
    assert abs(float(rows.float().mean()) - 31.5) < 2.0
    assert abs(float(columns.float().mean()) - 31.5) < 2.0
    assert float(covered[0].sum() + covered[-1].sum()) == 0.0  # nothing is cut off


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    whole = folder / "whole.ply"
    write_ply(whole, blob(((0.0, 0.0, 0.0), RED)))
    data = whole.read_bytes()
    header = data[: data.index(b"end_header\n") + 11]
    not_finite = bytearray(data)
    not_finite[len(header) : len(header) + 4] = np.float32(np.nan).tobytes()
    for name, content, told in (
        ("cut.ply", data[: len(data) // 2], "truncated"),
        ("nan.ply", bytes(not_finite), "NaN"),
        ("text.ply", b"hello", "no PLY file"),
        ("mesh.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n"
         b"property float y\nproperty float z\nend_header\n0 0 0\n", "misses the properties"),
        ("small.splat", b"0" * 33, "multiple of 32"),
        ("nan.splat", np.full(8, np.nan, np.float32).tobytes(), "NaN"),
        ("empty.splat", b"", "multiple of 32"),
        ("a.glb", b"glTF", "mesh viewer"),
    ):  # fmt: skip
        path = folder / name
        path.write_bytes(content)
        yield path, told
    yield folder / "missing.ply", "does not exist"
    yield folder, "no config.yaml"


def test_what_cannot_be_shown_is_told(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "require_viser", lambda: None)

    def opened(port: int) -> None:
        raise AssertionError("a page was opened for nothing")

    monkeypatch.setattr(viewer, "Page", opened)
    count = 0
    for path, told in bad_files(tmp_path):
        said = sdi_gs("view", path)
        assert said.code == 2, path
        assert said.err.startswith("sdi-gs: ")
        assert told in said.err, said.err
        assert str(path) in said.err
        count += 1
    assert count == 10


def test_a_missing_viser_is_told_before_anything_is_done(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    out = tmp_path / "r"
    for words in (
        ("view", tmp_path), ("generate", PROMPT, "--config", fast, "--out", out, "--view"),
    ):  # fmt: skip
        said = sdi_gs(*words)
        assert said.code == 2
        assert "-m pip install 'viser>=1.1'" in said.err
    assert not out.exists()


def test_a_port_belongs_to_a_page(sdi_gs: Run) -> None:
    said = sdi_gs("generate", PROMPT, "--port", 8081)
    assert said.code == 2
    assert "--view" in said.err
    assert sdi_gs("generate", PROMPT, "--view", "--port", 0).code == 2
    with pytest.raises(cli_watch.UserError):
        cli_watch.check_port(False, 80)


def test_a_run_is_seen_as_in_its_turntable() -> None:
    config = load("mini", [f"prompt={PROMPT}"])
    shown = viewer.exhibit(config)
    assert shown.title == PROMPT
    assert math.hypot(*shown.position) == pytest.approx(3.0, abs=1e-5)  # mini's distance
    assert shown.position[2] == pytest.approx(3.0 * math.sin(math.radians(15.0)), abs=1e-5)
    assert math.degrees(shown.fov_y_rad) == pytest.approx(30.0, abs=1e-3)
    assert ("batch", "4", "1") in list(shown.settings)


def lacking() -> str | None:
    if importlib.util.find_spec("viser") is None:
        return "the extra 'viewer' is not installed"
    return None if browser.program() else "no Chromium on the path"


def centre(picture: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray]) -> tuple[float, ...]:
    """Mean (x, y) of the pixels that are ``wanted``, and how many they are."""
    rows, columns = np.nonzero(wanted(picture.astype(int)))
    if len(rows) == 0:
        return math.nan, math.nan, 0
    return float(columns.mean()), float(rows.mean()), len(rows)


def green(p: np.ndarray) -> np.ndarray:
    return (p[..., 1] > p[..., 0] + 60) & (p[..., 1] > p[..., 2] + 60)


def red(p: np.ndarray) -> np.ndarray:
    return (p[..., 0] > p[..., 1] + 60) & (p[..., 0] > p[..., 2] + 60)


def blue(p: np.ndarray) -> np.ndarray:
    return (p[..., 2] > p[..., 0] + 60) & (p[..., 2] > p[..., 1] + 20) & (p[..., 1] < 150)


def magenta(p: np.ndarray) -> np.ndarray:
    return (p[..., 0] > 150) & (p[..., 2] > 150) & (p[..., 1] < 90)


@pytest.mark.slow
@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
def test_in_a_real_browser(tmp_path: Path) -> None:
    """What the browser shows lies where it should: seen from the front (+x), the red ball in the
    middle, the green one (+y) on the right, nothing of the blue one behind. Two magenta points that
    the browser itself draws at the centres of red and green lie in the middle of our balls, before
    and after the camera was moved by hand: two renderers agree on the camera."""
    front, side = (0.6, 0.0, 0.0), (0.0, 0.7, 0.35)
    path = tmp_path / "balls.ply"
    write_ply(path, blob((front, RED), (side, GREEN), ((-0.6, 0.0, 0.0), BLUE)))
    opened = open_splats(path)
    page = viewer.Page(8765)
    page.present(
        viewer.Exhibit("a <i>&</i> b", [("seed", "3", "0")], 10, (4.0, 0.0, 0.0), (0.0, 0.0, 0.0),
                       math.radians(35.0)),
        tuple(viewer.CURVES), with_buttons=True,
    )  # fmt: skip
    page.curve("loss", [(float(i), 1.0 / i) for i in range(1, 11)])
    marks = page.server.scene.add_point_cloud(
        "/marks", np.array([front, side]), np.array([[255, 0, 255]] * 2, dtype=np.uint8),
        point_size=0.08, point_shape="circle", visible=False,
    )  # fmt: skip
    going = threading.Event()
    going.set()
    scheduler = RenderScheduler(page, stage(opened.config, opened.renderer).draw)
    serving = threading.Thread(target=viewer.stand, args=(page, scheduler, going.is_set))
    serving.start()
    profile = tmp_path / "profile"
    profile.mkdir()
    try:
        with browser.tab(profile) as tab:
            tab.open(page.address)
            browser.until(lambda: "Settings" in tab.text())
            browser.until(lambda: centre(tab.canvas(), red)[2] > 500)
            browser.until(lambda: sharp(scheduler))
            seen = tab.canvas()
            text = tab.text()
            assert "a <i>&</i> b" in text
            assert centre(seen, blue)[2] < 50  # it is behind the red one
            x_red, y_red, _ = centre(seen, red)
            x_green, y_green, _ = centre(seen, green)
            assert x_green > x_red + 50
            assert y_green < y_red - 20

            agree(tab, marks)
            tab.drag((200, 350), (330, 300))
            browser.until(lambda: sharp(scheduler))
            moved = tab.canvas()
            assert abs(centre(moved, green)[0] - x_green) > 30
            agree(tab, marks)

            browser.until(lambda: tab.click("Pause"))
            browser.until(lambda: page.controls.paused)
            browser.until(lambda: tab.click("Resume"))
            browser.until(lambda: not page.controls.paused)
            assert tab.click("Save")
            browser.until(page.controls.take_save)
            assert tab.evaluate("document.title") == "a <i>&</i> b - sdi-gs"
            assert "splats or cells" not in text
            assert tab.click("Snapshot")
            browser.until(lambda: page.controls.take_wishes() == [("snapshot", page_visitor(page))])
            assert tab.click("Back")
            browser.until(lambda: centre(tab.canvas(), blue)[2] > 500)  # what was behind
            assert centre(tab.canvas(), red)[2] < 50
            page.curve("loss", [(float(i), 1.0 / i) for i in range(1, 11)])
    finally:
        going.clear()
        serving.join(60)
        page.close()


def page_visitor(page: viewer.Page) -> int:
    (name,) = page.looks()
    return name


def sharp(scheduler: RenderScheduler) -> bool:
    """Whether the newest look of the only visitor has its largest picture."""
    everyone = list(scheduler.visitors.values())
    return len(everyone) == 1 and everyone[0].shown == everyone[0].look and everyone[0].side >= 384


def agree(tab: browser.Tab, marks: Any) -> None:
    """The browser's own points lie where ours are, to about two hundredths of the picture."""
    without = tab.canvas()
    marks.visible = True
    browser.until(lambda: centre(tab.canvas(), magenta)[2] > 40)
    with_marks = tab.canvas()
    marks.visible = False
    browser.until(lambda: centre(tab.canvas(), magenta)[2] == 0)
    for colour in (red, green):
        x, y, count = centre(without, colour)
        assert count > 200
        spots = magenta(with_marks.astype(int))
        near = np.zeros_like(spots)
        y0, x0 = int(y), int(x)
        near[max(0, y0 - 40) : y0 + 40, max(0, x0 - 40) : x0 + 40] = True
        rows, columns = np.nonzero(spots & near)
        assert len(rows) > 10
        assert abs(columns.mean() - x) < 12
        assert abs(rows.mean() - y) < 12
