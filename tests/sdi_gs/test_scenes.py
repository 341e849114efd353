# SPDX-License-Identifier: Apache-2.0
"""Several shapes in one file: where they stand, and what is told."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.axes import hamilton, turn_about_z
from representations.cameras import orbit
from representations.cloud import SplatCloud
from representations.composing import Placed, box_of, side_by_side
from representations.export import read_ply, write_ply
from representations.framing import Frame
from representations.harmonics import evaluate_rest
from sdi_gs import build
from sdi_gs.config import Config, load

Run = Callable[..., Any]
ORIGIN = torch.zeros(3, dtype=torch.float64)


def ball(radius: float, count: int = 400, seed: int = 0, degree: int = 0) -> SplatCloud:
    """Small splats on a sphere, each of a colour of its own."""
    g = torch.Generator().manual_seed(seed)
    away = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    return SplatCloud(
        means=radius * away,
        log_scale=torch.full((count, 3), math.log(1e-3)) + 0.1 * torch.randn(count, 3, generator=g),
        quat_wxyz=torch.randn(count, 4, generator=g),
        opacity_logit=torch.full((count,), 3.0),
        sh_dc=torch.randn(count, 3, generator=g),
        sh_rest=torch.randn(count, (degree + 1) ** 2 - 1, 3, generator=g),
    )


def test_a_box_holds_an_ellipsoid_as_far_as_it_reaches_along_each_axis() -> None:
    """One long splat, turned by 30 degrees about z: its variance along an axis is e' C e."""
    angle = math.radians(30.0)
    quat = torch.tensor([[math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)]])
    one = SplatCloud(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.1, 0.2]]).log(), 2.0 * quat,
        torch.zeros(1), torch.zeros(1, 3), torch.zeros(1, 0, 3),
    )  # fmt: skip
    c, s = math.cos(angle), math.sin(angle)
    reach = torch.tensor([math.hypot(0.5 * c, 0.1 * s), math.hypot(0.5 * s, 0.1 * c), 0.2])
    box = box_of(one)
    assert torch.allclose((box.high - box.low) / 4, reach.double(), atol=1e-6)
    assert torch.allclose((box.high + box.low) / 2, one.means[0].double())


def test_shapes_stand_on_one_floor_from_the_left_with_the_gap_between_them() -> None:
    radii, gap = (0.5, 1.0, 0.25), 0.3
    moved = Frame(torch.tensor([3.0, -7.0, 2.0], dtype=torch.float64), 1.0)
    shapes = [moved.bring(ball(r, seed=k), 1.0) for k, r in enumerate(radii)]
    scene = side_by_side([Placed(shape) for shape in shapes], gap)
    parts = [scene.map(lambda t, k=k: t[400 * k : 400 * (k + 1)]) for k in range(3)]
    boxes = [box_of(part) for part in parts]
    width = 2 * sum(radii) + 2 * gap
    left = -width / 2
    for r, box, part, shape in zip(radii, boxes, parts, shapes, strict=True):
        assert float(box.low[2]) == pytest.approx(-1.0, abs=0.02)  # the largest ball is centred
        assert float(box.low[1]) == pytest.approx(left, abs=0.03)
        assert float(box.high[1]) == pytest.approx(left + 2 * r, abs=0.03)
        assert float((box.low[0] + box.high[0]) / 2) == pytest.approx(0.0, abs=0.02)
        left += 2 * r + gap
        # and each is what it was, moved as a whole
        apart = part.means.double() - shape.means.double()
        assert float((apart - apart[0]).abs().max()) < 1e-5
        assert torch.equal(part.sh_dc, shape.sh_dc)
    for one, next_one in itertools.pairwise(boxes):
        assert float(next_one.low[1] - one.high[1]) == pytest.approx(gap, abs=1e-5)


