# SPDX-License-Identifier: Apache-2.0
"""What of some splats is left out: by counts that are known beforehand, whatever size and place."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from representations.cloud import SplatCloud
from representations.cutting import Cut, floating, importance
from representations.export import Layout, write_ply
from representations.reading import Reading, SplatFileError, read_splats

from .test_splat_files import cloud


def solid(points: torch.Tensor, size: float = 0.1) -> SplatCloud:
    """Round opaque splats."""
    n = len(points)
    return SplatCloud(
        means=points.float(),
        log_scale=torch.full((n, 3), math.log(size)),
        quat_wxyz=torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        opacity_logit=torch.full((n,), 5.0),
        sh_dc=torch.arange(n)[:, None].repeat(1, 3) / n,
        sh_rest=torch.zeros(n, 0, 3),
    )


def grid(side: int = 7) -> torch.Tensor:
    """[side^3, 3] from -1 to 1."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line, line)


def test_a_ball_and_a_box_by_counting() -> None:
    points, told = grid(), list[str]()
    inside = int((points.norm(dim=-1) <= 0.8).sum())
    kept = Cut(crop=(0.8,)).apply(solid(points), told.append)
    assert len(kept) == inside
    assert told == [f"{343 - inside} of 343 splats are left out: outside of the crop"]
    moved = solid(points + torch.tensor([5.0, 0.0, -2.0]))
    assert len(Cut(crop=(0.8,)).apply(moved, told.append)) == inside  # around the middle
    assert len(Cut(crop=(5.0, 0.0, -2.0, 0.8)).apply(moved, told.append)) == inside
    box = Cut(crop=(-0.1, -2, -2, 2, 2, 2)).apply(solid(points), told.append)
    assert len(box) == 4 * 49
    assert abs(float(box.means[:, 0].min())) < 1e-9


@pytest.mark.parametrize("zoom", [1e-4, 1.0, 1e5])
def test_a_small_group_that_touches_nothing_floats(zoom: float) -> None:
    strays = torch.tensor([[4.0, 0, 0], [4.1, 0, 0], [-3.0, 2, 1]]).double()
    points = torch.cat([grid(), strays]) * zoom
    away = floating(solid(points, 0.1 * zoom))
    assert away.nonzero()[:, 0].tolist() == [343, 344, 345]


def test_a_second_part_of_some_weight_does_not_float() -> None:
    points = torch.cat([grid(), grid(3) * 0.3 + torch.tensor([9.0, 0, 0])])
    assert not bool(floating(solid(points)).any())  # 27 of 370 are more than a hundredth
    assert not bool(floating(solid(points[:1])).any())


def test_importance_is_what_a_splat_covers_from_all_sides() -> None:
    """Projected areas of ellipsoids, averaged over directions (a quadrature), within the error of
    the formula; and exact for balls."""
    ball = solid(torch.zeros(1, 3), 0.3).replace(opacity_logit=torch.tensor([0.0]))
    assert float(importance(ball)[0]) == pytest.approx(0.5 * 0.09, rel=1e-6)
    rng = torch.Generator().manual_seed(0)
    side = torch.nn.functional.normalize(
        torch.randn(20_000, 3, generator=rng, dtype=torch.float64), dim=-1
    )
    for scales in ((1.0, 1.0, 0.01), (1.0, 0.3, 0.1), (1.0, 0.05, 0.05)):
        a, b, c = scales
        # Of the shadow of an ellipsoid along u, over pi: sqrt((bc ux)^2 + (ac uy)^2 + (ab uz)^2).
        shadow = (side * torch.tensor([b * c, a * c, a * b])).norm(dim=-1).mean()
        one = ball.replace(log_scale=torch.tensor([scales]).log())
        assert float(importance(one)[0]) == pytest.approx(0.5 * float(shadow), rel=0.35)


def test_the_most_important_are_kept_in_their_order() -> None:
    splats, told = cloud(200), list[str]()
    kept = Cut(max_splats=50).apply(splats, told.append)
    weight = importance(splats)
    least = weight.sort(descending=True).values[49]
    assert torch.equal(kept.means, splats.means[weight >= least])
    assert told == ["150 of 200 splats are left out: the least important, by opacity times area"]
    assert Cut(max_splats=200).apply(splats, told.append) is splats
    assert len(told) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_splats": 0}, "allowed is 1 or more"),
        ({"crop": (1.0, 2.0)}, "a radius around the middle"),
        ({"crop": (-1.0,)}, "crop=-1: allowed are"),
        ({"crop": (0.0, 0.0, 0.0, 0.0)}, "a point and a radius"),
        ({"crop": (1.0, 0, 0, 0, 1, 1)}, "the lower one first"),
        ({"crop": (math.nan,)}, "crop=nan"),
    ],
)
def test_a_cut_that_cannot_be(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cut(**settings)  # type: ignore[arg-type]


def test_nothing_left_is_an_error_and_a_file_is_named(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", solid(grid(3)), Layout(up="z"))
    cut = Cut(crop=(50.0, 0, 0, 1))
    with pytest.raises(SplatFileError, match=r"a\.ply: all 27 splats are outside of the crop"):
        read_splats(tmp_path / "a.ply", Reading(cut=cut))


def test_cuts_come_in_their_order_and_are_told_like_other_notes(tmp_path: Path) -> None:
    """Cropped first: what is far away is no floater then, and of the others the best are kept."""
    points = torch.cat([grid(), torch.tensor([[40.0, 0, 0], [3.0, 0, 0]]).double()])
    write_ply(tmp_path / "a.ply", solid(points), Layout(up="y"))
    cut = Cut(crop=(0.0, 0, 0, 10), floaters=False, max_splats=100)
    found = read_splats(tmp_path / "a.ply", Reading(cut=cut))
    assert [note.split(" of ")[0] for note in found.notes[-3:]] == ["1", "1", "243"]
    assert len(found.cloud) == 100
    assert float(found.cloud.means.norm(dim=-1).max()) < 2.0
