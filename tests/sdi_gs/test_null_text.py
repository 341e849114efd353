# SPDX-License-Identifier: Apache-2.0
"""Null-text inversion: paths in closed form, a restatement of the published loop, and what must
hold for every model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdi_gs.config import from_plain
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.errors import UserError
from sdi_gs.experiments.base import Bench
from sdi_gs.experiments.null_text import SCALES, measure
from sdi_gs.guidance.null_text import NullText, retrace
from sdi_gs.guidance.prompts import Conditions

from .doubles import randn

TABLE = scaled_linear_alpha_bar().double()
SHAPE = (3, 2, 2)


class Told:
    """A network whose noise is what it is told, in part: ``share x + B words``. Its words are as
    many numbers as a sample has, so that some lead anywhere."""

    alpha_bar, views_together = TABLE, 1

    def __init__(self, share: float = 0.3, strength: float = 0.8) -> None:
        self.share, self.strength, self.asked = share, strength, 0

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.asked += len(x_t)
        return self.share * x_t + self.strength * condition["words"].reshape(x_t.shape)

    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 * latents + 0.5


def told(seed: int, count: int = 2) -> Condition:
    return Condition({"words": randn(count, 12, seed=seed), "kind": torch.arange(count)})


def inverted(model: Any, z: Tensor, sentence: Condition, steps: int) -> tuple[list[Tensor], Tensor]:
    """By DDIM as sums in x / sqrt(alpha_bar)."""
    times = torch.tensor([round(k * 999 / steps) for k in range(steps + 1)])
    path = [z]
    for a, b in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        eps = model.predict_noise(path[-1], torch.full((len(z),), a), sentence)
        path.append(carried(path[-1], eps, a, b))
    return path, times


def carried(x: Tensor, eps: Tensor, a: int, b: int) -> Tensor:
    levels = [1.0 if k == 0 else float(TABLE[k]) for k in (a, b)]
    sigmas = [math.sqrt((1 - level) / level) for level in levels]
    return math.sqrt(levels[1]) * (x / math.sqrt(levels[0]) + (sigmas[1] - sigmas[0]) * eps)


def error(end: Tensor, z: Tensor) -> float:
    return float((end - z).square().mean())


@pytest.mark.parametrize("scale", [1.0, 2.0, 7.5])
def test_without_optimising_it_is_ddim_with_guidance(scale: float) -> None:
    model, empty, sentence = Told(), told(1), told(2)
    path, times = inverted(model, randn(2, *SHAPE), sentence, 10)
    model.asked = 0
    back = retrace(model, (empty, sentence), path, times, scale)
    x = path[-1]
    for a, b in zip(times.tolist()[:0:-1], times.tolist()[-2::-1], strict=True):
        none, cond = (0.3 * x + 0.8 * c["words"].reshape(x.shape) for c in (empty, sentence))
        x = carried(x, none + scale * (cond - none), a, b)
    torch.testing.assert_close(back.end, x, rtol=1e-9, atol=1e-9)
    assert back.evaluations == model.asked == 2 * 2 * 10
    assert all(torch.equal(each["words"], empty["words"]) for each in back.empty)


def test_at_scale_one_the_empty_words_have_no_say() -> None:
    model, sentence = Told(), told(2)
    path, times = inverted(model, randn(2, *SHAPE), sentence, 10)
    ways = ((1, None), (1, NullText()), (5, NullText(iterations=50)))
    ends = [
        retrace(model, (told(seed), sentence), path, times, 1.0, config).end
        for seed, config in ways
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-12)


def test_words_that_lead_back_are_found() -> None:
    """Some lead back exactly: with as many words as numbers there is a root, and Adam comes near
    it. With the empty prompt as it was the picture is lost."""
    model, empty, sentence = Told(), told(1), told(2)
    z = randn(2, *SHAPE)
    path, times = inverted(model, z, sentence, 10)
    plain = retrace(model, (empty, sentence), path, times, 7.5)
    eager = NullText(iterations=300, rate=0.05, enough=0.0, slack=0.0)
    found = retrace(model, (empty, sentence), path, times, 7.5, eager)
    assert error(plain.end, z) > 1.0
    assert error(found.end, z) < 1e-3 * error(plain.end, z)
    assert all(torch.equal(each["kind"], empty["kind"]) for each in found.empty)
    same = retrace(model, (sentence, sentence), path, times, 7.5)
    torch.testing.assert_close(same.end, retrace(model, (empty, sentence), path, times, 1.0).end)


def published(
    eps: Callable[[Tensor, Tensor], Tensor], words: tuple[Tensor, Tensor], path: list[Tensor],
    times: list[int], scale: float, config: NullText,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The loop of the published code for one picture: Adam written out, one rate and one bound for
    each step; the nearest words that were tried instead of the last."""
    empty, sentence = words
    x, used, count = path[-1], [], len(times) - 1
    for i in range(count):
        k = count - i
        wanted, best, least = path[k - 1], empty, math.inf
        moving, m, v = empty.clone(), torch.zeros_like(empty), torch.zeros_like(empty)
        rate, bound = config.rate * (1 - i / (2 * count)), config.enough + config.slack * i / count
        for j in range(config.iterations + 1):
            free = moving.clone().requires_grad_()
            none = eps(x, free)
            there = carried(x, none + scale * (eps(x, sentence) - none), times[k], times[k - 1])
            loss = (there - wanted).square().mean()
            if loss.item() < least:
                best, least = moving.clone(), loss.item()
            if least <= bound:
                break
            (slope,) = torch.autograd.grad(loss, free)
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope.square()
            first, second = m / (1 - 0.9 ** (j + 1)), v / (1 - 0.999 ** (j + 1))
            moving = moving - rate * first / (second.sqrt() + 1e-8)
        empty = best
        none = eps(x, empty)
        x = carried(x, none + scale * (eps(x, sentence) - none), times[k], times[k - 1])
        used.append(empty)
    return x.detach(), used


