# SPDX-License-Identifier: Apache-2.0
"""A representation of your own: one soft, coloured ellipsoid with nine parameters.

    sdi-gs generate "a red mug" plugins=examples/05_third_representation.py representation=ellipsoid
    sdi-gs compare "a red mug" --representations ellipsoid,gaussians \
        plugins=examples/05_third_representation.py --steps 60

It is trained, saved, resumed, reported, exported and compared like the package's own two. Three
places make it: the settings, the renderer, and one call that registers them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

try:
    import sdi_gs
except ImportError:
    raise SystemExit("sdi_gs is not installed: run 'make setup', then .venv/bin/python") from None


# 1. The settings. Their word is in ``kind``; a budget asks ``training_bytes`` before a run.
@dataclass(frozen=True, kw_only=True)
class EllipsoidConfig:
    """One ellipsoid."""

    kind: Literal["ellipsoid"] = "ellipsoid"
    radius: float = 0.4  # world units, at the start
    rate: float = 0.02  # Adam's learning rate
    softness: float = 0.1  # width of the edge, as a share of the radius

    def __post_init__(self) -> None:
        if self.radius <= 0.0 or self.softness <= 0.0 or self.rate < 0.0:
            raise ValueError("radius and softness must be positive, rate must not be negative")

    def training_bytes(self, views: int, resolution: int) -> int:
        return 4 * 40 * views * resolution**2  # about 40 numbers per pixel


# 2. The renderer: see sdi_gs.Renderer for what each method promises.
class EllipsoidRenderer:
    """Draws the ellipsoid; a pixel is covered by how near its ray comes to the centre, measured in
    radii. Has a mesh, so that it can be exported as .glb and .obj."""

    term_names = ("size",)

    def __init__(self, config: EllipsoidConfig, run: sdi_gs.Run) -> None:
        rng = torch.Generator().manual_seed(run.seed)
        self.config, self.device = config, run.device
        start = torch.full((3,), config.radius).log()
        self.centre = nn.Parameter(torch.zeros(3, device=run.device))
        self.log_radius = nn.Parameter(start.to(run.device))  # [3] along x, y, z
        grey = 0.5 + 0.05 * torch.randn(3, generator=rng)
        self.colour = nn.Parameter(grey.to(run.device))
        groups = [{"params": [getattr(self, name)], "name": name} for name in self._names]
        self.optimizers = (torch.optim.Adam(groups, lr=config.rate),)

    _names = ("centre", "log_radius", "colour")

    def render(
        self, cameras: sdi_gs.Cameras, background: Tensor | None
    ) -> tuple[sdi_gs.Render, None]:
        origin, direction = sdi_gs.rays(cameras)  # [B, H, W, 3] each
        radius = self.log_radius.exp()
        o, d = (origin - self.centre) / radius, direction / radius  # the ellipsoid as a unit ball
        along = -(o * d).sum(-1, keepdim=True) / d.square().sum(-1, keepdim=True)
        nearest = o + along * d
        distance = nearest.norm(dim=-1, keepdim=True)  # in radii: below 1 the ray meets it
        alpha = ((1.0 - distance) / self.config.softness).sigmoid()
        normal = nn.functional.normalize(nearest / radius, dim=-1)
        point = self.centre + nearest * radius
        rotation, shift = cameras.world_to_cam[:, 2, :3], cameras.world_to_cam[:, 2, 3]
        depth = (point * rotation[:, None, None]).sum(-1, keepdim=True) + shift[:, None, None, None]
        if background is None:
            background = torch.ones(len(cameras), 3, device=self.device)
        behind = background[:, None, None]
        rgb = alpha * self.colour.clamp(0.0, 1.0) + (1.0 - alpha) * behind
        solid = (alpha > 0.5).float()
        pictures = (rgb, alpha, depth * (alpha > 0).float(), normal * solid)
        return sdi_gs.Render(*(picture.permute(0, 3, 1, 2) for picture in pictures)), None

    def terms(self, trace: None, names: Collection[str] | None = None) -> dict[str, Tensor]:
        unknown = set(names or ()) - set(self.term_names)
        if unknown:
            raise ValueError(f"unknown term {min(unknown)!r}: choose from size")
        return {name: self.log_radius.exp().mean() for name in (names or self.term_names)}

    def refine(self, step: int, *traces: None) -> sdi_gs.RefineReport:
        return sdi_gs.RefineReport(size=1, unit="ellipsoids")

    def mesh(self) -> sdi_gs.Surface:
        """A sphere of latitudes and longitudes, stretched."""
        rows, columns = 24, 48
        polar = torch.linspace(0.0, torch.pi, rows + 1)[:, None].expand(-1, columns)
        around = (torch.arange(columns) * (2.0 * torch.pi / columns)).expand(rows + 1, -1)
        ball = torch.stack(
            [polar.sin() * around.cos(), polar.sin() * around.sin(), polar.cos()], dim=-1
        )
        centre, radius = self.centre.detach().cpu(), self.log_radius.detach().exp().cpu()
        vertices = centre + radius * ball.reshape(-1, 3)
        corner = torch.arange((rows + 1) * columns).reshape(rows + 1, columns)
        a, b = corner[:-1], corner[1:]
        c, d = b.roll(-1, dims=1), a.roll(-1, dims=1)
        faces = torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).reshape(-1, 3)
        colours = self.colour.detach().cpu().clamp(0.0, 1.0).expand(len(vertices), 3)
        return sdi_gs.Surface(vertices, faces, colours.contiguous())

    def state_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name).detach().clone() for name in self._names}
        return {"values": values, "optimizer": self.optimizers[0].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name in self._names:
                getattr(self, name).copy_(state["values"][name])
        self.optimizers[0].load_state_dict(state["optimizer"])


# 3. The word.
sdi_gs.register("representation", EllipsoidConfig, EllipsoidRenderer)
