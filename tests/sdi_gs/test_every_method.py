# SPDX-License-Identifier: Apache-2.0
"""What holds for every method that has a preset, a new one included: two views of a step get what
each gets alone, with the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Generator, Tensor

from sdi_gs import methods
from sdi_gs.config import Config, guidances, load
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.guidance import Guidance, PromptSet, Viewpoints
from sdi_gs.guidance.draws import ViewSlice
from sdi_gs.guidance.variational import Variational

from .doubles import before_a_wall

VIEWS = before_a_wall(
    Viewpoints.orbit(torch.tensor([20.0, -130.0]), torch.tensor([10.0, 40.0])), 16
)


class Answer(NamedTuple):
    """What a method answers, view by view."""

    target: Tensor  # [B, c, h, w]
    kappa: Tensor
    gradient: Tensor  # [B, 3, H, W] of the loss of all views on each picture, times their number
    evaluations: int


def taught(config: Config, model: StableDiffusion) -> Guidance:
    """The method after one step on two views, so that whatever it learns is learned."""
    torch.manual_seed(0)  # low-rank weights begin at random
    prompts = PromptSet(model, config.prompt, config.negative_prompt, config.prompts)
    method = methods.guidance(config, model, prompts, config.noise)
    rgb = torch.rand((2, 3, 16, 16), generator=Generator().manual_seed(8))
    method(rgb, VIEWS, 40, Generator().manual_seed(1))
    return method


def ask(method: Guidance, first: int, count: int) -> Answer:
    """Step 41 of views ``first`` to ``first + count`` of two."""
    # A second network answers view by view and is taught by all of them together.
    inner = method.inner if isinstance(method, Variational) else method
    pictures = torch.rand((2, 3, 16, 16), generator=Generator().manual_seed(9))
    mine = slice(first, first + count)
    rgb = pictures[mine].clone().requires_grad_()
    rng = ViewSlice(Generator().manual_seed(2), first, 2)
    guided = inner(rgb, VIEWS[mine], 41, rng)
    (gradient,) = torch.autograd.grad(guided.loss, rgb)
    return Answer(guided.target, guided.kappa, gradient * count, guided.evaluations)


@pytest.mark.parametrize("perp_neg", ["none", "threestudio"])
@pytest.mark.parametrize("name", [*guidances(), "ism at times of their own"])
def test_two_views_get_what_each_gets_alone(tiny_model: Path, name: str, perp_neg: str) -> None:
    settings = [
        "prompt=a mug", f"model.source={tiny_model}", "steps=100", f"prompts.perp_neg={perp_neg}",
    ]  # fmt: skip
    name, _, own_times = name.partition(" at ")
    if own_times:
        settings.append("guidance.t.same_for_batch=false")
    config = load("mini", settings, name)
    model = StableDiffusion.load(tiny_model)
    together = ask(taught(config, model), 0, 2)
    alone = [ask(taught(config, model), i, 1) for i in (0, 1)]
    for field in ("target", "kappa", "gradient"):
        whole = getattr(together, field)
        assert float(whole.abs().max()) > 0
        for i, single in enumerate(alone):
            # float32; ten guided iterations of a random network multiply its rounding to 2e-4.
            scale = float(whole.abs().max())
            torch.testing.assert_close(
                getattr(single, field)[0], whole[i], rtol=1e-3, atol=5e-4 * scale, msg=field
            )
        apart = (whole[0] - whole[1]).abs().max() / whole.abs().max()
        assert field == "kappa" or float(apart) > 1e-2  # fixed noise is one noise
    # Views with fewer inversion steps than their neighbour wait for it and are asked all the same.
    spent = sum(single.evaluations for single in alone)
    assert together.evaluations > spent if own_times else together.evaluations == spent