@pytest.mark.parametrize("config", [NullText(), NullText(rate=0.3, iterations=7, slack=0.5)])
def test_it_is_the_published_loop(config: NullText) -> None:
    model, empty, sentence = Told(), told(1, 1), told(2, 1)
    path, times = inverted(model, randn(1, *SHAPE), sentence, 6)
    end, used = published(
        lambda x, words: 0.3 * x + 0.8 * words.reshape(x.shape),
        (empty["words"], sentence["words"]), path, times.tolist(), 3.0, config,
    )  # fmt: skip
    back = retrace(model, (empty, sentence), path, times, 3.0, config)
    torch.testing.assert_close(back.end, end, rtol=1e-7, atol=1e-7)
    for mine, theirs in zip(back.empty, used, strict=True):
        torch.testing.assert_close(mine["words"], theirs, rtol=1e-7, atol=1e-7)
    assert error(back.end, path[0]) < error(
        retrace(model, (empty, sentence), path, times, 3.0).end, path[0]
    )


def test_pictures_do_not_know_of_one_another() -> None:
    model, empty, sentence = Told(), told(1), told(2)
    path, times = inverted(model, randn(2, *SHAPE), sentence, 6)
    config = NullText(enough=0.0, slack=0.0)
    whole = retrace(model, (empty, sentence), path, times, 4.0, config)
    for i in range(2):
        row = torch.tensor([i])
        alone = retrace(
            model, (empty.rows(row), sentence.rows(row)), [x[i : i + 1] for x in path], times, 4.0,
            config,
        )  # fmt: skip
        torch.testing.assert_close(alone.end[0], whole.end[i], rtol=1e-9, atol=1e-9)


def test_on_a_mixture_it_is_never_farther_than_ddim() -> None:
    """Its words are weights of components, some of which are nothing and cannot be moved."""
    rows = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.9, 0.1]], dtype=torch.float64)
    empty, sentence = (Condition({"weights": each.expand(2, 3)}) for each in rows)
    world = GaussianMixture(randn(3, *SHAPE, seed=7), torch.tensor([0.3, 0.2, 0.4]).double())
    z = world.means[1] + 0.3 * randn(2, *SHAPE)
    path, times = inverted(world, z, sentence, 20)
    for scale in (2.0, 5.0):
        plain, found = (
            retrace(world, (empty, sentence), path, times, scale, config)
            for config in (None, NullText(iterations=20, rate=0.02))
        )
        assert bool(torch.isfinite(found.end).all())
        assert error(found.end, z) < error(plain.end, z)


def test_words_of_a_real_network_are_moved(tiny_model: Path) -> None:
    """Of a random one, whose weights stay as they are."""
    model = StableDiffusion.load(tiny_model)
    words = model.embed(["", "", "a red mug", "a cat"])
    empty, sentence = words.rows(torch.tensor([0, 1])), words.rows(torch.tensor([2, 3]))
    z = model.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    before = [weight.clone() for weight in model.unet.parameters()]
    with torch.no_grad():
        path, times = inverted(model, z, sentence, 5)
    plain, found = (
        retrace(model, (empty, sentence), path, times, 4.0, config)
        for config in (None, NullText(iterations=20, enough=0.0, slack=0.0))
    )
    assert error(found.end, z) < 0.9 * error(plain.end, z)
    after = model.unet.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(weight.grad is None for weight in model.unet.parameters())


def bench(model: Any) -> Bench:
    conditions = Conditions(told(1), told(2))
    return Bench(model, conditions, 0.3 * randn(2, *SHAPE), 7.5, from_plain({"prompt": "x"}), 0)


def test_the_experiment_orders_the_three() -> None:
    rows = measure(bench(Told()), lambda said: None, 10).rows
    by = {(row["method"], row["cfg_scale"]): row for row in rows}
    names = list(dict.fromkeys(row["method"] for row in rows))
    assert names == ["DDIM", "negative-prompt inversion", "null-text inversion"]
    plain, cancelled, found = names
    for scale in SCALES[1:]:
        one, two, three = (by[name, scale]["psnr_db"] for name in names)
        assert one < three  # what is optimised is nearer than what is not
        assert one < two
        assert by[found, scale]["samples_per_picture"] > by[plain, scale]["samples_per_picture"]
        assert two == pytest.approx(by[cancelled, 1.0]["psnr_db"], abs=1e-6)
    assert len({round(by[name, 1.0]["psnr_db"], 6) for name in names}) == 1


def test_a_network_without_slopes_is_refused() -> None:
    class Blind(Told):
        @torch.no_grad()
        def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return super().predict_noise(x_t, t, condition)

    with pytest.raises(UserError, match=r"write model\.compile=no"):
        measure(bench(Blind()), lambda said: None, 3)
    for wrong in ({"iterations": -1}, {"rate": 0.0}, {"enough": -1.0}, {"slack": -1.0}):
        with pytest.raises(ValueError, match="is not possible"):
            NullText(**wrong)  # type: ignore[arg-type]
