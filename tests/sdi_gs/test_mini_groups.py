# SPDX-License-Identifier: Apache-2.0
"""Groups of views: what mini's sibling learns from, and from where it starts."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.diffusion.together import see_together
from sdi_gs.mini import FOLDERS, MINI_DIR, groups, train_views
from sdi_gs.mini.batches import step_rng
from sdi_gs.mini.corpus import Corpus
from sdi_gs.mini.data import to_float

DUCK = 15  # a kind with a front


@pytest.fixture(scope="module")
def ducks() -> Corpus:
    """Two shapes in two colours, four views of each."""
    return Corpus(**groups._build_kind((0, DUCK, 2, 2)))


def test_a_group_is_one_shape_at_quarter_turns(ducks: Corpus) -> None:
    assert len(ducks) == 16
    azimuth, elevation = (a.reshape(4, 4) for a in (ducks.azimuth_deg, ducks.elevation_deg))
    assert np.allclose((azimuth - azimuth[:, :1]) % 360, [0, 90, 180, 270], atol=1e-3)
    assert np.all(elevation == elevation[:, :1])
    assert np.all(ducks.color.reshape(4, 4) == ducks.color.reshape(4, 4)[:, :1])
    shape = ducks.images.min(axis=1) < 240
    assert np.mean(shape[:4] == shape[4:8]) > 0.999  # painted twice, cast once
    assert np.mean(shape[:4] == shape[8:12]) < 0.99


def test_the_views_of_a_group_have_one_phrasing_and_their_own_view_words() -> None:
    said = Corpus(
        np.zeros((4, 3, 1, 1), np.uint8), np.full(4, DUCK), np.zeros(4, int),
        np.array([10.0, 100.0, -170.0, -80.0], np.float32), np.full(4, 20.0, np.float32),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    all_said = [groups.captions(said, 0, rng) for _ in range(400)]
    whole = [c for c in all_said if c[0].endswith("front view")]
    assert 0.7 < len(whole) / 400 < 0.9
    assert len({c[0] for c in whole}) > 4
    for captions in whole:
        ends = [caption.rpartition(", ") for caption in captions]
        assert len({start for start, _, _ in ends}) == 1
        assert [end for _, _, end in ends] == ["front view", "side view", "back view", "side view"]
    assert sum(c == [""] * 4 for c in all_said) / 400 == pytest.approx(0.1, abs=0.05)


def test_a_cloud_stands_in_space() -> None:
    """Seen from behind, its outline is mirrored; from above and from below as well."""
    turn = torch.tensor([0.3, 0.3 + np.pi, 0.0, 0.0], dtype=torch.float32)
    up = torch.tensor([0.0, 0.0, np.pi / 2, -np.pi / 2], dtype=torch.float32)
    images = torch.ones(4, 3, 32, 32)
    _, alpha = groups._cloud(images, turn, up, torch.Generator().manual_seed(2))
    assert float(alpha.max()) > 0.5
    torch.testing.assert_close(alpha[1], alpha[0].flip(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alpha[3], alpha[2].flip(-2), rtol=1e-4, atol=1e-5)
    assert float((alpha[2] - alpha[0]).abs().max()) > 0.1


def test_half_formed_groups_are_pictures_of_every_sort(ducks: Corpus) -> None:
    formed = groups.half_formed_groups(ducks, np.arange(12) % 4, 5)
    assert formed.shape == (48, 3, 64, 64)
    change = np.abs(formed.astype(float) - np.tile(ducks.images, (3, 1, 1, 1))).mean((1, 2, 3))
    assert len({round(float(c), 3) for c in change.reshape(12, 4).mean(1)}) > 9
    again = groups.half_formed_groups(ducks, np.arange(4), 5)
    assert np.array_equal(formed[:16], again)


def test_a_batch_shares_times_within_groups_and_silence(ducks: Corpus) -> None:
    many = train_views.Groups(
        ducks, torch.arange(4.0).reshape(4, 1, 1, 1, 1).expand(4, 4, 4, 2, 2),
        (100 + torch.arange(6.0)).reshape(6, 1, 1, 1, 1).expand(6, 4, 4, 2, 2),
        np.arange(6) % 4, torch.arange(4.0).reshape(4, 1, 1).expand(4, 4, 16),
    )  # fmt: skip
    drawn = train_views.draw(many, 4000, step_rng(3, 0))
    few = train_views.draw(many, 4000, step_rng(3, 0), 0.05)
    assert float(few.half_formed[few.t < 500].float().mean()) == pytest.approx(0.05, abs=0.02)
    low = drawn.t < 500
    assert float(drawn.half_formed[low].float().mean()) == pytest.approx(0.35, abs=0.04)
    assert not bool(drawn.half_formed[drawn.t >= 800].any())
    value = drawn.latents[:, 0, 0, 0, 0]
    assert torch.equal(value >= 100, drawn.half_formed)
    assert torch.equal(drawn.pose[:, 0, 0], torch.where(value >= 100, (value - 100) % 4, value))
    silent = torch.tensor([c == "" for c in drawn.captions]).reshape(-1, 4)
    assert float(silent[drawn.half_formed].float().mean()) == pytest.approx(0.955, abs=0.03)


def test_it_starts_as_mini() -> None:
    """A view alone, whatever its pose says, is denoised as mini does it."""
    unet = train_views.make_unet(MINI_DIR)
    see_together(unet, 1)
    mini = StableDiffusion.load(MINI_DIR)
    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 16, 16, generator=rng), torch.tensor([200, 700])
    words, pose = mini.embed(["a red mug", ""]), torch.randn(2, 16, generator=rng)
    with torch.no_grad():
        eps = unet(x, t, encoder_hidden_states=words["hidden"], class_labels=pose).sample
    torch.testing.assert_close(eps, mini.predict_noise(x, t, words), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("init", [MINI_DIR, FOLDERS["mini_mv"]])
def test_groups_are_encoded_by_mini_whatever_unet_goes_on(
    init: Path, tmp_path: Path, ducks: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the defaults of the command line, and from a folder that holds a UNet alone."""
    args = train_views.parser().parse_args(["unet", "--cache", str(tmp_path), "--threads", "1"])
    assert args.init == MINI_DIR
    args.init = init
    monkeypatch.setattr(train_views, "load_groups", lambda *_: ducks)
    made = train_views.load(args)
    mini = StableDiffusion.load(MINI_DIR)
    expected = mini.encode(to_float(ducks.images[:4]))
    assert made.latents.shape == (4, 4, 4, 16, 16)
    # float16, encoded in bfloat16
    assert float((made.latents[0].float() - expected).abs().mean()) < 0.03
    train_views.make_unet(args.init)


