# SPDX-License-Identifier: Apache-2.0
"""A saved state is looked at before any of it is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from representations.gaussians import GaussianConfig, GaussianRenderer
from representations.instant_ngp import InstantNGPConfig, InstantNGPRenderer
from representations.interface import Renderer

CPU = torch.device("cpu")


def splats() -> Renderer:
    return GaussianRenderer(GaussianConfig(count=20, max_count=20), CPU)


def field() -> Renderer:
    from representations.instant_ngp.config import GridConfig, MarchConfig

    grid = GridConfig(levels=3, log2_size=8, base_resolution=4, max_resolution=12, start_levels=2)
    return InstantNGPRenderer(InstantNGPConfig(grid=grid, march=MarchConfig(resolution=8)), CPU)


MAKERS = {"splats": splats, "field": field}


def trained(name: str) -> tuple[Renderer, dict[str, Any]]:
    """A step of the optimiser done, so that there are moments."""
    shape = MAKERS[name]()
    for optimizer in shape.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return MAKERS[name](), shape.state_dict()


def moment(state: dict[str, Any], value: Any) -> None:
    state["optimizer"]["state"][0]["exp_avg"] = value


def tensors(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = state.get("gaussians") or state["field"]
    return found


def first(state: dict[str, Any], value: Any) -> None:
    held = tensors(state)
    name = next(iter(held))
    held[name] = value(held[name])


def not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[0] = torch.nan
    return spoilt


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a moment of another shape": (lambda s: moment(s, torch.zeros(3)), "exp_avg has shape"),
    "a moment that is none": (lambda s: moment(s, "x"), "exp_avg is no tensor"),
    "a moment that is NaN": (
        lambda s: moment(s, not_a_number(s["optimizer"]["state"][0]["exp_avg"])), "not finite"
    ),
    "a moment too few": (lambda s: s["optimizer"]["state"][0].pop("exp_avg_sq"), "lacks moments"),
    "moments of nobody": (
        lambda s: s["optimizer"]["state"].update({99: {}}), "moments of 99"
    ),
    "no moments": (lambda s: s["optimizer"].pop("state"), "has no moments"),
    "no groups": (lambda s: s["optimizer"].pop("param_groups"), "groups of parameters"),
    "a rate that is a word": (
        lambda s: s["optimizer"]["param_groups"][0].update(lr="x"), r"param_groups\.0\.lr is 'x'"
    ),
    "a rate below 0": (lambda s: s["optimizer"]["param_groups"][0].update(lr=-1.0), r"\.lr is"),
    "a rate that is NaN": (
        lambda s: s["optimizer"]["param_groups"][0].update(lr=float("nan")), r"\.lr is 'nan'"
    ),
    "a rate beyond numbers": (
        lambda s: s["optimizer"]["param_groups"][0].update(weight_decay=10**30), "weight_decay"
    ),
    "betas that are one": (
        lambda s: s["optimizer"]["param_groups"][0].update(betas=3), r"\.betas is"
    ),
    "a parameter that is NaN": (lambda s: first(s, not_a_number), "not finite"),
    "a parameter that is none": (lambda s: first(s, lambda _: None), "is no tensor"),
    "no environment": (lambda s: s.pop("environment"), "environment holds NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_state_that_does_not_fit_changes_nothing(name: str, edit: str) -> None:
    shape, state = trained(name)
    before = copy.deepcopy(tensors(shape.state_dict()))
    change, told = EDITS[edit]
    change(state)
    with pytest.raises(ValueError, match=told):
        shape.load_state_dict(state)
    after = tensors(shape.state_dict())
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_that_fits_is_taken(name: str) -> None:
    shape, state = trained(name)
    shape.load_state_dict(state)
    after = tensors(shape.state_dict())
    assert all(torch.equal(value, after[key]) for key, value in tensors(state).items())
