# SPDX-License-Identifier: Apache-2.0
"""The html export is a page that shows its splats from a file, with no network at all.

What it shows is PlayCanvas's SuperSplat viewer, so this is also the proof that its readers see
what we drew, upright and from the front.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.cameras import look_at, pinhole
from representations.export.playcanvas import PAGE_BACKGROUND, page_settings
from representations.gaussians import GaussianConfig, GaussianRenderer
from representations.interface import Cameras

from . import scenes
from .scenes import Scene

PIXELS = 320


def first_view(scene: Scene) -> Cameras:
    """Our camera where the page's begins. In the page y is up and the front is towards -x."""
    begin = page_settings(scene.cloud)["cameras"][0]["initial"]

    def in_world(point: list[float]) -> torch.Tensor:
        x, y, z = point
        return torch.tensor([[-x, z, y]])

    view = look_at(in_world(begin["position"]), in_world(begin["target"]))
    fov = torch.deg2rad(torch.tensor([begin["fov"]]))
    return Cameras(view, pinhole(fov, PIXELS, PIXELS), PIXELS, PIXELS)


@pytest.mark.slow
def test_the_page_shows_the_mug_and_asks_for_nothing(
    shots: Callable[..., Any],
    export: Callable[..., Path],
    all_scenes: dict[str, Scene],
    pictures: Path,
) -> None:
    job = {"viewer": "html", "file": str(export("mug", "html")), "width": PIXELS, "height": PIXELS}
    still = {"out": str(pictures / "page-still.png"), "query": "?noui&noanim"}
    as_opened = {"out": str(pictures / "page.png"), "waitMs": 5000}
    for answer in shots([{**job, **still}, {**job, **as_opened}]):
        assert answer.get("ok"), answer
        assert answer["refused"] == []
        assert answer["said"] == []

    scene = all_scenes["mug"]
    shape = GaussianRenderer(GaussianConfig(), cloud=scene.cloud)
    with torch.no_grad():
        render, _ = shape.render(first_view(scene), torch.tensor([PAGE_BACKGROUND]))
    ours = render.rgb[0].permute(1, 2, 0).numpy()
    scenes.save(pictures / "page-ours.png", ours)
    db = scenes.psnr(ours, scenes.load(pictures / "page-still.png"))
    print(f"\nhtml-mug: {db:.1f} dB")
    assert db >= 30.0

    # As it opens: its controls hide some of it, and the camera is about to move.
    shown = scenes.load(pictures / "page.png")[: PIXELS // 2]
    red = (shown[..., 0] > 0.3) & (shown[..., 0] > 2.0 * shown[..., 1:].max(-1))
    assert red.mean() > 0.1


@pytest.mark.slow
def test_the_judge_sees_requests_and_errors(shots: Callable[..., Any], tmp_path: Path) -> None:
    """A test of the test: a page that is not self-contained is found out."""
    page = tmp_path / "leaks.html"
    page.write_text('<body>hello<script src="https://example.org/a.js"></script></body>')
    job = {"viewer": "html", "file": str(page), "width": 64, "height": 64, "waitMs": 100}
    (answer,) = shots([{**job, "out": str(tmp_path / "a.png")}])
    assert answer["refused"] == ["https://example.org/a.js"]
    assert answer["said"] != []
