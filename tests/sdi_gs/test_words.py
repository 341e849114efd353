# SPDX-License-Identifier: Apache-2.0
"""Which words a view gets, and Perp-Neg: on a Gaussian mixture in which words are components, so
that a condition can be read. Expected values are worked out here, from the published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdi_gs.diffusion.base import Condition
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import VIEW_WORDS, PromptConfig, PromptSet, perp_neg_blend, view_index
from sdi_gs.mini import corpus

from .doubles import Latent, around, randn

SHAPE = (3, 2, 2)
WORDS = ("side", "front", "back", "overhead")
VARIANTS = ("threestudio", "stable-dreamfusion")


def world() -> Latent:
    """A component for each view word, in the order of :data:`WORDS`, one for a negative prompt and
    one for no words at all."""
    names = {word: [k] for k, word in enumerate((*WORDS, "ugly", "nothing"))}

    class World(Latent):
        def embed(self, prompts):  # type: ignore[no-untyped-def]
            return super().embed([prompt or "nothing" for prompt in prompts])

    variances = torch.tensor([0.3, 0.5, 0.2, 0.4, 0.6, 0.7], dtype=torch.float64)
    return World(randn(6, *SHAPE, seed=1), variances, names=names)


def positives(prompts: PromptSet, *azimuth_deg: float, elevation_deg: float = 0.0) -> list[dict]:
    """For each view the share that each word has in its positive condition."""
    views = around(*azimuth_deg, elevation_deg=elevation_deg)
    rows = prompts.conditions(views).positive["weights"].tolist()
    return [{w: s for w, s in zip(WORDS, row, strict=False) if abs(s) > 1e-12} for row in rows]


# --- words without Perp-Neg -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("azimuth", "elevation", "word"),
    [
        (0.0, 0.0, "front"), (44.9, 0.0, "front"), (45.1, 0.0, "side"), (90.0, 0.0, "side"),
        (134.9, 0.0, "side"), (135.1, 0.0, "back"), (180.0, 0.0, "back"),
        (10.0, 59.9, "front"), (10.0, 60.1, "overhead"),
        (90.0, 59.9, "side"), (90.0, 60.1, "overhead"),
        (170.0, 59.9, "back"), (170.0, 60.1, "overhead"),
        (10.0, -89.0, "front"),  # there is no word for a view from below
    ],
)  # fmt: skip
@pytest.mark.parametrize("turn", [0.0, 360.0, -720.0])
def test_each_threshold_from_both_sides(
    azimuth: float, elevation: float, word: str, turn: float
) -> None:
    prompts = PromptSet(world(), "thing")
    for side in (azimuth, -azimuth):
        assert positives(prompts, side + turn, elevation_deg=elevation) == [{word: 1.0}]


def test_thresholds_are_settings() -> None:
    config = PromptConfig(front_within_deg=20.0, back_beyond_deg=150.0, overhead_above_deg=30.0)
    prompts = PromptSet(world(), "thing", config=config)
    azimuth = (19.9, 20.1, 149.9, 150.1)
    found = positives(prompts, *azimuth, elevation_deg=29.9)
    assert found == [{word: 1.0} for word in ("front", "side", "side", "back")]
    assert positives(prompts, *azimuth, elevation_deg=30.1) == [{"overhead": 1.0}] * 4


def test_without_view_words_every_view_gets_the_sentence() -> None:
    prompts = PromptSet(world(), "back", config=PromptConfig(view_dependent=False))
    assert positives(prompts, 0.0, 90.0) == [{"back": 1.0}] * 2
    with pytest.raises(ValueError, match=r"perp_neg needs view-dependent prompts"):
        PromptSet(
            world(), "back", config=PromptConfig(view_dependent=False, perp_neg="threestudio")
        )


def test_the_words_are_those_that_mini_was_taught() -> None:
    """They are written twice, in prompts.py and in mini/corpus.py, and so are the thresholds."""
    assert set(VIEW_WORDS) == set(corpus.VIEWS)
    azimuth = [0.0, 44.99, 45.0, 45.01, 90.0, 134.99, 135.0, 135.01, 180.0, 200.0, 315.0, 359.0]
    elevation = [-30.0, 0.0, 59.99, 60.0, 60.01, 90.0]
    grid = [(sign * a, e) for a in azimuth for e in elevation for sign in (1.0, -1.0)]
    views = around(*(a for a, _ in grid), elevation_deg=[e for _, e in grid])
    ours = [VIEW_WORDS[k] for k in view_index(views, PromptConfig()).tolist()]
    assert ours == [corpus.view_word(a, e) for a, e in grid]
    assert len(set(ours)) == 4


def test_the_sentence_with_a_view_is_one_that_mini_was_taught() -> None:
    said: list[str] = []

    class Spy(Latent):
        def embed(self, prompts):  # type: ignore[no-untyped-def]
            said.extend(prompts)
            return super().embed(prompts)

    PromptSet(Spy(randn(1, *SHAPE), torch.ones(1).double()), "a red mug")
    rng = np.random.default_rng(0)
    captions = {corpus.caption("mug", "red", word, rng) for word in corpus.VIEWS for _ in range(99)}
    assert {text for text in said if text} <= captions


# --- Perp-Neg -------------------------------------------------------------------------------------


def blended(azimuth_deg: float) -> dict[str, float]:
    """Both published codes: linear in the azimuth, from front to side and from side to back."""
    turn = abs(azimuth_deg)
    if turn < 90.0:
        shares = {"front": 1.0 - turn / 90.0, "side": turn / 90.0}
    else:
        shares = {"side": 2.0 - turn / 90.0, "back": turn / 90.0 - 1.0}
    return {word: share for word, share in shares.items() if share > 1e-12}


def published(variant: str, azimuth_deg: float) -> dict[str, float]:
    """The weight of each word's negative, with the constants of the two published codes."""
    turn = abs(azimuth_deg)
    if turn < 90.0:
        r = 1.0 - turn / 90.0  # 1 in front, 0 at the side
        if variant == "threestudio":
            front, side = (-(4.0 * math.exp(-0.5 * x) - 2.426) for x in (r, 1.0 - r))
        else:
            front = 0.0 if r > 0.8 else -2.0 * math.exp(-2.0 * r)
            side = 0.0 if r < 0.2 else -2.0 * math.exp(-10.0 * (1.0 - r))
    else:
        r = 2.0 - turn / 90.0  # 1 at the side, 0 behind
        if variant == "threestudio":
            side, front = (-(math.exp(-0.5 * r) + c) for c in (-0.606, 0.967))
        else:
            side, front = (0.0 if r > 0.8 else -math.exp(-10.0 * r)), -2.0
    return {"front": front, "side": side}


