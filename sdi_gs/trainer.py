# SPDX-License-Identifier: Apache-2.0
"""One optimisation step, and the loop around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from representations.interface import Cameras, RefineReport, Render, Renderer, Trace
from representations.sending import send

from .errors import DIVERGED, RunFailure
from .estimates import Estimates
from .guidance import Guidance, Viewpoints
from .guidance.draws import Rng, ViewSlice
from .ramp import Ramp
from .stopwatch import Stopwatch
from .team import ALONE, Team, share


class Views(Protocol):
    def sample(
        self, count: int, resolution: int, rng: Generator, together: int = 1
    ) -> tuple[Cameras, Viewpoints]: ...


BackgroundColours = Callable[[int, Generator], Tensor | None]
"""``background(views, rng)``: colours [B, 3], or None for the representation's own."""


@dataclass
class Training:
    """Everything a step needs, already built."""

    renderer: Renderer
    guidance: Guidance
    views: Views
    background: BackgroundColours
    weights: dict[str, Ramp]  # of the terms of the loss, by name
    rng: Generator  # on the CPU; the only source of randomness of a run
    steps: int  # of the whole run
    batch: int  # views per step
    resolution: int  # pixels
    device: torch.device
    cooldown: float = 0.0  # share of the schedule, at its end, over which every rate falls to zero
    schedule: int | None = None  # steps over which weights and rates move; None: all
    micro_batch: int | None = None  # views per forward and backward pass; None: the whole batch
    together: int = 1  # views that the diffusion model must see side by side
    team: Team = ALONE  # processes that share the views of a step
    estimates: Estimates | None = None  # terms that are not the renderer's own
    # The generator's state before a step that changed nothing yet.
    _before: Tensor | None = field(default=None, init=False, repr=False)

    def undo_step(self) -> bool:
        """Go back to before the step that was broken off; False where it has changed something. A
        guidance that learns has changed as soon as it was asked."""
        if self._before is None or self.team.count > 1 or self.guidance.state_dict():
            return False
        self.rng.set_state(self._before)
        for optimizer in self.renderer.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return True


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
    """A loss or a gradient stopped being a number; the parameters were not touched. The method
    diverged, which is a result: exit code 3."""

    exit_code = DIVERGED


class MicroBatch(NamedTuple):
    """Some views of a step, on their way through one forward and backward pass."""

    cameras: Cameras
    viewpoints: Viewpoints
    background: Tensor | None


class MicroBatchResult(NamedTuple):
    """What one forward and backward pass left behind."""

    trace: Trace
    losses: dict[str, Tensor]  # detached shares of the losses of the step
    t: Tensor  # [B]
    evaluations: int


def train_step(training: Training, step: int) -> StepReport:
    """One optimisation step: render, guide, backpropagate, update, refine."""
    watch = Stopwatch(training.device)
    renderer, team = training.renderer, training.team
    training._before = training.rng.get_state()

    # Every process draws all views, and works on its own.
    cameras, viewpoints = training.views.sample(
        training.batch, training.resolution, training.rng, training.together
    )
    background = training.background(training.batch, training.rng)
    done = []
    for mine, rng in micro_batches(training):
        part = on_device(cameras[mine], None if background is None else background[mine], training)
        done.append(
            accumulate(training, step, MicroBatch(part[0], viewpoints[mine], part[1]), rng, watch)
        )

    team.add_gradients(_parameters(renderer.optimizers))
    losses, t, evaluations, finite = reduce_losses(training, done)
    require_finite(renderer.optimizers, losses, finite, step)
    training._before = None
    with rates_times(renderer.optimizers, rate_factor(training, step)):
        for optimizer in renderer.optimizers:
            optimizer.step()
    watch.lap("backward")

    # Let the representation tidy its structure.
    refined = renderer.refine(step, *(result.trace for result in done))
    for optimizer in renderer.optimizers:
        optimizer.zero_grad(set_to_none=True)
    watch.lap("refine")

    return StepReport(
        step=step,
        t=t,
        losses=losses,
        refined=refined,
        evaluations=evaluations,
        seconds=watch.seconds,
    )


def on_device(
    cameras: Cameras, background: Tensor | None, training: Training
) -> tuple[Cameras, Tensor | None]:
    """Cameras and colours where the shape is, in one copy."""
    given = [cameras.world_to_cam, cameras.intrinsics]
    there = send(given if background is None else [*given, background], training.device)
    return cameras.with_values(*there[:2]), None if background is None else there[2]


def micro_batches(training: Training) -> Iterator[tuple[slice, Rng]]:
    """This process's micro-batches with their random streams. A view's random numbers do not depend
    on how the batch is split; after the last micro-batch the run's generator stands where the whole
    batch would have left it."""
    parts = share(training.team, training.batch, training.micro_batch, training.together)
    if len(parts) == training.team.count == 1:
        yield parts[0], training.rng
        return
    before = training.rng.get_state()
    for part in parts:
        training.rng.set_state(before)
        yield part, ViewSlice(training.rng, part.start, training.batch)