def test_sizes_and_turns_are_of_each_shape() -> None:
    long = ball(1.0)
    long = long.replace(means=long.means * torch.tensor([2.0, 1.0, 1.0]))  # towards its front
    scene = side_by_side([Placed(long), Placed(long, 90.0), Placed(long, 90.0, 0.5)], 0.0)
    sizes = [box_of(scene.map(lambda t, k=k: t[400 * k : 400 * (k + 1)])) for k in range(3)]
    spans = [(box.high - box.low)[:2].tolist() for box in sizes]
    for span, expected in zip(spans, ([4.0, 2.0], [2.0, 4.0], [1.0, 2.0]), strict=True):
        assert span == pytest.approx(expected, rel=0.03)
    front = torch.tensor([[1.0, 0.0, 0.0]])
    turned = turn_about_z(ball(1.0, 1).replace(means=front), 90.0)
    assert torch.allclose(turned.means, torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("degrees", [37.0, -90.0, 250.0])
def test_a_turned_shape_looks_from_a_turned_camera_as_it_did(degrees: float) -> None:
    """Places, orientations and view-dependent colours together: drawn before and after."""
    cloud = ball(0.8, 60, degree=2).replace(
        log_scale=torch.tensor([[0.2, 0.1, 0.05]]).log().expand(60, 3).contiguous()
    )
    shape, turned = (
        build.splat_renderer(c, Config()) for c in (cloud, turn_about_z(cloud, degrees))
    )
    for azimuth in (0.0, 110.0):
        before, after = (
            orbit(torch.tensor([azimuth + more]), torch.tensor([20.0]), torch.tensor([4.0]),
                  torch.tensor([40.0]), (48, 48))
            for more in (0.0, degrees)
        )  # fmt: skip
        with torch.no_grad():
            one, other = (r.render(c, torch.ones(1, 3))[0].rgb
                          for r, c in ((shape, before), (turned, after)))  # fmt: skip
        assert float((one - other).abs().max()) < 2e-3
        assert float((one - 1.0).abs().max()) > 0.3
    direction = torch.nn.functional.normalize(torch.randn(1, 60, 3), dim=-1)
    angle = math.radians(degrees)
    spin = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0],
                         [math.sin(angle), math.cos(angle), 0.0], [0.0, 0.0, 1.0]])  # fmt: skip
    seen = evaluate_rest(cloud.sh_rest, direction)
    again = evaluate_rest(turn_about_z(cloud, degrees).sh_rest, direction @ spin.T)
    assert torch.allclose(seen, again, atol=1e-4)
    assert hamilton((1.0, 0.0, 0.0, 0.0), cloud.quat_wxyz).equal(cloud.quat_wxyz)


def test_what_no_scene_can_be_made_of_is_refused() -> None:
    with pytest.raises(ValueError, match="no shapes"):
        side_by_side([], 0.1)
    for bad in (Placed(ball(1.0), float("nan")), Placed(ball(1.0), 0.0, 0.0)):
        with pytest.raises(ValueError, match="a scale above 0"):
            side_by_side([bad], 0.1)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.ply", "b.ply")]
    for seed, path in enumerate(paths):
        write_ply(path, ball(0.5, 50 + seed, seed, degree=seed))
    return paths


def test_a_scene_from_the_command_line(sdi_gs: Run, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "scene.ply"
    said = sdi_gs("compose", *files, "--out", out, "--gap", 0.2, "--turn", "0,90", "--scale", 2)
    assert said.code == 0, said.err
    scene = read_ply(out)
    assert len(scene) == 101
    assert scene.sh_degree == 1
    assert float((scene.sh_rest[:50]).abs().max()) == 0.0
    wide = box_of(scene)
    assert float(wide.high[1] - wide.low[1]) == pytest.approx(4.2, abs=0.2)
    assert str(out) in said.out
    for words, expected in (
        (["--turn", "0,1,2"], "--turn 0,90 works"),
        (["--scale", "big"], "--scale 1,1.5 works"),
        (["--scale", "0"], ""),
        ([], "exists"),
    ):
        new = tmp_path / "new.ply" if words else out
        refused = sdi_gs("compose", *files, "--out", new, *words)
        assert refused.code == 2
        assert "Traceback" not in refused.err
        if expected.endswith("works"):
            taught = shlex.split(expected.removesuffix(" works"))
            assert " ".join(taught) in refused.err
            assert sdi_gs("compose", *files, "--out", new, *taught).code == 0
            new.unlink()
    assert sdi_gs("compose", *files, "--out", out, "--force").code == 0
    mesh = tmp_path / "scene.spz"
    assert sdi_gs("compose", out, files[0], "--out", mesh).code == 0


def test_a_sentence_with_two_things_says_how_a_scene_is_made(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is typed as it stands, with two steps a run."""
    monkeypatch.chdir(tmp_path)
    said = build.check_prompt(load("mini", ["prompt=a red mug and the duck"]))
    assert said is not None
    commands = [shlex.split(line) for line in said.splitlines()[1:]]
    assert commands == [
        ["sdi-gs", "generate", "a red mug", "--out", "mug"],
        ["sdi-gs", "generate", "a duck", "--out", "duck"],
        ["sdi-gs", "compose", "mug", "duck", "--out", "scene.ply"],
    ]
    short = ("steps=2", "batch=1", "output.turntable.frames=2", "output.turntable.size=32")
    for words in commands:
        more = short if "generate" in words else ()
        assert sdi_gs(*words[1:], *more).code == 0
    assert len(read_ply(tmp_path / "scene.ply")) > 0
    assert build.check_prompt(load("mini", ["prompt=a red mug"])) is None