def test_training_goes_on_where_it_stopped(
    tmp_path: Path, ducks: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps at once are one step, and one more after a pause; and the loss is a number."""
    latents = torch.randn(4, 4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    few = train_views.Groups(ducks, latents, latents, np.arange(4), torch.randn(4, 4, 16))
    monkeypatch.setattr(train_views, "load", lambda args: few)
    shares, draw = [], train_views.draw

    def noted(groups: object, size: int, rng: object, half_formed: float) -> object:
        shares.append(half_formed)
        return draw(groups, size, rng, half_formed)  # type: ignore[arg-type]

    monkeypatch.setattr(train_views, "draw", noted)

    def trained(folder: str, *steps: int) -> dict[str, torch.Tensor]:
        (tmp_path / folder).mkdir()
        for count in steps:
            args = argparse.Namespace(
                cache=tmp_path / folder, init=MINI_DIR, device=torch.device("cpu"), steps=count,
                batch=2, lr=1e-3, cooldown=1, half_formed=0.2,
            )  # fmt: skip
            torch.manual_seed(0)
            train_views.train_unet(args)
        state = torch.load(tmp_path / folder / "unet_mv.pt", weights_only=True)
        assert state["step"] == steps[-1]
        return dict(state["modules"][0])

    once, paused = trained("once", 2), trained("paused", 1, 2)
    assert shares == [0.2] * 4
    assert all(torch.equal(once[name], paused[name]) for name in once)
    begun = train_views.make_unet(MINI_DIR).state_dict()
    names = [name for name in once if "class_embedding" not in name]
    moved = max(float((once[name] - begun[name]).abs().max()) for name in names)
    assert 1e-6 < moved < 1e-2
