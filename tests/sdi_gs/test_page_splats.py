# SPDX-License-Identifier: Apache-2.0
"""The shape on report.html: what its program is given, that it draws what we draw, and that the
page keeps to its size."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from representations.cameras import orbit
from representations.cloud import SplatCloud
from representations.cutting import importance
from representations.export import write_ply
from representations.gaussians import GaussianConfig, GaussianRenderer
from representations.ops.constants import SH_DC
from representations.reading import read_ply
from sdi_gs.artefacts.run_folder import STAGES
from sdi_gs.config import dump, load
from sdi_gs.pages import run as run_report
from sdi_gs.pages.shape import PAGE_BYTES
from sdi_gs.pages.splats import BYTES, View, fitting, packed

from .. import browser
from ..markup import Page

VIEW = View(3.0, 15.0, 30.0, (1.0, 1.0, 1.0))


def heap(count: int, rest: int = 0) -> SplatCloud:
    """Needles and leaves of every colour, opacity and orientation around the origin."""
    rng = torch.Generator().manual_seed(count)
    return SplatCloud(
        means=0.25 * torch.randn(count, 3, generator=rng) * torch.tensor([1.0, 0.7, 0.4]),
        log_scale=torch.log(0.0005 + 0.15 * torch.rand(count, 3, generator=rng) ** 4),
        quat_wxyz=5.0 * torch.randn(count, 4, generator=rng),
        opacity_logit=2.0 * torch.randn(count, generator=rng),
        sh_dc=(torch.rand(count, 3, generator=rng) - 0.5) / SH_DC,
        sh_rest=0.1 * torch.randn(count, rest, 3, generator=rng),
    )


def unpacked(values: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the description of the format says, read by numpy and scipy."""
    count, data = values["count"], base64.b64decode(values["data"])
    assert len(data) == BYTES * count
    cuts = np.cumsum([6, 3, 4, 3]) * count
    places, scales, turns, colours, opacity = (
        data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)
    )
    words = np.frombuffer(turns, "<u4").astype(np.int64)
    largest = words >> 30
    others = np.stack([words >> 20 & 1023, words >> 10 & 1023, words & 1023], -1) / 1023
    others = (2.0 * others - 1.0) * math.sqrt(0.5)
    quat = np.zeros((count, 4))
    for row, part in enumerate(largest):
        quat[row, [k for k in range(4) if k != part]] = others[row]
        quat[row, part] = math.sqrt(1.0 - np.square(others[row]).sum())
    share = np.frombuffer(places, "<u2").reshape(-1, 3) / 65535
    wide = values["thick"] - values["thin"]
    return {
        "means": values["low"] + share * np.array(values["span"]),
        "log_scale": values["thin"] + np.frombuffer(scales, np.uint8).reshape(-1, 3) / 255 * wide,
        "axes": Rotation.from_quat(np.roll(quat, -1, axis=1)).as_matrix(),
        "colour": np.frombuffer(colours, np.uint8).reshape(-1, 3) / 255,
        "opacity": np.frombuffer(opacity, np.uint8) / 255,
    }


def test_what_is_packed_is_what_was_there() -> None:
    """To half a step of each quantity, the most important splats first."""
    cloud = heap(500, rest=3)
    made = packed(cloud, 200, VIEW)
    assert (made.kept, made.of) == (200, 500)
    found = unpacked(json.loads(json.dumps(made.values)))
    order = importance(cloud).argsort(descending=True)[:200]
    wanted = cloud.map(lambda tensor: tensor[order])
    span = float((wanted.means.amax(0) - wanted.means.amin(0)).max())
    assert np.abs(found["means"] - wanted.means.numpy()).max() <= 0.51 * span / 65535
    wide = float(wanted.log_scale.max() - wanted.log_scale.min())
    assert np.abs(found["log_scale"] - wanted.log_scale.numpy()).max() <= 0.51 * wide / 255
    axes = Rotation.from_quat(np.roll(wanted.quat_wxyz.numpy(), -1, axis=1)).as_matrix()
    # Half a step of 1.41 / 1023 in each of three parts, which turns by at most four times that.
    assert np.abs(found["axes"] - axes).max() < 0.006
    colour = 0.5 + SH_DC * wanted.sh_dc.numpy()
    assert np.abs(found["colour"] - colour).max() <= 0.51 / 255
    assert np.abs(found["opacity"] - wanted.opacity_logit.sigmoid().numpy()).max() <= 0.51 / 255


