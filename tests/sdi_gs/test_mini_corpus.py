# SPDX-License-Identifier: Apache-2.0
"""The procedural corpus: what an image shows is what its labels say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from representations.cameras import orbit
from sdi_gs.mini import corpus, known_words, networks
from sdi_gs.mini.halfformed import half_form
from sdi_gs.mini.render import cast
from sdi_gs.mini.shapes import Builder


def cameras(*azimuth: float, elevation: float = 15.0, size: int = 48):  # type: ignore[no-untyped-def]
    count = len(azimuth)
    return orbit(
        torch.tensor(azimuth), torch.full((count,), elevation), torch.full((count,), 3.0),
        torch.full((count,), 30.0), (size, size),
    )  # fmt: skip


def test_size_of_the_corpus() -> None:
    assert len(corpus.KINDS) >= 24
    assert len(corpus.COLORS) == 10


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_every_kind_fits_the_picture_and_has_a_front(kind: str) -> None:
    solid = corpus.truth(kind)
    views = cast(solid, cameras(0.0, 180.0, 90.0))
    palette = solid.palette(corpus.COLORS["red"])
    front, back, side = (v.paint(palette) for v in views)
    for view in views:
        covered = view.coverage()
        assert 0.03 < covered.mean() < 0.6
        edge = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
        assert edge.max() == 0.0
    assert np.abs(front - back[:, :, ::-1]).mean() > 0.01  # not each other's mirror image
    assert np.abs(front - side).mean() > 0.01


def test_a_ball_is_drawn_where_geometry_says() -> None:
    """Silhouette of a sphere seen by a pinhole: an angle of asin(r / d) around the axis."""
    builder = Builder(None)
    builder.ball((0, 0, 0), 1.0)
    solid = builder.finish(0.6)
    radius = float(np.linalg.norm(solid.vertices, axis=1).max())
    assert radius == pytest.approx(0.6, rel=0.01)
    view = cast(solid, cameras(37.0, elevation=20.0, size=64), samples=4)[0]
    focal = 32 / np.tan(np.radians(15.0))
    pixels = focal * np.tan(np.arcsin(radius / 3.0))
    assert view.coverage().sum() == pytest.approx(np.pi * pixels**2, rel=0.02)


def test_nearest_surface_wins_and_light_is_the_object_s_own() -> None:
    builder = Builder(None)
    builder.ball((0.5, 0, 0), 0.3, (1.0, 0.0, 0.0))
    builder.ball((-0.5, 0, 0), 0.3, (0.0, 0.0, 1.0))
    solid = builder.finish()
    front, back = (v.paint(solid.palette((0, 0, 0))) for v in cast(solid, cameras(0.0, 180.0)))
    middle = (slice(None), 24, 24)
    assert front[middle].argmax() == 0  # the red one stands in front
    assert back[middle].argmax() == 2
    assert front.min(axis=0).max() == 1.0  # white background
    assert front[0, 24, 24] > back[2, 24, 24]  # the front is lit


def test_recolouring_changes_the_named_colour_only() -> None:
    solid = corpus.truth("duck")
    view = cast(solid, cameras(30.0))[0]
    red, blue = (view.paint(solid.palette(corpus.COLORS[c])) for c in ("red", "blue"))
    changed = np.abs(red - blue).max(axis=0) > 0.01
    main = np.array([isinstance(c, str) for c in solid.colors])
    is_main = np.append(main, False)[view.part].any(axis=(0, 1))
    assert (changed == is_main).mean() > 0.999
    assert changed.any()


def test_view_words_are_dreamfusions() -> None:
    cases = {(0, 0): "front", (44.9, 0): "front", (-44.9, 30): "front", (46, 0): "side",
             (-134, 0): "side", (136, 0): "back", (180, 0): "back", (-180, 0): "back",
             (350, 0): "front", (0, 61): "overhead", (180, 59): "back"}  # fmt: skip
    for (azimuth, elevation), word in cases.items():
        assert corpus.view_word(azimuth, elevation) == word


def test_captions_say_what_they_should_and_sometimes_do_not() -> None:
    rng = np.random.default_rng(0)
    texts = [corpus.caption("mug", "red", "front", rng) for _ in range(4000)]
    empty = np.mean([t == "" for t in texts])
    assert empty == pytest.approx(0.10, abs=0.02)
    spoken = [t for t in texts if t]
    assert np.mean(["front view" in t for t in spoken]) == pytest.approx(0.90, abs=0.03)
    assert np.mean(["red" in t for t in spoken]) == pytest.approx(0.96, abs=0.02)
    assert all("mug" in t for t in spoken)
    assert len(set(spoken)) >= 10


def test_the_tokenizer_knows_every_word_of_the_corpus_as_one_token() -> None:
    tokenizer = networks.make_tokenizer()
    for word in corpus.vocabulary():
        if word.isalpha():  # CLIP's splitter takes digits one by one: "3d" is two
            assert len(tokenizer(word).input_ids) == 3, word
    ids = tokenizer("A photo of a RED mug, front view").input_ids
    assert ids == tokenizer("a photo of a red mug , front view").input_ids
    assert tokenizer.unk_token_id not in tokenizer("zebra").input_ids[1:-1]


def test_corpus_is_reproducible_and_labelled() -> None:
    one, two = corpus._build_kind((3, 4, 8, 2)), corpus._build_kind((3, 4, 8, 2))
    other = corpus._build_kind((4, 4, 8, 2))
    for key, value in one.items():
        assert np.array_equal(value, two[key])
    assert not np.array_equal(one["images"], other["images"])
    assert one["images"].shape == (16, 3, 64, 64)
    made = corpus.Corpus(**one)
    assert set(made.view()) <= set(range(4))


def test_known_words() -> None:
    assert known_words("A Red mug, on a table!") == ["red", "mug"]
    assert known_words("an astronaut riding a horse") == []


def test_half_formed_images_are_pictures_and_reproducible() -> None:
    images = torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    siblings = images[:, None].expand(-1, 3, -1, -1, -1).flip(0)
    one = half_form(images, siblings, torch.Generator().manual_seed(1))
    two = half_form(images, siblings, torch.Generator().manual_seed(1))
    assert torch.equal(one, two)
    assert float(one.min()) >= 0.0
    assert float(one.max()) <= 1.0
    assert bool((one - images).abs().mean(dim=(1, 2, 3)).gt(1e-3).all())
