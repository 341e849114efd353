# SPDX-License-Identifier: Apache-2.0
"""One shape taught the pictures of another, through the common contract: from random cameras on
random backgrounds, so that both colour and opacity are copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator

from representations.interface import Renderer
from representations.telling import each

from .views import ViewPolicy

SAY_EVERY = 100  # steps


class Fit(NamedTuple):
    """How long, with what pictures."""

    steps: int
    batch: int  # views per step
    resolution: int  # pixels of a view


def all_around(views: ViewPolicy) -> ViewPolicy:
    """The run's cameras, from every side and from nearly straight above and below."""
    return dataclasses.replace(
        views, azimuth_deg=(-180.0, 180.0), elevation_deg=(-60.0, 85.0), position_jitter=0.0,
        target_jitter=0.0, up_jitter=0.0,
    )  # fmt: skip


def fit(
    student: Renderer,
    teacher: Renderer,
    views: ViewPolicy,
    length: Fit,
    rng: Generator,
    device: torch.device,
    say: Callable[[str], object],
) -> None:
    """Teach ``student`` the pictures of ``teacher`` by their mean absolute difference."""
    around = all_around(views)
    for step in each(range(length.steps), "step"):
        cameras, _ = around.sample(length.batch, length.resolution, rng)
        cameras = cameras.to(device)
        behind = torch.rand(length.batch, 3, generator=rng).to(device)
        with torch.no_grad():
            wanted = teacher.render(cameras, behind)[0].rgb
        render, trace = student.render(cameras, behind)
        loss = (render.rgb - wanted).abs().mean()
        loss.backward()
        for optimizer in student.optimizers:
            optimizer.step()
        student.refine(step, trace)
        for optimizer in student.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % SAY_EVERY == 0:
            say(f"fit {step + 1}/{length.steps}  mean difference {float(loss.detach()):.4f}")
