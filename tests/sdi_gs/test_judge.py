# SPDX-License-Identifier: Apache-2.0
"""The judge of mini's world: what it was taught with, and what it knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdi_gs.evaluation import judge
from sdi_gs.evaluation.clip import Clip, iqa
from sdi_gs.evaluation.protocol import default_candidates, load_clip
from sdi_gs.mini.corpus import COLORS, KINDS, Corpus, build
from sdi_gs.mini.data import to_float


@pytest.fixture(scope="module")
def unseen() -> Corpus:
    """Shapes of a seed that no training used."""
    return build(907, 8, 1, processes=1)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("mini", torch.device("cpu"))


def test_it_is_small() -> None:
    size = sum(path.stat().st_size for path in judge.JUDGE_DIR.rglob("*") if path.is_file())
    assert size <= 6e6


def test_every_word_is_one_token() -> None:
    tokenizer = judge.make_tokenizer()
    for word in (*KINDS, *COLORS, "good", "blurry", "abstract", "photo"):
        assert len(tokenizer(word).input_ids) == 3, word  # between start and end


def test_it_finds_kind_and_colour_of_nine_in_ten_unseen_renders(unseen: Corpus, clip: Clip) -> None:
    words = default_candidates("mini")
    cosines = clip.pictures(to_float(unseen.images)) @ clip.captions(words).T
    kinds, colors = list(KINDS), list(COLORS)
    wanted = [
        words.index(f"a {colors[c]} {kinds[k]}")
        for k, c in zip(unseen.kind, unseen.color, strict=True)
    ]
    right = float((cosines.argmax(dim=1) == torch.tensor(wanted)).float().mean())
    print(f"kind and colour of {len(unseen)} unseen renders: {100 * right:.1f} %")
    assert right >= 0.9


@pytest.mark.parametrize("which", range(len(judge.QUALITIES)))
def test_spoiled_pictures_score_below_whole_ones(unseen: Corpus, clip: Clip, which: int) -> None:
    images = to_float(unseen.images)
    pair = clip.captions(judge.QUALITIES[which])
    whole = iqa(clip.pictures(images), pair, clip.scale)
    spoiled = judge.spoil(images, which, torch.Generator().manual_seed(3))
    bad = iqa(clip.pictures(spoiled), pair, clip.scale)
    assert float((whole > 0.5).float().mean()) > 0.9
    assert float((bad < 0.5).float().mean()) > 0.8


def test_spoiling_makes_pictures_that_can_be_shown(unseen: Corpus) -> None:
    images = to_float(unseen.images[::16])
    for which in range(len(judge.QUALITIES)):
        spoiled = judge.spoil(images, which, torch.Generator().manual_seed(1))
        assert spoiled.shape == images.shape
        assert 0.0 <= float(spoiled.min()) <= float(spoiled.max()) <= 1.0
        assert bool(((spoiled - images).abs().amax(dim=(1, 2, 3)) > 0.05).all())


def test_jitter_is_slight(unseen: Corpus) -> None:
    images = to_float(unseen.images[::16])
    changed = judge.jitter(images, torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    mean = np.abs((changed - images).mean(dim=(1, 2, 3)).numpy())
    assert mean.max() < 0.05
    assert bool(((changed - images).abs().amax(dim=(1, 2, 3)) > 0.01).all())
