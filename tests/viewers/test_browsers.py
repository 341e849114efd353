# SPDX-License-Identifier: Apache-2.0
"""Spark and GaussianSplats3D draw our files from our camera: the same picture as our rasteriser's.

Two renderers that share no code with ours and none with each other. They take files as they are,
without a turn of their own, so the camera goes into the file's frame.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import scenes
from .scenes import FOV_Y_DEG, SIZE, Scene

LIMIT_DB = 30.0


class Case(NamedTuple):
    viewer: str
    scene: str
    kind: str
    options: tuple[str, ...] = ()
    sh_degree: int | None = None  # that the file or the viewer can hold; None: all

    @property
    def name(self) -> str:
        return "-".join([self.viewer, self.scene, self.kind, *self.options])


CASES = [
    *(
        Case("spark", scene, kind, sh_degree=0 if kind == "splat" else None)
        for scene in ("thin", "mug")
        for kind in ("ply", "ply-compressed", "splat", "spz", "sog")
    ),
    Case("spark", "thin", "ply", ("--up", "y")),
    Case("spark", "thin", "ply", ("--up", "z")),
    Case("spark", "thin", "spz", ("--up", "y")),
    Case("spark", "thin", "ply", ("--sh-degree", "1"), 1),
    Case("spark", "mug", "ply", ("--sh-degree", "3")),  # padded with zeros
    # GaussianSplats3D evaluates two degrees of a .ply with three and none of a compressed one; it
    # reads neither sog nor version 3 of spz.
    Case("gs3d", "thin", "ply", (), 2),
    Case("gs3d", "thin", "ply-compressed", (), 0),
    Case("gs3d", "mug", "ply-compressed"),
    Case("gs3d", "thin", "splat", (), 0),
    Case("gs3d", "mug", "ply"),
    Case("gs3d", "mug", "splat"),
]


@pytest.fixture(scope="module")
def drawn(
    shots: Callable[..., Any],  # first: it skips where there is no browser
    export: Callable[..., Path],
    all_scenes: dict[str, Scene],
    pictures: Path,
    request: pytest.FixtureRequest,
) -> dict[str, Any]:
    """The answer for each case that is asked for; all of them in one browser."""
    wanted = {item.name for item in request.session.items}
    cases = [case for case in CASES if any(f"[{case.name}]" in name for name in wanted)]
    jobs = [
        {
            "viewer": case.viewer,
            "file": str(export(case.scene, case.kind, *case.options)),
            "out": str(pictures / f"{case.name}.png"),
            "width": SIZE,
            "height": SIZE,
            "fovY": FOV_Y_DEG,
            "camToFile": all_scenes[case.scene].camera_in_file(
                case.options[1] if "--up" in case.options else "viewer"
            ),
        }
        for case in cases
    ]
    return {case.name: answer for case, answer in zip(cases, shots(jobs), strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_viewer_draws_what_we_draw(
    case: Case, drawn: dict[str, Any], all_scenes: dict[str, Scene], pictures: Path
) -> None:
    answer = drawn[case.name]
    assert answer.get("ok"), answer
    ours = all_scenes[case.scene].picture(case.sh_degree)
    theirs = scenes.load(pictures / f"{case.name}.png")
    db = scenes.psnr(ours, theirs)
    print(f"\n{case.name}: {db:.1f} dB")
    assert db >= LIMIT_DB


def test_a_black_picture_would_fail(node: str, all_scenes: dict[str, Scene]) -> None:
    """A test of the test: neither an empty canvas nor the other degrees pass for the picture."""
    for scene in all_scenes.values():
        ours = scene.picture()
        assert scenes.psnr(ours, 0.0 * ours) < LIMIT_DB - 10.0
    thin = all_scenes["thin"]
    for degree in (0, 1, 2):
        assert scenes.psnr(thin.picture(), thin.picture(degree)) < LIMIT_DB
