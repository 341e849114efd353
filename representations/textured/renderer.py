# SPDX-License-Identifier: Apache-2.0
"""The textured mesh behind the common contract: rays find the surface without gradient, and the
picture on it is looked up with one."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import picture_terms, states
from ..adam import Adam
from ..atlas import filled, texels_of
from ..cameras import rays
from ..environment import Environment, background_pictures
from ..interface import Cameras, RefineReport, Render, Surface
from ..ops.meshes import Caster
from .config import TexturedConfig
from .reading import SkinnedSurface
from .texture import OUTSIDE, look_up, pyramid

SURFACE_ALPHA = 0.5
"""A pixel has a normal when more than half of its rays meet the surface."""

BORDER = 2  # texels around a chart that a look-up inside of it may touch
GRAZING = 0.1  # a surface seen from the side covers no more texels than at this cosine
STATE_VERSION = 1
TERMS = ("tv_rgb",)
SHAPE = ("vertices", "faces", "uv")


class TexturedRenderer:
    """A mesh with a trainable texture; satisfies :class:`representations.interface.Renderer`.

    Texels are kept in [0, 1] by cutting them after each step, so that a picture is linear in them.

    Args:
        config: every setting.
        device: where the texture lives; rays are cast on the CPU.
        surface: the mesh, and the picture that it begins with.
        steps: length of the run, to which the learning rate refers.
        seed: of the environment.
    """

    def __init__(
        self,
        config: TexturedConfig,
        device: torch.device | str,
        surface: SkinnedSurface,
        *,
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        self.config, self.steps, self.device = config, max(1, steps), torch.device(device)
        self.term_names = TERMS
        self.environment = Environment(torch.Generator().manual_seed(seed)).to(self.device)
        self._take(surface)
        rates = config.rates
        groups = [
            {"params": [self.texture], "lr": rates.texture, "name": "texture"},
            {
                "params": list(self.environment.parameters()),
                "lr": rates.environment,
                "name": "environment",
            },
        ]
        self.optimizer = Adam(groups, betas=(0.9, 0.99), eps=1e-15)
        self.optimizers = (self.optimizer,)

    def _take(self, surface: SkinnedSurface) -> None:
        """The shape, and all that follows from it."""
        self.surface = surface
        self.caster = Caster(surface.vertices, surface.faces)
        size = surface.texture.shape[:2]
        self._texels = texels_of(surface.uv.astype(np.float64), surface.faces, size)
        self._near = _dilated(self._texels.covered(size))
        weight = np.where(self._near, 1.0, OUTSIDE).astype(np.float32)
        there = (surface.vertices, surface.faces, surface.uv, weight, _normals(surface),
                 _density(surface))  # fmt: skip
        self._vertices, self._faces, self._uv, self._weight, self._normals, self._density = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in there
        )
        self.texture = torch.nn.Parameter(
            torch.from_numpy(np.array(surface.texture, np.float32)).to(self.device)
        )

    def __len__(self) -> int:
        """Texels on the surface."""
        return len(self._texels.place)

    def render(self, cameras: Cameras, background: Tensor | None) -> tuple[Render, Any]:
        """Pictures [B, C, H, W] and their trace; ``background`` [B, 3] or None = environment."""
        behind = background_pictures(background, self.environment, cameras)
        fine = _finer(cameras, self.config.samples)
        origins, directions = rays(fine)
        face, weight = self._cast(origins, directions)
        met = face >= 0
        ray = met.nonzero()[:, 0]
        corners = self._faces[face[ray]]  # [K, 3]
        share = weight[ray][..., None]  # [K, 3, 1]
        points = (share * self._vertices[corners]).sum(1)
        normals = torch.nn.functional.normalize((share * self._normals[corners]).sum(1), dim=-1)
        view = ray // (fine.height * fine.width)
        matrix = fine.world_to_cam[view]
        z = (matrix[:, 2, :3] * points).sum(-1) + matrix[:, 2, 3]
        cosine = (normals * directions.reshape(-1, 3)[ray]).sum(-1).abs().clamp(min=GRAZING)
        area = (z / fine.intrinsics[view, 0, 0]).square() / cosine  # of a sample on the surface
        uv = (share * self._uv[corners]).sum(1)
        levels = pyramid(self.texture, self._weight)
        colour = look_up(levels, uv, area * self._density[face[ray]])

        def picture(values: Tensor) -> Tensor:
            """Sums [B, C, H, W] over the samples of a pixel of values [K, C] of the hits."""
            all_rays = values.new_zeros(len(face), values.shape[1]).index_copy(0, ray, values)
            s = self.config.samples
            grid = all_rays.reshape(len(cameras), cameras.height, s, cameras.width, s, -1)
            return grid.sum((2, 4)).permute(0, 3, 1, 2)

        count = picture(torch.ones_like(z)[:, None])
        alpha = count / self.config.samples**2
        mean = picture(normals)
        solid = (alpha > SURFACE_ALPHA) & (mean.norm(dim=1, keepdim=True) > 1e-6)
        unit = torch.nn.functional.normalize(mean, dim=1)
        render = Render(
            rgb=(picture(colour) / self.config.samples**2 + (1.0 - alpha) * behind).clamp(0.0, 1.0),
            alpha=alpha,
            depth=picture(z[:, None]) / count.clamp(min=1.0),
            normal=torch.where(solid, unit, torch.zeros_like(unit)),
        )
        return render, (render, cameras)

    def _cast(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The face [N] that each ray meets first, -1 for none, and the weights [N, 3] of its
        corners."""
        o, d = (x.reshape(-1, 3).cpu().numpy() for x in (origins, directions))
        hits = self.caster.first(o, d)
        return (
            torch.from_numpy(hits.face).to(self.device),
            torch.from_numpy(hits.weight.astype(np.float32)).to(self.device),
        )

    def terms(self, trace: Any, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Unweighted regularisers of a render by name (None = all): those of colour alone, since
        nothing else can change."""
        unknown = sorted(set(names or ()) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown term {unknown[0]!r}: choose from {', '.join(TERMS)}")
        wanted = TERMS if names is None else names
        return {name: picture_terms.TERMS[name](*trace) for name in wanted}

    def refine(self, step: int, *traces: Any) -> RefineReport:
        """Cut texels to [0, 1] and set the learning rate of ``step + 1``."""
        del traces
        with torch.no_grad():
            self.texture.clamp_(0.0, 1.0)
        rates = self.config.rates
        done = min(max((step + 1) / max(1, self.steps - 1), 0.0), 1.0)
        for group in self.optimizer.param_groups:
            if group["name"] == "texture":
                group["lr"] = rates.texture * (rates.texture_final / rates.texture) ** done
        return RefineReport(size=len(self), unit="texels")

    def mesh(self) -> Surface:
        """The triangles, with the colour of the texture at each corner."""
        with torch.no_grad():
            at = torch.zeros(len(self._uv), device=self.device)
            colours = look_up(pyramid(self.texture, self._weight)[:1], self._uv, at)
        parts = (self._vertices, self._faces, colours)
        return Surface(*(part.detach().cpu().clone() for part in parts))

    def texture_map(self) -> tuple[Tensor, Tensor]:
        """Coordinates [V, 2] of the corners and the picture [H, W, 3]; what lies between charts is
        filled from them."""
        picture = filled(self.texture.detach().cpu().numpy(), self._near)
        return self._uv.cpu().clone(), torch.from_numpy(np.array(picture))

    def state_dict(self) -> dict[str, Any]:
        """A snapshot that later training does not touch, the mesh included: the file that it came
        from may be gone."""
        return copy.deepcopy(
            {
                "version": STATE_VERSION,
                "surface": {
                    "vertices": self._vertices, "faces": self._faces, "uv": self._uv,
                    "texture": self.texture.detach(),
                },
                "environment": dict(self.environment.state_dict()),
                "optimizer": self.optimizer.state_dict(),
            }
        )  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot, bit for bit. The mesh is taken from it.

        Raises ValueError, and changes nothing, when the state belongs to something else.
        """
        surface = _surface_of(state)
        own = {name: value.shape for name, value in self.environment.state_dict().items()}
        states.require_tensors(state.get("environment"), own, "environment")
        shapes: list[Sequence[int]] = [surface.texture.shape]
        shapes += [parameter.shape for parameter in self.environment.parameters()]
        states.require_optimizer(state.get("optimizer"), self.optimizer, shapes)
        state = copy.deepcopy(state)
        self.optimizer.state.pop(self.texture, None)
        self._take(surface)
        for group in self.optimizer.param_groups:
            if group["name"] == "texture":
                group["params"] = [self.texture]
        self.environment.load_state_dict(state["environment"])
        self.optimizer.load_state_dict(state["optimizer"])


def _surface_of(state: dict[str, Any]) -> SkinnedSurface:
    """The mesh and the texture of a snapshot. ValueError where they do not fit each other."""
    held = state.get("surface")
    names = (*SHAPE, "texture")
    if state.get("version") != STATE_VERSION or not isinstance(held, dict) or set(held) != {*names}:
        raise ValueError(
            "this state was not written by TexturedRenderer.state_dict() of version "
            f"{STATE_VERSION}: it has version {state.get('version')!r} and the entries "
            f"{sorted(state)}"
        )
    for name, value in held.items():
        if not torch.is_tensor(value) or value.ndim != (3 if name == "texture" else 2):
            raise ValueError(f"the state's surface.{name} is no tensor of a mesh")
    count = len(held["vertices"])
    shapes = {
        "vertices": (count, 3), "faces": (len(held["faces"]), 3), "uv": (count, 2),
        "texture": (*held["texture"].shape[:2], 3),
    }  # fmt: skip
    states.require_tensors(held, shapes, "surface")
    faces = held["faces"]
    whole = faces.dtype == torch.int64 and len(faces) > 0
    if not whole or not 0 <= int(faces.min()) <= int(faces.max()) < count:
        raise ValueError(f"the state's surface.faces name other vertices than its {count}")
    if min(held["texture"].shape) < 1 or not held["texture"].dtype.is_floating_point:
        raise ValueError("the state's surface.texture is no picture")
    return SkinnedSurface(*(held[name].cpu().numpy().copy() for name in names))


def _finer(cameras: Cameras, samples: int) -> Cameras:
    """The same views with ``samples`` times the pixels along each axis."""
    scale = cameras.intrinsics.new_tensor([float(samples), float(samples), 1.0])
    return replace(
        cameras,
        intrinsics=cameras.intrinsics * scale[:, None],
        width=cameras.width * samples,
        height=cameras.height * samples,
    )


def _dilated(covered: np.ndarray) -> np.ndarray:
    """The texels that are covered and those near them, [H, W] bool."""
    from scipy.ndimage import maximum_filter

    near: np.ndarray = maximum_filter(covered, size=2 * BORDER + 1)
    return near


def _normals(surface: SkinnedSurface) -> np.ndarray:
    """Unit normals [V, 3] float32, smooth also where a seam has made two vertices of one."""
    _, same = np.unique(surface.vertices, axis=0, return_inverse=True)
    same = same.reshape(-1)
    corners = surface.vertices[surface.faces].astype(np.float64)
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros((int(same.max()) + 1, 3))
    for corner in range(3):
        np.add.at(total, same[surface.faces[:, corner]], weighted)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    total[length[:, 0] == 0] = (0.0, 0.0, 1.0)
    unit: np.ndarray = (total / np.where(length > 0, length, 1.0))[same].astype(np.float32)
    return unit


def _density(surface: SkinnedSurface) -> np.ndarray:
    """Texels of each face per squared world unit, [F] float32."""
    corners = surface.vertices[surface.faces].astype(np.float64)
    edges = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    height, width = surface.texture.shape[:2]
    flat = surface.uv[surface.faces].astype(np.float64) * [width, height]
    sides = flat[:, 1:] - flat[:, :1]
    texels = np.abs(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0])
    density: np.ndarray = (texels / np.maximum(area, 1e-30)).astype(np.float32)
    return density
