# SPDX-License-Identifier: Apache-2.0
"""One optimisation step, and the loop around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from representations.interface import Cameras, RefineReport, Renderer, Trace

from .errors import RunFailure
from .guidance.distillation import Guided
from .guidance.draws import Part, Rng
from .guidance.prompts import ViewAngles
from .ramp import Ramp
from .stopwatch import Stopwatch
from .team import ALONE, Team, share


class Guidance(Protocol):
    """Says what a picture, seen from there, should have been; as a loss with a gradient."""

    def __call__(self, rgb: Tensor, views: ViewAngles, step: int, rng: Rng) -> Guided: ...

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
    micro_batch: int | None = None  # views worked on at once; None: all that this process has
    team: Team = ALONE  # processes that share the views of a step


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


class Portion(NamedTuple):
    """Some views of a step."""

    cameras: Cameras
    views: ViewAngles
    background: Tensor | None


class Seen(NamedTuple):
    """What one portion of the views of a step left behind."""

    trace: Trace
    losses: dict[str, Tensor]  # detached shares of the losses of the step
    t: Tensor  # [B]
    evaluations: int


def train_step(training: Training, step: int) -> StepReport:
    """Look, ask, pull, tidy."""
    watch = Stopwatch(training.device)
    renderer, team = training.renderer, training.team

    # Every process chooses all views, and works on its own.
    cameras, views = training.views.sample(training.batch, training.resolution, training.rng)
    background = training.background(training.batch, training.rng)
    seen = []
    for mine, rng in portions(training):
        portion = Portion(
            cameras[mine].to(training.device),
            ViewAngles(*(angle[mine] for angle in views)),  # read by the CPU
            None if background is None else background[mine].to(training.device),
        )
        seen.append(pull(training, step, portion, rng, watch))

    team.add_gradients(_parameters(renderer.optimizer))
    losses, t, evaluations, sound = together(training, seen)
    require_finite(renderer.optimizer, losses, sound, step)
    with rates_times(renderer.optimizer, rate_factor(training, step)):
        renderer.optimizer.step()
    watch.lap("backward")

    # Let the representation tidy its structure.
    refined = renderer.refine(step, *(part.trace for part in seen))
    renderer.optimizer.zero_grad(set_to_none=True)
    watch.lap("refine")

    return StepReport(
        step=step,
        t=t,
        losses=losses,
        refined=refined,
        evaluations=evaluations,
        seconds=watch.seconds,
    )


def portions(training: Training) -> Iterator[tuple[slice, Rng]]:
    """The views that this process works on, and what draws for them. Whoever works on a view, it
    gets the same random numbers; after the last portion the run's generator stands where all views
    at once would have left it."""
    parts = share(training.team, training.batch, training.micro_batch)
    if len(parts) == training.team.count == 1:
        yield parts[0], training.rng
        return
    before = training.rng.get_state()
    for part in parts:
        training.rng.set_state(before)
        yield part, Part(training.rng, part.start, training.batch)


def pull(training: Training, step: int, portion: Portion, rng: Rng, watch: Stopwatch) -> Seen:
    """Draw some views, ask what they should have been, and add to the gradients."""
    # Look at the shape from somewhere new.
    render, trace = training.renderer.render(portion.cameras, portion.background)
    watch.lap("render")

    # Ask the diffusion model what it should have looked like.
    guided = training.guidance(render.rgb, portion.views, step, rng)
    losses = {"guidance": guided.loss, **weigh(training, step, trace)}
    watch.part("guidance", "encode", guided.encoding)
    watch.lap("guidance")

    # Pull the shape towards the answer. Losses are means over views.
    part = len(portion.cameras) / training.batch
    torch.stack([part * value for value in losses.values()]).sum().backward()
    watch.lap("backward")
    shares = {name: part * value.detach() for name, value in losses.items()}
    return Seen(trace, shares, guided.t, guided.evaluations)


def together(training: Training, seen: list[Seen]) -> tuple[dict[str, float], float, int, bool]:
    """Losses, mean time and denoiser samples of the whole step, and whether all gradients are
    finite: read from the device at once, the only time in a step that it is waited for."""
    names = list(seen[0].losses)
    sums = [torch.stack([part.losses[name] for part in seen]).sum() for name in names]
    t = torch.cat([part.t for part in seen]).float().sum() / training.batch
    spent = torch.tensor(float(sum(part.evaluations for part in seen)), device=training.device)
    odd = ~all_finite(training.renderer.optimizer)
    values = torch.stack([value.double() for value in (*sums, t, spent, odd)])
    *losses, t_mean, evaluations, broken = training.team.total(values).tolist()
    return dict(zip(names, losses, strict=True)), t_mean, round(evaluations), broken == 0


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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


def _gradients(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """Name of the group, and gradient, of every parameter that has one."""
    return [
        (group.get("name", f"group {index}"), parameter.grad)
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def all_finite(optimizer: torch.optim.Optimizer) -> Tensor:
    """Whether every gradient is, as one value that stays on the device."""
    return torch.stack([torch.isfinite(g).all() for _, g in _gradients(optimizer)]).all()


def require_finite(
    optimizer: torch.optim.Optimizer, losses: dict[str, float], sound: bool, step: int
) -> None:
    """Stop before a loss or a gradient that is not a number reaches the parameters; ``sound``:
    :func:`all_finite` of the step."""
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise NonFinite(
            f"step {step}: the loss term '{broken[0]}' is {losses[broken[0]]}; "
            f"all terms: {_shown(losses)}"
        )
    if sound:
        return
    odd = [(name, g, int((~torch.isfinite(g)).sum())) for name, g in _gradients(optimizer)]
    name, gradient, count = next(found for found in odd if found[2])
    raise NonFinite(
        f"step {step}: {count} of {gradient.numel()} gradient values of '{name}' are not "
        f"finite, although every loss is; losses: {_shown(losses)}"
    )


def _shown(losses: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
