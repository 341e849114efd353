# SPDX-License-Identifier: Apache-2.0
"""The textured mesh behind the common contract: rays find the surface without gradient, and the
picture on it is looked up with one. Where the shape is trained too, what a ray meets and where the
outline is have a gradient as well."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import picture_terms, states
from ..adam import Adam, UniformAdam
from ..atlas import filled, texels_of
from ..cameras import rays
from ..environment import Environment, background_pictures
from ..interface import Cameras, RefineReport, Render, Surface
from ..ops.meshes import Caster, blended, crossings
from .config import TexturedConfig
from .moving import MovingShape, met_at, vertex_normals, welded
from .reading import SkinnedSurface
from .texture import OUTSIDE, look_up, pyramid

SURFACE_ALPHA = 0.5
"""A pixel has a normal when more than half of its rays meet the surface."""

BORDER = 2  # texels around a chart that a look-up inside of it may touch
GRAZING = 0.1  # a surface seen from the side covers no more texels than at this cosine
STATE_VERSION = 1
TERMS = ("tv_rgb",)  # of a shape that stays
MOVING_TERMS = (*picture_terms.TERMS, "normal_consistency")
SHAPE = ("vertices", "faces", "uv")
LEAST = 1e-6  # of the samples of a pixel, below which it has no depth


class _Now(NamedTuple):
    """The shape at a step."""

    vertices: Tensor  # [V, 3]
    normals: Tensor  # [V, 3]
    corners: Tensor | None  # [W, 3] float64, with gradient; None where the shape stays


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
        self.term_names = MOVING_TERMS if config.shape.rate > 0.0 else TERMS
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
        self.shape_optimizer: UniformAdam | None = None
        if self.moving is not None:
            group = {"params": [self.moving.u], "lr": config.shape.rate, "name": "shape"}
            self.shape_optimizer = UniformAdam([group], betas=(0.9, 0.99), eps=1e-30)
        own = (self.optimizer, self.shape_optimizer)
        self.optimizers = tuple(each for each in own if each is not None)

    def _take(self, surface: SkinnedSurface, weld: np.ndarray | None = None) -> None:
        """The shape, and all that follows from it."""
        self.surface = surface
        self.moving: MovingShape | None = None
        if self.config.shape.rate > 0.0:
            smooth = self.config.shape.smooth
            self.moving = MovingShape(surface.vertices, surface.faces, smooth, weld)
            self.moving.to(self.device)
            self._built = -1  # for which state of the shape the caster was made
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
        samples = self.config.samples
        now = self._now()
        values = self._seen(_finer(cameras, samples), now)
        grid = values.reshape(len(cameras), cameras.height, samples, cameras.width, samples, -1)
        total = grid.sum((2, 4)).permute(0, 3, 1, 2)  # [B, 8, H, W] over the samples of a pixel
        colour, count, z, mean = total.split((3, 1, 1, 3), dim=1)
        alpha = count / samples**2
        if (
            self.moving is not None
        ):  # several outlines beside a sample can take more than there is of it
            alpha = alpha.clamp(0.0, 1.0)
        solid = (alpha > SURFACE_ALPHA) & (mean.norm(dim=1, keepdim=True) > 1e-6)
        unit = torch.nn.functional.normalize(mean, dim=1)
        render = Render(
            rgb=(colour / samples**2 + (1.0 - alpha) * behind).clamp(0.0, 1.0),
            alpha=alpha,
            depth=torch.where(count > LEAST, z, 0.0) / count.clamp(min=LEAST),
            normal=torch.where(solid, unit, torch.zeros_like(unit)),
        )
        return render, (render, cameras, now)

    def _now(self) -> _Now:
        """The shape as it is; where it moves, the caster and what else follows from it are made
        anew after a step."""
        if self.moving is None:
            return _Now(self._vertices, self._normals, None)
        corners = self.moving.corners()
        weld = self.moving.weld
        vertices = corners[weld]
        if self._built != self.moving.u._version:
            there = vertices.detach().cpu().numpy()
            self.caster = Caster(there, self.surface.faces)
            self.surface = self.surface._replace(vertices=there.astype(np.float32))
            self._density = torch.from_numpy(_density(self.surface)).to(self.device)
            self._built = self.moving.u._version
        normals = vertex_normals(corners, self.moving.faces)[weld]
        return _Now(vertices.float(), normals.float(), corners)

    def _seen(self, fine: Cameras, now: _Now) -> Tensor:
        """What each ray of ``fine`` meets: colour, 1, z and normal, [N, 8], 0 where nothing; beside
        an outline of a shape that moves, blended."""
        origins, directions = (x.reshape(-1, 3) for x in rays(fine))
        face, weight = self._cast(origins, directions)
        ray = (face >= 0).nonzero()[:, 0]
        corners = self._faces[face[ray]]  # [K, 3]
        share = weight[ray][..., None]  # [K, 3, 1]
        if now.corners is not None and self.moving is not None:
            held = now.corners[self.moving.faces[face[ray]]]
            share = met_at(held, origins[ray], directions[ray], share[..., 0])[..., None].float()
        points = (share * now.vertices[corners]).sum(1)
        normals = torch.nn.functional.normalize((share * now.normals[corners]).sum(1), dim=-1)
        view = ray // (fine.height * fine.width)
        matrix = fine.world_to_cam[view]
        z = (matrix[:, 2, :3] * points).sum(-1) + matrix[:, 2, 3]
        if self.config.picture == "normals":
            colour = _as_colours((matrix[:, :3, :3] @ normals[..., None])[..., 0])
        else:
            cosine = (normals * directions[ray]).sum(-1).abs().clamp(min=GRAZING)
            area = (z / fine.intrinsics[view, 0, 0]).square() / cosine  # of a sample on the surface
            uv = (share * self._uv[corners]).sum(1)
            levels = pyramid(self.texture, self._weight)
            colour = look_up(levels, uv, area.detach() * self._density[face[ray]])
        met = torch.cat([colour, torch.ones_like(z)[:, None], z[:, None], normals], dim=1)
        values = met.new_zeros(len(face), 8).index_copy(0, ray, met)
        if now.corners is None or self.moving is None:
            return values
        depth = torch.where(face >= 0, values[:, 4].detach().double(), math.inf)
        crossed = crossings(fine, now.corners, self.moving.edges, self.caster)
        return blended(values, depth, crossed)

    def _cast(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The face [N] that each ray [N, 3] meets first, -1 for none, and the weights [N, 3] of its
        corners."""
        hits = self.caster.first(origins.cpu().numpy(), directions.cpu().numpy())
        return (
            torch.from_numpy(hits.face).to(self.device),
            torch.from_numpy(hits.weight.astype(np.float32)).to(self.device),
        )

    def terms(self, trace: Any, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Unweighted regularisers of a render by name (None = all): those of colour alone where
        nothing else can change."""
        unknown = sorted(set(names or ()) - set(self.term_names))
        if unknown:
            allowed = ", ".join(self.term_names)
            raise ValueError(f"unknown term {unknown[0]!r}: choose from {allowed}")
        render, cameras, now = trace
        found = {}
        for name in self.term_names if names is None else names:
            if name == "normal_consistency":
                assert self.moving is not None
                found[name] = self.moving.normal_consistency(now.corners).float()
            else:
                found[name] = picture_terms.TERMS[name](render, cameras)
        return found

    def refine(self, step: int, *traces: Any) -> RefineReport:
        """Cut texels to [0, 1] and set the learning rates of ``step + 1``."""
        del traces
        with torch.no_grad():
            self.texture.clamp_(0.0, 1.0)
        rates = self.config.rates
        done = min(max((step + 1) / max(1, self.steps - 1), 0.0), 1.0)
        for group in self.optimizer.param_groups:
            if group["name"] == "texture":
                group["lr"] = rates.texture * (rates.texture_final / rates.texture) ** done
        if self.shape_optimizer is not None:
            shape = self.config.shape
            self.shape_optimizer.param_groups[0]["lr"] = shape.rate * shape.rate_final**done
        return RefineReport(size=len(self), unit="texels")

    def mesh(self) -> Surface:
        """The triangles, with the colour of the texture at each corner."""
        with torch.no_grad():
            at = torch.zeros(len(self._uv), device=self.device)
            colours = look_up(pyramid(self.texture, self._weight)[:1], self._uv, at)
            parts = (self._now().vertices, self._faces, colours)
        return Surface(*(part.detach().cpu().clone() for part in parts))

    def texture_map(self) -> tuple[Tensor, Tensor]:
        """Coordinates [V, 2] of the corners and the picture [H, W, 3]; what lies between charts is
        filled from them."""
        picture = filled(self.texture.detach().cpu().numpy(), self._near)
        return self._uv.cpu().clone(), torch.from_numpy(np.array(picture))

    def state_dict(self) -> dict[str, Any]:
        """A snapshot that later training does not touch, the mesh included: the file that it came
        from may be gone."""
        state = {
            "version": STATE_VERSION,
            "surface": {
                "vertices": self._now().vertices.detach(), "faces": self._faces, "uv": self._uv,
                "texture": self.texture.detach(),
            },
            "environment": dict(self.environment.state_dict()),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        if self.moving is not None and self.shape_optimizer is not None:
            state["shape"] = {"u": self.moving.u.detach(), "weld": self.moving.weld}
            state["shape_optimizer"] = self.shape_optimizer.state_dict()
        return copy.deepcopy(state)

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
        weld = self._weld_of(state, len(surface.vertices))
        state = copy.deepcopy(state)
        self.optimizer.state.pop(self.texture, None)
        self._take(surface, weld)
        for group in self.optimizer.param_groups:
            if group["name"] == "texture":
                group["params"] = [self.texture]
        self.environment.load_state_dict(state["environment"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.moving is not None and self.shape_optimizer is not None:
            with torch.no_grad():
                self.moving.u.copy_(state["shape"]["u"])
            self.shape_optimizer.state.clear()
            self.shape_optimizer.param_groups[0]["params"] = [self.moving.u]
            self.shape_optimizer.load_state_dict(state["shape_optimizer"])

    def _weld_of(self, state: dict[str, Any], count: int) -> np.ndarray | None:
        """Which of ``count`` vertices of a saved shape are one, where shapes move."""
        shape = state.get("shape")
        if self.shape_optimizer is None:
            if shape is not None:
                raise ValueError(
                    "the state's shape was trained, and shape.rate is 0: write "
                    "representation.shape.rate=0.002"
                )
            return None
        if not isinstance(shape, dict) or set(shape) != {"u", "weld"}:
            raise ValueError(
                "the state's shape was not trained, and shape.rate is above 0: write "
                "representation.shape.rate=0"
            )
        states.require_tensor(shape["weld"], (count,), "shape.weld")
        weld: np.ndarray = shape["weld"].cpu().numpy()
        kinds = np.unique(weld)
        if weld.dtype != np.int64 or not np.array_equal(kinds, np.arange(len(kinds))):
            raise ValueError("the state's shape.weld does not number places from 0 on")
        states.require_tensor(shape["u"], (len(kinds), 3), "shape.u")
        shapes = [(len(kinds), 3)]
        states.require_optimizer(state.get("shape_optimizer"), self.shape_optimizer, shapes)
        return weld


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


def _as_colours(normal: Tensor) -> Tensor:
    """Normals [K, 3] of the camera's frame in [0, 1]: red to the right, green up, blue towards the
    viewer, which is how networks that know pictures of normals were taught them."""
    right, down, away = normal.unbind(-1)
    return 0.5 + 0.5 * torch.stack([right, -down, -away], dim=-1)


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
    same = welded(surface.vertices)
    corners = torch.zeros(int(same.max()) + 1, 3, dtype=torch.float64)
    corners[same] = torch.from_numpy(surface.vertices).double()
    unit: np.ndarray = vertex_normals(corners, same[torch.from_numpy(surface.faces)])[same].numpy()
    return unit.astype(np.float32)


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