def test_needles_thinner_than_any_pixel_do_not_take_the_steps_of_the_others() -> None:
    cloud = heap(50)
    cloud.log_scale[0, 0] = -40.0
    found = unpacked(packed(cloud, 50, VIEW).values)
    order = importance(cloud).argsort(descending=True)
    wanted = cloud.log_scale[order].numpy()
    fine = wanted > -39.0
    assert np.abs(found["log_scale"] - wanted)[fine].max() < 0.02
    assert found["log_scale"][~fine].max() < math.log(1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_a_splat_alone_has_a_place(count: int) -> None:
    """A box without an inside divides by nothing."""
    found = unpacked(packed(heap(count), 9, VIEW).values)
    assert np.abs(found["means"] - heap(count).means[importance(heap(count)).argsort(
        descending=True)].numpy()).max() < 1e-4  # fmt: skip


def run_of(path: Path, cloud: SplatCloud | None, steps: int = 20) -> Path:
    """The folder of a finished run whose splats are ``cloud``."""
    path.mkdir()
    (path / "config.yaml").write_text(dump(load("mini", ["prompt=a red mug"])))
    line = {"step": 0, "loss": 0.1, "losses": {}, "t": 5.0, "size": 3, "unit": "splats",
            "added": 0, "removed": 0, "events": [], "evaluations": 8,
            "seconds": dict.fromkeys(STAGES, 0.1)}  # fmt: skip
    lines = [{**line, "step": k, "loss": 1.0 / (k + 1)} for k in range(steps)]
    (path / "stats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    summary = {"asset": {}, "hardware": {}, "versions": {}, "seconds": 2.0}
    (path / "summary.json").write_text(json.dumps(summary))
    Image.new("RGB", (8, 8)).save(path / "turntable.gif")
    if cloud is not None:
        write_ply(path / "final.ply", cloud)
    return path


def test_a_page_keeps_to_its_size_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 2048, 3)).astype(np.uint8)
    path = run_of(tmp_path / "r", heap(90_000, rest=3), steps=1000)
    (path / "previews").mkdir()
    for name in ("preview.png", "previews/step_0000500.png", "previews/step_0001000.png"):
        Image.fromarray(noise).save(path / name)
    run_report.write([path])
    size = (path / "report.html").stat().st_size
    assert 0.98 * PAGE_BYTES < size <= PAGE_BYTES
    text = (path / "report.html").read_text()
    kept = json.loads(text.split('id="splats">')[1].split("</script>")[0])["count"]
    whole = len(read_ply(path / "final.ply"))  # without those that nobody could see
    assert f"The {kept:,} most important of {whole:,} splats" in text
    assert "Colours are those from all sides" in text
    assert fitting(size) > kept > 10_000


def test_a_large_film_stays_beside_the_page(tmp_path: Path) -> None:
    path = run_of(tmp_path / "r", None)
    (path / "turntable.gif").unlink()
    (path / "turntable.mp4").write_bytes(bytes(3_000_000))
    elsewhere = tmp_path / "pages" / "a.html"
    run_report.write([path], elsewhere)
    shown = Page(elsewhere.read_text())
    assert elsewhere.stat().st_size < 100_000
    assert "../r/turntable.mp4" in shown.urls
    assert "3,000,000 bytes, which lies beside this page" in shown.text
    assert "canvas" not in shown.tags  # there is nothing to turn


def test_splats_that_cannot_be_read_are_named_and_the_page_is_written(tmp_path: Path) -> None:
    path = run_of(tmp_path / "r", heap(9))
    data = (path / "final.ply").read_bytes()
    (path / "final.ply").write_bytes(data[:-20])
    run_report.write([path])
    shown = Page((path / "report.html").read_text())
    assert "There is nothing to turn here" in shown.text
    assert "final.ply" in shown.text
    assert "canvas" not in shown.tags


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[browser.Tab, Path]]:
    """A real browser, and the folder of a run with a page."""
    if browser.program() is None:
        pytest.skip("no Chromium on the path")
    folder = tmp_path_factory.mktemp("turned")
    path = run_of(folder / "r", heap(600))
    run_report.write([path])
    with browser.tab(folder / "profile") as tab:
        tab.listen()
        yield tab, path


def seen(tab: browser.Tab, azimuth: float, elevation: float, distance: float) -> np.ndarray:
    """[H, W, 3] in [0, 1]: what the program draws from there."""
    drawn = tab.evaluate(
        "(() => { const c = document.querySelector('canvas');"
        f"c.shown.set({{azimuth: {azimuth}, elevation: {elevation}, distance: {distance}}});"
        "c.shown.whole(); c.shown.draw(); return c.toDataURL(); })()"
    )
    picture = Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2])))
    return np.asarray(picture.convert("RGB"), np.float32) / 255.0


SIDES = ((0.0, 15.0, 3.0), (90.0, 15.0, 3.0), (200.0, -35.0, 2.5), (0.0, 90.0, 3.0),
         (300.0, 5.0, 0.9))  # fmt: skip
