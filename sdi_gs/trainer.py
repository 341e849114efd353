# SPDX-License-Identifier: Apache-2.0
"""One optimisation step, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from representations.interface import Cameras, RefineReport, Renderer, Trace

from .errors import RunFailure
from .guidance import Guided
from .prompts import ViewAngles
from .schedule import Ramp
from .stopwatch import Stopwatch


class Guidance(Protocol):
    """Says what a picture, seen from there, should have been; as a loss with a gradient."""

    def __call__(self, rgb: Tensor, views: ViewAngles, step: int, rng: Generator) -> Guided: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Views(Protocol):
    def sample(self, count: int, resolution: int, rng: Generator) -> tuple[Cameras, ViewAngles]: ...


Background = Callable[[int, Generator], Tensor | None]
"""``background(views, rng)``: colours [B, 3], or None for the representation's own."""


@dataclass
class Training:
    """Everything a step needs, already built."""

    renderer: Renderer
    guidance: Guidance
    views: Views
    background: Background
    weights: dict[str, Ramp]  # of the renderer's own terms, by name
    rng: Generator  # on the CPU; the only source of randomness of a run
    steps: int  # of the whole run
    batch: int  # views per step
    resolution: int  # pixels
    device: torch.device
    cooldown: float = 0.0  # share of the run, at its end, over which every rate falls to zero


class StepReport(NamedTuple):
    """What one step did, as plain numbers."""

    step: int  # index of the step
    t: float  # mean diffusion time index of the views
    losses: dict[str, float]  # "guidance" and the weighted terms
    refined: RefineReport
    evaluations: int  # samples the denoiser was asked about
    seconds: dict[str, float]  # render, encode, guidance, backward, refine

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


class NonFinite(RunFailure):
    """A loss or a gradient stopped being a number; the parameters were not touched."""


def train_step(training: Training, step: int) -> StepReport:
    """Look, ask, pull, tidy."""
    watch = Stopwatch(training.device)
    renderer, rng = training.renderer, training.rng

    # Look at the shape from somewhere new.
    cameras, views = training.views.sample(training.batch, training.resolution, rng)
    background = _to(training.background(training.batch, rng), training.device)
    render, trace = renderer.render(cameras.to(training.device), background)
    watch.lap("render")

    # Ask the diffusion model what it should have looked like.
    views = ViewAngles(*(angle.to(training.device) for angle in views))
    guided = training.guidance(render.rgb, views, step, rng)
    losses = {"guidance": guided.loss, **weigh(training, step, trace)}
    watch.lap("guidance")
    watch.part("guidance", "encode", guided.encode_seconds)

    # Pull the shape towards the answer.
    require_finite(losses, step)
    torch.stack(list(losses.values())).sum().backward()
    require_finite_gradients(renderer.optimizer, losses, step)
    with rates_times(renderer.optimizer, rate_factor(training, step)):
        renderer.optimizer.step()
    watch.lap("backward")

    # Let the representation tidy its structure.
    refined = renderer.refine(step, trace)
    renderer.optimizer.zero_grad(set_to_none=True)
    watch.lap("refine")

    return StepReport(
        step=step,
        t=float(guided.t.float().mean()),
        losses={name: float(value.detach()) for name, value in losses.items()},
        refined=refined,
        evaluations=guided.evaluations,
        seconds=watch.seconds,
    )


def train(training: Training, first_step: int = 0) -> Iterator[StepReport]:
    """Steps ``first_step`` to the end, one report each; the caller decides what to do with it."""
    for step in range(first_step, training.steps):
        yield train_step(training, step)


def rate_factor(training: Training, step: int) -> float:
    """What the learning rates of ``step`` are multiplied by: 1, then linearly down to zero, which
    would be reached one step after the last. Under a constant rate the shape never stops shaking
    by about one rate in every direction, because each step sees other views and other noise."""
    span = training.cooldown * training.steps
    return 1.0 if span <= 0.0 else min(1.0, (training.steps - step) / span)


@contextmanager
def rates_times(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Every learning rate times ``factor`` for now; afterwards exactly as before, so that a
    representation may go on with a schedule of its own."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def weigh(training: Training, step: int, trace: Trace) -> dict[str, Tensor]:
    """The regularisers that have a weight now, multiplied by it; no other is computed."""
    ramps = training.weights.items()
    weights = {name: ramp.at(step, training.steps) for name, ramp in ramps}
    active = {name: weight for name, weight in weights.items() if weight != 0.0}
    if not active:
        return {}
    terms = training.renderer.terms(trace, active.keys())
    return {name: weight * terms[name] for name, weight in active.items()}


def require_finite(losses: dict[str, Tensor], step: int) -> None:
    """Stop before a loss that is not a number reaches the parameters."""
    broken = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
    if broken:
        raise NonFinite(
            f"step {step}: the loss term '{broken[0]}' is {float(losses[broken[0]].detach())}; "
            f"all terms: {_shown(losses)}"
        )


def require_finite_gradients(
    optimizer: torch.optim.Optimizer, losses: dict[str, Tensor], step: int
) -> None:
    """Stop before a gradient that is not a number reaches the parameters."""
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or bool(torch.isfinite(gradient).all()):
                continue
            name = group.get("name", f"group {index}")
            count = int((~torch.isfinite(gradient)).sum())
            raise NonFinite(
                f"step {step}: {count} of {gradient.numel()} gradient values of '{name}' are not "
                f"finite, although every loss is; losses: {_shown(losses)}"
            )


def _shown(losses: dict[str, Tensor]) -> str:
    return ", ".join(f"{name}={float(value.detach()):.4g}" for name, value in losses.items())


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
