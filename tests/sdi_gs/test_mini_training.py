# SPDX-License-Identifier: Apache-2.0
"""What the training of mini draws: shares, captions, weights; the same for the same step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar
from sdi_gs.mini import batches
from sdi_gs.mini.corpus import Corpus


@pytest.fixture
def corpus() -> Corpus:
    count = 40
    return Corpus(
        images=np.zeros((count, 3, 4, 4), np.uint8),
        kind=np.arange(count) % 5,
        color=np.arange(count) % 3,
        azimuth_deg=np.linspace(-170, 170, count, dtype=np.float32),
        elevation_deg=np.zeros(count, np.float32),
    )


def drawn(corpus: Corpus, size: int, step: int = 0) -> batches.Batch:
    """Latents say where they come from: 0 to 39 the corpus, 100 and up the pool."""
    latents = torch.arange(40.0)[:, None, None, None].expand(40, 4, 2, 2)
    pool = batches.HalfFormed(
        (100 + torch.arange(20.0))[:, None, None, None].expand(20, 4, 2, 2),
        np.arange(20) + 7,
        np.arange(5),
    )
    return batches.draw(corpus, latents, pool, size, batches.step_rng(3, step))


def test_half_formed_pictures_come_at_low_noise_and_mostly_without_a_caption(
    corpus: Corpus,
) -> None:
    batch = drawn(corpus, 20_000)
    low, high = batch.t < 500, batch.t >= 800
    assert float(batch.half_formed[low].float().mean()) == pytest.approx(0.35, abs=0.02)
    assert not bool(batch.half_formed[high].any())
    source = batch.latents[:, 0, 0, 0]
    assert torch.equal(source >= 100, batch.half_formed)
    plain = source[batch.half_formed] < 105
    # three quarters from the five plain ones, and their share of the rest
    assert float(plain.float().mean()) == pytest.approx(0.75 + 0.25 * 5 / 20, abs=0.02)
    silent = torch.tensor([caption == "" for caption in batch.captions])
    assert float(silent[batch.half_formed].float().mean()) == pytest.approx(
        0.95 + 0.05 * 0.10, abs=0.02
    )
    assert float(silent[~batch.half_formed].float().mean()) == pytest.approx(0.10, abs=0.02)
    told = {(c, t) for c, t in zip(batch.captions, batch.truth, strict=True) if c}
    assert all(caption == truth for caption, truth in told)


def test_a_step_draws_the_same_again_and_the_next_one_does_not(corpus: Corpus) -> None:
    one, again, other = drawn(corpus, 64), drawn(corpus, 64), drawn(corpus, 64, step=1)
    assert torch.equal(one.latents, again.latents)
    assert one.captions == again.captions
    assert not torch.equal(one.t, other.t)


def test_the_loss_weighs_noise_up_without_changing_its_scale() -> None:
    weight = batches.loss_weight(scaled_linear_alpha_bar())
    assert float(weight.mean()) == pytest.approx(1.0)
    assert bool((weight.diff() >= 0).all())
    assert 3.0 < float(weight[-1] / weight[0]) <= 5.0 * 1.01


def test_white_borders_are_found() -> None:
    white = np.full((3, 3, 8, 8), 255, np.uint8)
    white[1, :, 3:5, 3:5] = 0  # dark in the middle only
    white[2, :, :, :2] = 0  # dark at a side
    assert batches.plain_borders(white).tolist() == [0, 1]