def accumulate(
    training: Training, step: int, part: MicroBatch, rng: Rng, watch: Stopwatch
) -> MicroBatchResult:
    """Render some views, ask what they should have been, and add to the gradients."""
    render, trace = training.renderer.render(part.cameras, part.background)
    watch.lap("render")

    viewpoints = part.viewpoints.seeing(render, part.cameras)
    guided = training.guidance(render.rgb, viewpoints, step, rng, watch)
    losses = {"guidance": guided.loss, **weigh(training, step, render, trace)}
    watch.lap("guidance")

    # Losses are means over views.
    share_ = len(part.cameras) / training.batch
    torch.stack([share_ * value for value in losses.values()]).sum().backward()
    watch.lap("backward")
    shares = {name: share_ * value.detach() for name, value in losses.items()}
    return MicroBatchResult(trace, shares, guided.t, guided.evaluations)


def reduce_losses(
    training: Training, done: list[MicroBatchResult]
) -> tuple[dict[str, float], float, int, bool]:
    """Losses, mean time and denoiser samples of the whole step, and whether all gradients are
    finite: read from the device at once, the only time in a step that it is waited for."""
    names = list(done[0].losses)
    sums = [torch.stack([part.losses[name] for part in done]).sum() for name in names]
    t = torch.cat([part.t for part in done]).float().sum() / training.batch
    evaluations = float(sum(part.evaluations for part in done))
    spent = torch.full((), evaluations, device=training.device)
    odd = ~gradients_finite(training.renderer.optimizers)
    values = torch.stack([value.double() for value in (*sums, t, spent, odd)])
    *losses, t_mean, total, broken = training.team.total(values).tolist()
    return dict(zip(names, losses, strict=True)), t_mean, round(total), broken == 0


def _groups(optimizers: Sequence[Optimizer]) -> Iterator[dict[str, Any]]:
    """Every parameter group of every optimiser."""
    for optimizer in optimizers:
        yield from optimizer.param_groups


def _parameters(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    return [parameter for group in _groups(optimizers) for parameter in group["params"]]


def train(training: Training, first_step: int = 0) -> Iterator[StepReport]:
    """Steps ``first_step`` to the end, one report each; the caller decides what to do with it."""
    for step in range(first_step, training.steps):
        yield train_step(training, step)


def rate_factor(training: Training, step: int) -> float:
    """What the learning rates of ``step`` are multiplied by: 1, then linearly down to zero, which
    would be reached one step after the last. Under a constant rate the shape never stops shaking
    by about one rate in every direction, because each step sees other views and other noise. Steps
    beyond the schedule are a run of their own: at full rates first."""
    first, last = 0, min(training.schedule or training.steps, training.steps)
    if step >= last:
        first, last = last, training.steps
    span = training.cooldown * (last - first)
    return 1.0 if span <= 0.0 else min(1.0, (last - step) / span)


@contextmanager
def rates_times(optimizers: Sequence[Optimizer], factor: float) -> Iterator[None]:
    """Every learning rate times ``factor`` for now; afterwards exactly as before, so that a
    representation may go on with a schedule of its own."""
    groups = list(_groups(optimizers))
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def weigh(training: Training, step: int, render: Render, trace: Trace) -> dict[str, Tensor]:
    """The regularisers that have a weight now, multiplied by it; no other is computed."""
    ramps = training.weights.items()
    weights = {name: ramp.at(step, training.schedule or training.steps) for name, ramp in ramps}
    active = {name: weight for name, weight in weights.items() if weight != 0.0}
    if not active:
        return {}
    estimated = {} if training.estimates is None else training.estimates.terms(render, active)
    own = active.keys() - estimated.keys()
    terms = estimated | (training.renderer.terms(trace, own) if own else {})
    return {name: weight * terms[name] for name, weight in active.items()}


def _gradients(optimizers: Sequence[Optimizer]) -> list[tuple[str, Tensor]]:
    """Name of the group, and gradient, of every parameter that has one."""
    return [
        (group.get("name", f"group {index}"), parameter.grad)
        for index, group in enumerate(_groups(optimizers))
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def gradients_finite(optimizers: Sequence[Optimizer]) -> Tensor:
    """Whether every gradient is, as one value that stays on the device."""
    return torch.stack([torch.isfinite(g).all() for _, g in _gradients(optimizers)]).all()


def require_finite(
    optimizers: Sequence[Optimizer], losses: dict[str, float], finite: bool, step: int
) -> None:
    """Stop before a loss or a gradient that is not a number reaches the parameters; ``finite``:
    :func:`gradients_finite` of the step."""
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise NonFinite(
            f"step {step}: the loss term '{broken[0]}' is {losses[broken[0]]}; "
            f"all terms: {_shown(losses)}"
        )
    if finite:
        return
    odd = [(name, g, int((~torch.isfinite(g)).sum())) for name, g in _gradients(optimizers)]
    name, gradient, count = next(found for found in odd if found[2])
    raise NonFinite(
        f"step {step}: {count} of {gradient.numel()} gradient values of '{name}' are not "
        f"finite, although every loss is; losses: {_shown(losses)}"
    )


def _shown(losses: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