AZIMUTHS = (0.0, 10.0, 30.0, 60.0, 80.0, 90.0, 100.0, 120.0, 160.0, 180.0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("azimuth", AZIMUTHS)
def test_the_positive_is_a_blend_of_two_views(variant: str, azimuth: float) -> None:
    prompts = PromptSet(world(), "thing", config=PromptConfig(perp_neg=variant))  # type: ignore[arg-type]
    for side in (azimuth, -azimuth, azimuth + 360.0):
        (found,) = positives(prompts, side, elevation_deg=59.9)
        assert found == pytest.approx(blended(azimuth))
        assert positives(prompts, side, elevation_deg=60.1) == [{"overhead": 1.0}]


def test_at_thirty_degrees_two_thirds_are_front() -> None:
    prompts = PromptSet(world(), "thing", config=PromptConfig(perp_neg="threestudio"))
    one, other = positives(prompts, 30.0, 120.0)
    assert one == pytest.approx({"front": 2 / 3, "side": 1 / 3})
    assert other == pytest.approx({"side": 2 / 3, "back": 1 / 3})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("azimuth", AZIMUTHS)
def test_negatives_and_weights_are_the_published_ones(variant: str, azimuth: float) -> None:
    config = PromptConfig(perp_neg=variant)  # type: ignore[arg-type]
    conditions = PromptSet(world(), "thing", config=config).conditions(around(azimuth))
    assert conditions.weights is not None
    found = {}
    for negative, weight in zip(conditions.negatives, conditions.weights[0], strict=True):
        row = negative["weights"][0]
        assert float(row.max()) == 1.0  # one word alone
        found[WORDS[int(row.argmax())]] = float(weight)
    assert found == pytest.approx(published(variant, azimuth), abs=1e-12)


def test_the_cuts_of_stable_dreamfusion_from_both_sides() -> None:
    """Its weights jump to zero where the share of a view is above 0.8 or below 0.2."""
    config = PromptConfig(perp_neg="stable-dreamfusion")
    expected = {
        17.9: (0.0, -2.0 * math.exp(-10 * 17.9 / 90)),  # the share of the front is 0.801
        18.1: (-2.0 * math.exp(-2 * (1 - 18.1 / 90)), -2.0 * math.exp(-10 * 18.1 / 90)),
        71.9: (-2.0 * math.exp(-2 * (1 - 71.9 / 90)), -2.0 * math.exp(-10 * 71.9 / 90)),
        72.1: (-2.0 * math.exp(-2 * (1 - 72.1 / 90)), 0.0),
        107.9: (0.0, -2.0),
        108.1: (-math.exp(-10 * (2 - 108.1 / 90)), -2.0),
    }
    weights = perp_neg_blend(around(*expected), config).weight
    for found, wanted in zip(weights.tolist(), expected.values(), strict=True):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def across(e: Tensor, p: Tensor) -> Tensor:
    """The part of ``e`` that is at a right angle to ``p``, one sample each, by Gram and Schmidt."""
    unit = p / p.norm()
    return e - (e.flatten() @ unit.flatten()) * unit


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [-7.5, 1.0, 7.5])
@pytest.mark.parametrize("negative", ["", "ugly"])
def test_the_direction_is_the_positive_and_what_of_the_negatives_is_across_it(
    variant: str, scale: float, negative: str
) -> None:
    """``e_pos + sum_i w_i perp(e_i, e_pos)`` from the prediction without words or under the
    negative prompt: written out with ``embed`` and ``predict_noise`` alone, in a batch whose views
    have their own words, weights and times."""
    model, azimuths, t = world(), (10.0, -30.0, 140.0, 75.0), torch.tensor([400, 150, 700, 950])
    x = randn(4, *SHAPE, seed=2)
    config = PromptConfig(perp_neg=variant)  # type: ignore[arg-type]
    predict = GuidedPredictor(
        model, PromptSet(model, "thing", negative, config).conditions(around(*azimuths))
    )
    found = predict(x, t, scale)
    for i, azimuth in enumerate(azimuths):

        def eps(word: str, i: int = i) -> Tensor:
            return model.predict_noise(x[i : i + 1], t[i : i + 1], model.embed([word]))

        shares = model.embed(["nothing"])["weights"].zero_()
        for word, share in blended(azimuth).items():
            shares[0, WORDS.index(word)] = share
        mixed = Condition({"weights": shares})
        base = eps(negative)
        positive = model.predict_noise(x[i : i + 1], t[i : i + 1], mixed) - base
        direction = positive
        for word, weight in published(variant, azimuth).items():
            direction = direction + weight * across(eps(word) - base, positive)
        assert float((direction - positive).abs().max()) > 1e-3  # negatives matter here
        torch.testing.assert_close(found[i : i + 1], base + scale * direction)


def test_a_negative_of_weight_zero_is_not_asked() -> None:
    """At 5 degrees stable-dreamfusion has one negative, at 100 degrees one, at 40 both."""
    model, x = world(), randn(3, *SHAPE)
    config = PromptConfig(perp_neg="stable-dreamfusion")
    conditions = PromptSet(model, "thing", config=config).conditions(around(5, 100, 40))
    predict = GuidedPredictor(model, conditions)
    predict(x, torch.tensor([300] * 3), 7.5)
    assert predict.evaluations == 3 * 2 + 1 + 1 + 2
