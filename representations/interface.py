# SPDX-License-Identifier: Apache-2.0
"""The contract between a trainer and a 3D representation.

A trainer knows cameras, pictures and gradients on pictures. A representation knows geometry.
Nothing else crosses this line: no text, no diffusion, no Gaussian, no ray.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras, OpenCV frame (+x right, +y down, +z into the scene).

    Pixel centres lie at +0.5, so a camera of width ``W`` sees columns ``0.5 .. W - 0.5``.
    """

    world_to_cam: Tensor  # [B, 4, 4] float32, rigid
    intrinsics: Tensor  # [B, 3, 3] float32, pixels: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    width: int  # pixels
    height: int  # pixels
    first: int = 0  # place of the first camera in the batch that these are a part of

    def __len__(self) -> int:
        return int(self.world_to_cam.shape[0])

    def __getitem__(self, index: slice) -> Cameras:
        """A sub-batch; takes a slice, so that the result is a batch again."""
        start, _, stride = index.indices(len(self))
        if stride != 1:
            raise ValueError(f"a sub-batch is a run of cameras, not every {stride}th")
        return replace(
            self,
            world_to_cam=self.world_to_cam[index],
            intrinsics=self.intrinsics[index],
            first=self.first + start,
        )

    def to(self, device: torch.device | str) -> Cameras:
        return replace(
            self,
            world_to_cam=self.world_to_cam.to(device),
            intrinsics=self.intrinsics.to(device),
        )

    @property
    def positions(self) -> Tensor:
        """Camera centres in the world, [B, 3]."""
        rotation, translation = self.world_to_cam[:, :3, :3], self.world_to_cam[:, :3, 3]
        return -(rotation.transpose(1, 2) @ translation[..., None])[..., 0]


class Render(NamedTuple):
    """Pictures of the current shape, each [B, C, H, W] float32."""

    rgb: Tensor  # [B, 3, H, W] in [0, 1] as displayed, background composited
    alpha: Tensor  # [B, 1, H, W] in [0, 1]
    depth: Tensor  # [B, 1, H, W] expected z-depth where alpha > 0, else 0; world units
    normal: Tensor  # [B, 3, H, W] world frame, unit length where the surface is opaque, else 0


Trace = Any
"""What a renderer wants to remember about one render; opaque to everybody else."""


@dataclass(frozen=True)
class RefineReport:
    """What :meth:`Renderer.refine` did to the structure, for the log."""

    size: int  # how many primitives (splats, occupied cells) exist now
    added: int = 0
    removed: int = 0
    events: tuple[str, ...] = field(default=())
    unit: str = "splats"  # what is counted, for people


class Exchange(Protocol):
    """What a representation has in common with copies of itself in other processes, each of which
    draws other views of a step."""

    count: int  # processes

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        ...

    def greatest(self, values: Tensor) -> Tensor:
        """Largest over the processes."""
        ...


class Alone:
    """One process."""

    count = 1

    def total(self, values: Tensor) -> Tensor:
        return values

    def greatest(self, values: Tensor) -> Tensor:
        return values


@runtime_checkable
class Renderer(Protocol):
    """A differentiable 3D (or 2D) representation. It owns its parameters and their optimiser.

    Whatever is random about a view depends on the step and on the view's place in its batch alone,
    and a term of several views is the mean of their own, so that the views of a step may be drawn
    together, in portions, or by several processes.
    """

    optimizer: torch.optim.Optimizer
    exchange: Exchange  # Alone() unless somebody else sets it

    def render(self, cameras: Cameras, background: Tensor | None) -> tuple[Render, Trace]:
        """Draw. ``background`` is [B, 3] in [0, 1], or None for the representation's own
        learned environment."""
        ...

    def terms(self, trace: Trace, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Unweighted scalar regularisers of that render, by name (None = all of them); the
        trainer weighs them, and asks only for those that have a weight. ValueError for a name
        that does not exist."""
        ...

    def refine(self, step: int, *traces: Trace) -> RefineReport:
        """Everything that happens between optimiser steps: structure edits and the learning
        rates of the next step. Called after ``optimizer.step()``, before ``zero_grad``, with the
        traces of all views of the step that this process has drawn."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser moments and statistics: enough to continue bit for bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
