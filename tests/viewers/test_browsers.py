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
    progressive: bool = False  # GaussianSplats3D draws what has arrived, before all has

    @property
    def name(self) -> str:
        how = ["progressive"] if self.progressive else []
        return "-".join([self.viewer, self.scene, self.kind, *self.options, *how])


CASES = [
    *(
        Case("spark", scene, kind, sh_degree=0 if kind == "splat" else None)
        for scene in ("thin", "mug")
        for kind in ("ply", "ply-compressed", "splat", "spz", "sog", "ksplat")
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
    Case("gs3d", "thin", "ksplat", (), 2),
    Case("gs3d", "mug", "ksplat"),
    Case("gs3d", "thin", "ksplat", ("--sh-degree", "2"), 2, progressive=True),
]


def job(scene: Scene, case: Case, file: Path, pictures: Path) -> dict[str, Any]:
    """What shots.mjs is asked for."""
    up = case.options[1] if "--up" in case.options else "viewer"
    return {
        "viewer": case.viewer,
        "file": str(file),
        "out": str(pictures / f"{case.name}.png"),
        "width": SIZE,
        "height": SIZE,
        "fovY": FOV_Y_DEG,
        "camToFile": scene.camera_in_file(up),
        "progressive": case.progressive,
    }


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
        job(all_scenes[case.scene], case, export(case.scene, case.kind, *case.options), pictures)
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


@pytest.mark.slow
def test_what_a_viewer_cannot_read_ends_soon_and_is_told(
    shots: Callable[..., Any],
    export: Callable[..., Path],
    all_scenes: dict[str, Scene],
    tmp_path: Path,
) -> None:
    """Viewers say why, or wait for ever; after either the next file is drawn."""
    whole = export("thin", "ksplat")
    head = bytearray(whole.read_bytes())
    head[12:16] = bytes(4)  # the most splats there will be: gaussforge 0.6.0 writes so
    (tmp_path / "no-room.ksplat").write_bytes(head)
    asked = [
        # Its loader has no size of a splat of degree 3.
        (Case("gs3d", "thin", "ksplat", progressive=True), whole),
        (Case("gs3d", "thin", "ksplat"), tmp_path / "no-room.ksplat"),
        (Case("spark", "thin", "spz"), export("thin", "spz", "--spz-version", "4")),
        (Case("gs3d", "thin", "ksplat"), whole),
    ]
    jobs = [job(all_scenes["thin"], case, file, tmp_path) for case, file in asked]
    jobs[0]["limitMs"] = jobs[1]["limitMs"] = 10_000
    degree, room, spz, good = shots(jobs)
    assert degree["error"].endswith(f"gs3d, {whole.name}: not done within 10 s")
    assert "BytesPerSplat" in degree["said"][0]
    assert room["error"].endswith("gs3d, no-room.ksplat: not done within 10 s")
    assert "Invalid gzip header" in spz["error"]
    assert good.get("ok"), good
