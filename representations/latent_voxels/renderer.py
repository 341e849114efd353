# SPDX-License-Identifier: Apache-2.0
"""The voxels of latents behind the common contract."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import picture_terms, states
from ..adam import Adam
from ..cameras import rays
from ..environment import Environment, background_pictures
from ..interface import Cameras, RefineReport, Render
from .config import CHANNELS, LatentVoxelConfig

STATE_VERSION = 1
SHARPNESS = 10.0
"""Of the emptiness term: how soon a sample counts as one that is not empty."""

TERMS = (*picture_terms.TERMS, "emptiness")


@dataclass(frozen=True)
class VoxelTrace:
    """One render, as its terms need it. Sealed: nobody else looks inside."""

    weights: Tensor  # [B, H, W, S] share of the light of a ray that comes from each sample
    render: Render
    cameras: Cameras


class LatentVoxelRenderer:
    """A cube of voxels around the origin; satisfies :class:`representations.interface.Renderer`.

    Its pictures are latents, four channels wide (:attr:`Render.latents`): guidance takes them as
    they are, so that ``resolution`` is that of latents. What people see is a linear map of them to
    colours. There are no normals.

    Args:
        config: every setting.
        device: where parameters live.
        seed: of the environment.
    """

    def __init__(
        self,
        config: LatentVoxelConfig | None = None,
        device: torch.device | str = "cpu",
        *,
        seed: int = 0,
    ) -> None:
        self.config = config or LatentVoxelConfig()
        self.device = torch.device(device)
        matrix = torch.tensor(self.config.colours, dtype=torch.float32)
        # In [0, 1]: half of what is meant for [-1, 1], and a half.
        self.matrix = (0.5 * matrix[:CHANNELS]).to(self.device)  # [4, 3]
        self.constant = (0.5 * matrix[CHANNELS] + 0.5).to(self.device)  # [3]
        self.back = torch.linalg.pinv(self.matrix)  # [3, 4], colours to the least latents
        white = self.config.white
        self.white = (
            (1.0 - self.constant) @ self.back
            if white is None
            else torch.tensor(white, device=self.device)
        )
        self.volume = nn.Parameter(self._start().to(self.device))
        self.latents = nn.Parameter(torch.zeros(1, CHANNELS, *self.volume.shape[2:],
                                                device=self.device))  # fmt: skip
        self.environment = Environment(torch.Generator().manual_seed(seed)).to(self.device)
        rates = self.config.rates
        groups = [
            {"params": [self.volume], "lr": rates.density, "name": "density"},
            {"params": [self.latents], "lr": rates.latents, "name": "latents"},
            {"params": list(self.environment.parameters()), "lr": rates.environment,
             "name": "environment"},
        ]  # fmt: skip
        self.optimizer = Adam(groups)
        self.optimizers = (self.optimizer,)
        self.term_names = TERMS

    def _start(self) -> Tensor:
        """[1, 1, N, N, N] before the softplus: a ball that fades outwards."""
        size = self.config.size
        along = (torch.arange(size) + 0.5) * (2.0 / size) - 1.0
        away = torch.stack(torch.meshgrid(along, along, along, indexing="ij")).norm(dim=0)
        inside = (1.0 - away / self.config.blob_radius) * self.config.blob_strength
        begun: Tensor = inside[None, None]
        return begun

    @property
    def latent_channels(self) -> int:
        """Of its pictures."""
        return CHANNELS

    @property
    def radius(self) -> float:
        """Half the side of the cube, world units."""
        return self.config.radius

    def render(self, cameras: Cameras, background: Tensor | None) -> tuple[Render, VoxelTrace]:
        """Pictures [B, C, H, W] and their trace; ``background`` [B, 3] or None = environment."""
        behind = background_pictures(background, self.environment, cameras)
        origins, directions = rays(cameras)
        near, far = _cube(origins, directions, self.radius)
        count = self.config.samples
        along = (torch.arange(count, device=self.device) + 0.5) / count
        distance = near[..., None] + (far - near)[..., None] * along  # [B, H, W, S]
        points = origins[..., None, :] + distance[..., None] * directions[..., None, :]
        density, latents = self._at(points)
        length = ((far - near) / count)[..., None]
        clear = (-density * length).exp()
        reached = torch.cat([torch.ones_like(clear[..., :1]), clear[..., :-1]], dim=-1)
        weights = reached.cumprod(dim=-1) * (1.0 - clear)  # [B, H, W, S]
        alpha = weights.sum(-1)
        forward = cameras.world_to_cam[:, None, None, 2, :3]
        z = distance * (directions * forward).sum(-1, keepdim=True)
        depth = (weights * z).sum(-1) / alpha.clamp(min=1e-6)

        left = (1.0 - alpha)[:, None]
        colours = self._colours(latents)
        shown = torch.einsum("bhws,bhwsc->bchw", weights, colours) + left * behind
        between = (behind - 1.0).movedim(1, -1) @ self.back + self.white  # [B, h, w, 4]
        drawn = torch.einsum("bhws,bhwsc->bchw", weights, latents)
        drawn = drawn + left * between.movedim(-1, 1)
        render = Render(
            rgb=shown.clamp(0.0, 1.0),  # rounding may leave 1 + 1e-7
            alpha=alpha[:, None].clamp(max=1.0),
            depth=torch.where(alpha > 0.0, depth, torch.zeros_like(depth))[:, None],
            normal=torch.zeros_like(shown),
            latents=drawn,
        )
        return render, VoxelTrace(weights, render, cameras)

    def _at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density [...] in 1 / world unit and latents [..., 4] at world points [..., 3], between
        the voxels linear."""
        # grid_sample has x along the last side of the grid, and ours has it along the first.
        where = (points / self.radius).flip(-1).reshape(1, 1, 1, -1, 3)
        both = torch.cat([self.volume, self.latents], dim=1)
        found = F.grid_sample(both, where, padding_mode="border", align_corners=False)
        values = found.reshape(CHANNELS + 1, -1).T.reshape(*points.shape[:-1], CHANNELS + 1)
        return F.softplus(values[..., 0]), values[..., 1:]

    def _colours(self, latents: Tensor) -> Tensor:
        """[..., 3] in [0, 1] of latents [..., 4]."""
        return (latents @ self.matrix + self.constant).clamp(0.0, 1.0)

    def density(self, points: Tensor) -> Tensor:
        """[M] in 1 / world unit at ``points`` [M, 3], without gradient."""
        with torch.no_grad():
            inside = (points.abs() <= self.radius).all(-1)
            return self._at(points)[0] * inside

    def albedo(self, points: Tensor) -> Tensor:
        """[M, 3] in [0, 1] at ``points`` [M, 3], without gradient."""
        with torch.no_grad():
            return self._colours(self._at(points)[1])

    def terms(self, trace: VoxelTrace, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Unweighted regularisers of a render by name (None = all): those of pictures, and

        emptiness: ``mean(log(1 + 10 w))`` over the samples of all rays (as the code of arXiv
        2212.00774 has it): many samples that share the light of a ray, as fog has, cost more than
        one.
        """
        wanted = TERMS if names is None else names
        unknown = sorted(set(wanted) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown term {unknown[0]!r}: choose from {', '.join(TERMS)}")
        found = {}
        for name in wanted:
            if name == "emptiness":
                found[name] = (SHARPNESS * trace.weights).log1p().mean()
            else:
                found[name] = picture_terms.TERMS[name](trace.render, trace.cameras)
        return found

    def refine(self, step: int, *traces: VoxelTrace) -> RefineReport:
        """Nothing: the grid stays as it is."""
        return RefineReport(size=self.config.size**3, unit="voxels")

    def state_dict(self) -> dict[str, Any]:
        """A snapshot that later training does not touch; tensors and plain values only."""
        return copy.deepcopy(
            {
                "version": STATE_VERSION,
                "voxels": {"density": self.volume.detach(), "latents": self.latents.detach()},
                "environment": dict(self.environment.state_dict()),
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot, bit for bit.

        Raises ValueError, and changes nothing, when the state belongs to something else.
        """
        if state.get("version") != STATE_VERSION or "voxels" not in state:
            raise ValueError(
                "this state was not written by LatentVoxelRenderer.state_dict() of version "
                f"{STATE_VERSION}: it has the entries {sorted(state)}"
            )
        own = {"density": self.volume.shape, "latents": self.latents.shape}
        states.require_tensors(state["voxels"], own, "voxels")
        around = {name: value.shape for name, value in self.environment.state_dict().items()}
        states.require_tensors(state.get("environment"), around, "environment")
        shapes = [p.shape for group in self.optimizer.param_groups for p in group["params"]]
        states.require_optimizer(state.get("optimizer"), self.optimizer, shapes)
        with torch.no_grad():
            self.volume.copy_(state["voxels"]["density"])
            self.latents.copy_(state["voxels"]["latents"])
        self.environment.load_state_dict(state["environment"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def _cube(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Where rays [..., 3] enter and leave the cube of half side ``radius``, [...] each, in front of
    their origins; equal where they miss it."""
    # A direction along a face: the quotient is infinite, of the right sign, and compares well.
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    one, other = (-radius - origins) / safe, (radius - origins) / safe
    near = torch.minimum(one, other).amax(-1).clamp(min=0.0)
    far = torch.maximum(one, other).amin(-1)
    return near, torch.maximum(near, far)
