# SPDX-License-Identifier: Apache-2.0
"""The contract between a trainer and a 3D representation.

A trainer knows cameras, pictures and gradients on pictures. A representation knows geometry.
Nothing else crosses this line: no text, no diffusion, no Gaussian, no ray.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .sending import send

if TYPE_CHECKING:
    from .cloud import SplatCloud


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras, OpenCV frame (+x right, +y down, +z into the scene).

    Pixel centres lie at +0.5, so a camera of width ``W`` sees columns ``0.5 .. W - 0.5``.
    """

    world_to_cam: Tensor  # [B, 4, 4] float32, rigid
    intrinsics: Tensor  # [B, 3, 3] float32, pixels: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    width: int  # pixels
    height: int  # pixels
    # Place of the first of these cameras in the batch that they are a part of: a representation
    # whose rendering is random seeds a view by it.
    index_in_batch: int = 0

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
            index_in_batch=self.index_in_batch + start,
        )

    def to(self, device: torch.device | str) -> Cameras:
        return self.with_values(*send([self.world_to_cam, self.intrinsics], device))

    def coarser(self, factor: int) -> Cameras:
        """The same views with pixels that are ``factor`` times as wide and high; what is left of a
        picture at its right and lower end is seen as well."""
        scale = self.intrinsics.new_tensor([1.0 / factor, 1.0 / factor, 1.0])
        return replace(
            self,
            intrinsics=self.intrinsics * scale[:, None],
            width=-(-self.width // factor),
            height=-(-self.height // factor),
        )

    def with_values(self, world_to_cam: Tensor, intrinsics: Tensor) -> Cameras:
        """The same cameras with other numbers, such as the same ones on another device."""
        return replace(self, world_to_cam=world_to_cam, intrinsics=intrinsics)

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
    # [B, c, H, W] of a shape that is made of a prior's latents, which guidance takes instead of rgb
    latents: Tensor | None = None


Trace = Any
"""What a renderer wants to remember about one render; opaque to everybody else."""


@dataclass(frozen=True)
class RefineReport:
    """What :meth:`Renderer.refine` did to the structure, for the log."""

    size: int  # how many primitives (splats, occupied cells) exist now
    added: int = 0
    removed: int = 0
    events: tuple[str, ...] = field(default=())
    unit: str = "primitives"  # what is counted, for people


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

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Stepped by the trainer, owned by this object."""
        ...

    @property
    def term_names(self) -> Sequence[str]:
        """The names that :meth:`terms` knows."""
        ...

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


Say = Callable[[str], object]


def silent(text: str) -> None:
    """A :data:`Say` for whoever need not know."""


@dataclass(frozen=True)
class Run:
    """What a representation is told of the run that it is made for."""

    device: torch.device  # where its parameters live
    steps: int  # length of the run: rates and structure edits refer to it
    seed: int  # of everything random in it
    exchange: Exchange = field(default_factory=Alone)
    restored: bool = False  # a state is loaded right after: what it once started from may be gone
    say: Say = silent  # is told what is worth knowing of a file that it starts from


@runtime_checkable
class Sized(Protocol):
    """Settings that know how much memory training on them takes."""

    def training_bytes(self, views: int, resolution: int) -> int:
        """About what training holds on the device when ``views`` square pictures of ``resolution``
        pixels are drawn at once, in bytes."""
        ...


@runtime_checkable
class Thrifty(Protocol):
    """Settings that know which of them take memory."""

    def smaller(self) -> Sequence[str]:
        """Assignments such as ``max_count=2000`` with which training takes less memory on the
        device; all of them work together, and none where nothing can be spared."""
        ...


class RepresentationSettings(Protocol):
    """The settings of a representation, and the word that chooses it."""

    @property
    def kind(self) -> str: ...


# What a shape can give, for export and for measuring. A renderer has those that it can have.


@runtime_checkable
class HasSplats(Protocol):
    """A shape made of Gaussians."""

    def cloud(self) -> SplatCloud:
        """A detached copy, before any activation."""
        ...


@runtime_checkable
class HasDensity(Protocol):
    """A shape with a density everywhere."""

    @property
    def radius(self) -> float:
        """Half the side of the cube around the origin that holds the shape, world units."""
        ...

    def density(self, points: Tensor) -> Tensor:
        """[M] in 1 / world unit at ``points`` [M, 3], on their device, without gradient."""
        ...

    def albedo(self, points: Tensor) -> Tensor:
        """[M, 3] in [0, 1] at ``points`` [M, 3], on their device, without gradient."""
        ...


class Surface(NamedTuple):
    """Triangles with a colour at each corner, world frame (z up)."""

    vertices: Tensor  # [V, 3] world units, float32
    faces: Tensor  # [F, 3] int64 indices of corners, counter-clockwise from outside
    colours: Tensor  # [V, 3] in [0, 1] as displayed


@runtime_checkable
class HasLatents(Protocol):
    """A shape whose pictures are latents of a prior, :attr:`Render.latents`."""

    @property
    def latent_channels(self) -> int:
        """c of them."""
        ...


@runtime_checkable
class HasMesh(Protocol):
    """A shape that is a surface already."""

    def mesh(self) -> Surface:
        """A detached copy on the CPU."""
        ...


@runtime_checkable
class HasTexture(Protocol):
    """A shape that is a surface with a picture on it; it has a :class:`HasMesh` too."""

    def texture_map(self) -> tuple[Tensor, Tensor]:
        """Coordinates [V, 2] in [0, 1] of the vertices of the mesh, (0, 0) the upper left corner,
        and the picture [H, W, 3] in [0, 1] as displayed; detached copies on the CPU."""
        ...