LIMIT_DB = 46.0
"""Quantities in few bits and sums in 8 leave 50.7 dB and more. Without the blur of thin splats
there are 42 dB, without the margin around the picture 39.
"""


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10.0 * np.log10(np.square(one - other).mean()))


@pytest.mark.slow
def test_the_page_draws_what_we_draw(opened: tuple[browser.Tab, Path]) -> None:
    """From five sides, one of them so near that splats leave the picture."""
    tab, path = opened
    tab.wear(1280, 800, scheme="light", motion="reduce")
    tab.open((path / "report.html").as_uri())
    shape = GaussianRenderer(GaussianConfig(max_count=4000), cloud=heap(600))
    ours: list[np.ndarray] = []
    for side in SIDES:
        theirs = seen(tab, *side)
        assert theirs.shape[0] == theirs.shape[1] > 300
        azimuth, elevation, distance, fov = (torch.tensor([value]) for value in (*side, 30.0))
        camera = orbit(azimuth, elevation, distance, fov, theirs.shape[:2])
        with torch.no_grad():
            render, _ = shape.render(camera, torch.ones(1, 3))
        ours.append(render.rgb[0].permute(1, 2, 0).numpy())
        db = psnr(ours[-1], theirs)
        assert db > LIMIT_DB, (side, db)
    # A test of the test: neither an empty page nor another side passes for it.
    assert max(psnr(ours[0], ours[0] * 0 + 1), psnr(ours[0], ours[1])) < LIMIT_DB - 15.0
    assert tab.errors() == []
    assert tab.requests() == [(path / "report.html").as_uri()]


@pytest.mark.slow
def test_the_shape_is_turned_by_hand_and_by_keys(opened: tuple[browser.Tab, Path]) -> None:
    tab, path = opened
    look: Callable[[], dict[str, float]] = lambda: tab.evaluate(  # noqa: E731
        "({...document.querySelector('canvas').shown.look})"
    )
    tab.wear(1280, 800, scheme="dark", motion="reduce")
    tab.open((path / "report.html").as_uri())
    still = look()
    assert still == {"azimuth": 0, "elevation": 15, "distance": 3}
    assert tab.evaluate("document.getElementById('film').hidden")
    tab.evaluate("document.querySelector('canvas').focus()")
    for key in ("ArrowRight", "ArrowUp", "+"):
        tab.press(key)
    assert look() == {"azimuth": 15, "elevation": 25, "distance": pytest.approx(3 / 1.15)}
    assert "25° above" in tab.text()
    tab.press("Home")
    assert look() == still
    tab.drag((200, 300), (310, 300))  # a quarter of the width, to the right
    assert look()["azimuth"] == pytest.approx(360 - 45, abs=3)
    tab.click("Back")
    assert look() == {"azimuth": 180, "elevation": 15, "distance": 3}
    tab.click("Top")
    assert look()["elevation"] == 90
    assert tab.errors() == []


@pytest.mark.slow
def test_it_turns_once_by_itself_unless_motion_is_not_wanted(
    opened: tuple[browser.Tab, Path],
) -> None:
    tab, path = opened
    azimuth = "document.querySelector('canvas').shown.look.azimuth"
    pressed = "document.querySelector('[data-turn]').getAttribute('aria-pressed')"
    tab.wear(600, 500, scheme="light", motion="no-preference")
    tab.open((path / "report.html").as_uri())
    if not tab.evaluate("document.querySelector('canvas').shown.fast"):
        pytest.skip("the machine is too busy to turn anything")
    browser.until(lambda: tab.evaluate(azimuth) > 1.0, 20.0)
    assert tab.evaluate(pressed) == "true"
    tab.click("Turn")
    assert tab.evaluate(pressed) == "false"
    rests = tab.evaluate(azimuth)
    tab.wear(600, 500, scheme="light", motion="reduce")
    assert tab.evaluate(azimuth) == rests
    tab.open((path / "report.html").as_uri())
    assert tab.evaluate(azimuth) == 0
    assert tab.evaluate(pressed) == "false"


@pytest.mark.slow
def test_without_webgl_the_film_stays(opened: tuple[browser.Tab, Path]) -> None:
    tab, path = opened
    none = "HTMLCanvasElement.prototype.getContext = () => null"
    made = tab.ask("Page.addScriptToEvaluateOnNewDocument", source=none)
    tab.open((path / "report.html").as_uri())
    tab.ask("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])
    assert tab.evaluate("document.getElementById('shape').hidden") is True
    assert tab.evaluate("document.getElementById('film').hidden") is False
    assert tab.evaluate("document.querySelector('#film img').naturalWidth") == 8
    assert tab.errors() == []
