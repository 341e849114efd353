# SPDX-License-Identifier: Apache-2.0
"""Measures of several shapes together."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdi_gs.artefacts import media
from sdi_gs.errors import UserError
from sdi_gs.evaluation.protocol import MINI_JUDGE, load_clip
from sdi_gs.evaluation.together import Looks, diversity, frechet, together
from sdi_gs.look import STILL_COLUMNS, STILL_VIEWS, stills
from sdi_gs.mini.corpus import SIZE, render_truth
from sdi_gs.views import ViewPolicy


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_diversity_is_the_mean_over_pairs() -> None:
    shapes = unit(5, 3, 7)
    pairs = [float((a * b).sum(-1).mean()) for a, b in combinations(shapes, 2)]
    assert diversity(shapes) == pytest.approx(100 * (1 - np.mean(pairs)), abs=1e-4)
    assert diversity(shapes[:1].expand(4, -1, -1)) == pytest.approx(0, abs=1e-4)
    assert diversity(torch.eye(4)[:, None]) == pytest.approx(100)
    assert diversity(torch.stack([shapes[0], -shapes[0]])) == pytest.approx(200, abs=1e-3)
    with pytest.raises(ValueError, match="1 shapes"):
        diversity(shapes[:1])


def test_frechet_has_the_value_of_its_formula() -> None:
    """Of Gaussians with known moments: the sample is made to have exactly those."""
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((60, 3))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    deviation, mean = np.array([1.0, 2.0, 0.5]), np.array([3.0, -1.0, 0.0])
    one, other = torch.from_numpy(white), torch.from_numpy(white * deviation + mean)
    wanted = float((mean**2).sum() + ((deviation - 1) ** 2).sum())
    assert frechet(one, other) == pytest.approx(wanted, abs=1e-9)
    assert frechet(other, one) == pytest.approx(wanted, abs=1e-9)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    turned = [vectors @ torch.from_numpy(turn) + 5.0 for vectors in (one, other)]
    assert frechet(*turned) == pytest.approx(wanted, abs=1e-8)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    # More dimensions than vectors: the covariances have no inverse.
    few = unit(4, 30)
    assert frechet(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet(few, few + 1.0) == pytest.approx(30, abs=1e-5)
    with pytest.raises(ValueError, match="two or more"):
        frechet(one, other[:1])


def test_frechet_agrees_with_a_square_root_of_matrices() -> None:
    """scipy's root of the product itself, which is how FID is usually computed."""
    from scipy.linalg import sqrtm

    one, other = unit(50, 6, seed=1), 2.0 * unit(40, 6, seed=2) + 0.3
    c1, c2 = (np.cov(v.double().numpy(), rowvar=False) for v in (one, other))
    apart = float((one.double().mean(0) - other.double().mean(0)).square().sum())
    wanted = apart + float(np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real))
    assert frechet(one, other) == pytest.approx(wanted, rel=1e-9)


def test_only_shapes_of_one_sentence_are_compared() -> None:
    a, b, c = unit(3, 2, 5)
    found = together([Looks("a red mug", a), Looks("a cat", c), Looks("A  red mug", b)])
    assert found.diversity == pytest.approx(diversity(torch.stack([a, b])))
    assert found.frechet is None
    lone = together([Looks("a red mug", a, flat=b), Looks("a cat", c)])
    assert lone.diversity is None
    assert lone.frechet == pytest.approx(frechet(torch.cat([a, c]), b))
    assert together([]) == (None, None)


def test_the_judge_sees_more_difference_between_more_different_objects() -> None:
    """The same mug, mugs of other proportions, mugs and cats."""
    clip = load_clip(MINI_JUDGE, torch.device("cpu"))
    cameras = ViewPolicy(distance=(3.0, 3.0), fov_y_deg=(30.0, 30.0)).showcase(4, SIZE, 15.0)

    def seen(kind: str, size: float) -> Tensor:
        truth = render_truth(kind, "red", cameras, samples=2)
        middle = torch.nn.functional.interpolate(truth, scale_factor=size, mode="bilinear")
        room = SIZE - middle.shape[-1]
        sides = [room // 2, room - room // 2] * 2
        return clip.pictures(torch.nn.functional.pad(middle, sides, value=1.0).clamp(0, 1))

    mug, small, cat = seen("mug", 1.0), seen("mug", 0.75), seen("cat", 1.0)
    same, near, far = (diversity(torch.stack([mug, other])) for other in (mug, small, cat))
    assert same == pytest.approx(0, abs=1e-4)
    assert 0.1 < near < 0.5 * far


def test_the_views_of_a_sheet_come_back_in_their_order(tmp_path: Path) -> None:
    views = torch.arange(STILL_VIEWS)[:, None, None, None] / 255.0 * torch.ones(1, 3, 6, 6)
    views[:, 0, 2, 3] = 1.0  # a dot, so that no view is upside down
    path = media.save_png(media.contact_sheet(views, STILL_COLUMNS), tmp_path / "preview.png")
    assert torch.allclose(stills(path), views, atol=1e-6)
    for spoiled in (b"no picture", path.read_bytes()[:60]):
        path.write_bytes(spoiled)
        with pytest.raises(UserError, match="no sheet of 8 views"):
            stills(path)
    media.save_png(media.contact_sheet(views[:1, :, :, :5]), path)
    with pytest.raises(UserError, match="are no 4 x 2 images"):
        stills(path)
