# SPDX-License-Identifier: Apache-2.0
"""The radiance field behind the common contract."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import picture_terms, states
from ..adam import Adam
from ..cameras import rays
from ..environment import Environment, background_pictures
from ..interface import Cameras, RefineReport, Render
from ..memory import COPIES_IN_TRAINING, require_memory
from ..ops.fields import FieldOps, field_ops
from ..ops.fields.ray_types import MarchSpec, Rays, Samples
from ..sending import send
from . import material
from .config import InstantNGPConfig
from .field import Field, Shading
from .occupancy import OccupancyGrid

SURFACE_ALPHA = 0.5
"""A pixel has a normal when more than half of its light comes from the field."""

OPACITY_FLOOR = 1e-8
"""Expected depth divides by opacity only above this."""

ADAM_EPS = 1e-15
"""Most entries of a hash table see a tiny gradient rarely; Adam's usual 1e-8 would freeze them."""

STATE_VERSION = 1


@dataclass(frozen=True)
class FieldTrace:
    """One render, as the regularisers need it. Sealed: nobody else looks inside."""

    render: Render
    cameras: Cameras
    spread: Tensor  # [B, 1, H, W] variance of depth along the ray, times opacity
    backfacing: Tensor  # [B, 1, H, W] sum of weight * max(0, normal . direction)^2


class _Channels(NamedTuple):
    """What is composited along a ray, [N, C] each."""

    rgb: Tensor  # [N, 3]
    normal: Tensor  # [N, 3]
    backfacing: Tensor  # [N, 1]
    depth: Tensor  # [N, 1] along the ray, from the point nearest to the camera's distance
    depth_square: Tensor  # [N, 1]


class InstantNGPRenderer:
    """A radiance field on a hash grid; satisfies :class:`representations.interface.Renderer`.

    What is random in training (the start of each ray, the lamps) is drawn from the seed and the
    number of the step, so that a step replays; without gradients nothing is random and every
    picture shows the albedo.

    Args:
        config: every setting.
        device: where parameters live.
        ops: kernels, for tests; chosen by device and ``config.backend`` when None.
        seed: of the first weights, of jitter and lamps, and of the environment.
    """

    def __init__(
        self,
        config: InstantNGPConfig | None = None,
        device: torch.device | str = "cpu",
        ops: FieldOps | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.config = config or InstantNGPConfig()
        self.seed = seed
        self.device = torch.device(device)
        backend = None if self.config.backend == "auto" else self.config.backend
        self.ops = ops or field_ops(self.device, backend)
        spec = self.config.grid.spec()
        require_memory(
            COPIES_IN_TRAINING * 4 * spec.parameters,
            self.device,
            f"a hash grid of {spec.parameters:,} numbers (grid.levels={spec.levels}, "
            f"grid.log2_size={spec.log2_size}) with its gradient and Adam's moments",
            "write a smaller grid.log2_size, such as 19",
        )
        generator = torch.Generator().manual_seed(seed)
        self.field = Field(self.config, self.ops, generator).to(self.device)
        self.environment = Environment(generator).to(self.device)
        self.occupancy = OccupancyGrid(
            self.config.march, self.config.radius, self.config.step_length, self.device
        )
        rates = self.config.rates
        heads = [*self.field.density_head.parameters(), *self.field.albedo_head.parameters()]
        groups = [
            {"params": [self.field.table], "lr": rates.grid, "name": "grid"},
            {"params": heads, "lr": rates.heads, "name": "heads"},
            {
                "params": list(self.environment.parameters()),
                "lr": rates.environment,
                "name": "environment",
            },
        ]
        self.optimizer = Adam(groups, betas=(0.9, 0.99), eps=ADAM_EPS)
        self.optimizers = (self.optimizer,)
        self.term_names = tuple(TERMS)
        self.step = 0

    def starting_from(self, fitted: InstantNGPRenderer) -> InstantNGPRenderer:
        """The field, environment and occupancy of ``fitted``, at step 0 and with an optimiser that
        has done nothing; returns self."""
        with torch.no_grad():
            self.field.load_state_dict(fitted.field.state_dict())
            self.environment.load_state_dict(fitted.environment.state_dict())
            self.occupancy.load_state_dict(fitted.occupancy.state_dict())
        return self

    @property
    def radius(self) -> float:
        """Half the side of the cube that holds the field, world units."""
        return self.config.radius

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """[M] in 1 / world unit at ``points`` [M, 3] of any device."""
        return self.field.density(points.to(self.device)).to(points.device)

    @torch.no_grad()
    def albedo(self, points: Tensor) -> Tensor:
        """[M, 3] in [0, 1] at ``points`` [M, 3] of any device."""
        return self.field.albedo(points.to(self.device)).to(points.device)

    def _generator(self, stream: int, view: int = 0) -> torch.Generator:
        """Randomness that depends on the seed, the step, what it is for and the place of a view in
        its batch, on nothing else."""
        seed = ((self.seed * 1_000_003 + self.step) * 4 + stream) * 4099 + view
        return torch.Generator().manual_seed(seed % 2**63)

    @property
    def march_spec(self) -> MarchSpec:
        config = self.config
        return MarchSpec(
            radius=config.radius, step=config.step_length, max_samples=config.march.max_samples
        )

    def render(self, cameras: Cameras, background: Tensor | None) -> tuple[Render, FieldTrace]:
        """Pictures [B, C, H, W] and their trace; ``background`` [B, 3] or None = environment."""
        behind = background_pictures(background, self.environment, cameras)
        origins, directions = rays(cameras)
        beam = Rays(origins.reshape(-1, 3).contiguous(), directions.reshape(-1, 3).contiguous())
        jitter = torch.zeros(len(beam.origins), device=self.device)
        light = material.no_light(len(cameras), self.device)
        if torch.is_grad_enabled():
            jitter, light = self._draw(cameras, jitter, light)
        samples = self.ops.march(beam, self.occupancy.occupied, self.march_spec, jitter)
        channels, opacity = self._composite(beam, samples, light, cameras)
        return self._assemble(cameras, channels, opacity, behind, beam)

    def _draw(
        self, cameras: Cameras, jitter: Tensor, light: material.Light
    ) -> tuple[Tensor, material.Light]:
        """Where in its first step each ray begins, and how each view is lit, in training; drawn on
        the CPU and brought over together. ``jitter`` and ``light`` where nothing is drawn."""
        places = range(cameras.index_in_batch, cameras.index_in_batch + len(cameras))
        settings, per_view = self.config.material, cameras.height * cameras.width
        starts, lots, shaded = [], [], False
        if self.config.march.jitter:
            starts = [torch.rand(per_view, generator=self._generator(0, k)) for k in places]
        if self.step >= settings.albedo_steps:
            lots = list(material.draw_lots(settings, [self._generator(2, k) for k in places]))
            shaded = bool((lots[0] != material.ALBEDO).any())
        there = send([*([torch.cat(starts)] if starts else []), *lots], self.device)
        if starts:
            jitter, *there = there
        if lots:
            drawn = material.Lots(*there)
            light = material.place_lamps(settings, cameras.positions, drawn, shaded)
        return jitter, light

    def _assemble(
        self, cameras: Cameras, channels: _Channels, opacity: Tensor, behind: Tensor, beam: Rays
    ) -> tuple[Render, FieldTrace]:
        def picture(values: Tensor) -> Tensor:  # [N, C] -> [B, C, H, W]
            grid = values.reshape(len(cameras), cameras.height, cameras.width, -1)
            return grid.permute(0, 3, 1, 2)

        alpha = picture(opacity[:, None])
        solid = opacity[:, None].clamp(min=OPACITY_FLOOR)
        mean = channels.depth / solid
        distance = mean + beam.origins.norm(dim=-1, keepdim=True)
        forward = cameras.world_to_cam[:, 2, :3]  # [B, 3]
        per_view = cameras.height * cameras.width
        cosine = (beam.directions * forward.repeat_interleave(per_view, dim=0)).sum(-1, True)
        seen = (opacity.detach() > OPACITY_FLOOR)[:, None]
        depth = torch.where(seen, distance * cosine, torch.zeros_like(distance))
        length = channels.normal.square().sum(-1, keepdim=True).clamp(min=1e-6).sqrt()
        surface = (opacity.detach() > SURFACE_ALPHA)[:, None]
        normal = torch.where(surface, channels.normal / length, torch.zeros_like(channels.normal))
        spread = (channels.depth_square - channels.depth * mean).clamp(min=0.0)
        render = Render(
            # Colours and weights are in [0, 1]; rounding may leave 1 + 1e-7.
            rgb=(picture(channels.rgb) + (1.0 - alpha) * behind).clamp(0.0, 1.0),
            alpha=alpha.clamp(0.0, 1.0),
            depth=picture(depth),
            normal=picture(normal),
        )
        return render, FieldTrace(render, cameras, picture(spread), picture(channels.backfacing))

    def _composite(
        self, beam: Rays, samples: Samples, light: material.Light, cameras: Cameras
    ) -> tuple[_Channels, Tensor]:
        """All rays, in parts that keep to the memory budget. With gradients, parts beyond the
        first are computed again in the backward pass instead of being remembered."""
        per_view = cameras.height * cameras.width
        parts = list(_parts(samples, self.samples_per_part))
        again = torch.is_grad_enabled() and len(parts) > 1
        features, opacities = [], []
        for first, part in parts:
            last = first + len(part.offsets) - 1
            rays_here = Rays(beam.origins[first:last], beam.directions[first:last])
            view = (part.ray + first) // per_view
            arguments = (rays_here, part, light, view)
            out = (
                checkpoint(self._shade, *arguments, use_reentrant=False)
                if again
                else self._shade(*arguments)
            )
            features.append(out[0])
            opacities.append(out[1])
        columns = torch.cat(features).split([3, 3, 1, 1, 1], dim=-1)
        return _Channels(*columns), torch.cat(opacities)

    def _shade(
        self, beam: Rays, samples: Samples, light: material.Light, view: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Composited channels [N, 9] and opacity [N] of some rays."""
        position = samples.positions(beam)
        origin, direction = beam.origins[samples.ray], beam.directions[samples.ray]
        at: Shading = self.field(position)
        rgb = at.albedo
        if light.shaded:
            rgb = material.colour(self.config.material, light, view, position, at.albedo, at.normal)
        facing = (at.normal * direction).sum(-1, keepdim=True).clamp(min=0.0)
        # Measured from the camera's distance to the origin, so that squares lose no digits.
        along = (samples.middle - origin.norm(dim=-1))[:, None]
        values = torch.cat([rgb, at.normal, facing.square(), along, along.square()], dim=-1)
        out = self.ops.composite(at.density, values, samples, len(beam.origins))
        return out.features, out.opacity

    @property
    def samples_per_part(self) -> int:
        """How many samples the memory budget allows at once."""
        width, hidden = self.field.spec.width, self.config.density.hidden
        encoded = width * (4 if self.config.normals == "analytic" else 7)
        floats = 2 * encoded + 6 * hidden + 80  # activations and their gradients, about
        return max(4096, self.config.march.memory_mb * 2**20 // (4 * floats))

    def terms(self, trace: FieldTrace, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Unweighted regularisers of a render by name (None = all); see :data:`TERMS`."""
        unknown = sorted(set(names or ()) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown term {unknown[0]!r}: choose from {', '.join(TERMS)}")
        return {name: TERMS[name](trace) for name in (TERMS if names is None else names)}

    def refine(self, step: int, *traces: FieldTrace) -> RefineReport:
        """Update the occupancy grid when it is due and switch on the levels of ``step + 1``."""
        del traces  # the grid asks the field itself
        self.step = step
        if self.occupancy.due(step):
            self.occupancy.update(step, self.field.density, self._generator(1))
        self.step = step + 1
        self.field.active = self.config.grid.active_levels(self.step)
        return RefineReport(size=self.occupancy.count, unit="cells")

    def state_dict(self) -> dict[str, Any]:
        """A snapshot that later training does not touch; tensors and plain values only."""
        return copy.deepcopy(
            {
                "version": STATE_VERSION,
                "field": dict(self.field.state_dict()),
                "environment": dict(self.environment.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "occupancy": self.occupancy.state_dict(),
                "step": self.step,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot, bit for bit.

        Raises ValueError, and changes nothing, when the state belongs to something else.
        """
        own = self.field.state_dict()
        if state.get("version") != STATE_VERSION or set(state.get("field", ())) != set(own):
            raise ValueError(
                "this state was not written by InstantNGPRenderer.state_dict() of version "
                f"{STATE_VERSION}: it has version {state.get('version')!r} and the entries "
                f"{sorted(state)}"
            )
        for name, tensor in state["field"].items():
            if not torch.is_tensor(tensor):
                raise ValueError(f"the state's {name} is no tensor")
            if tensor.shape != own[name].shape:
                raise ValueError(
                    f"the state holds {name} of shape {tuple(tensor.shape)}, this field has "
                    f"{tuple(own[name].shape)}: use the grid and density settings of its run"
                )
        sizes = {
            "field": own,
            "environment": self.environment.state_dict(),
            "occupancy": self.occupancy.state_dict(),
        }
        for part, tensors in sizes.items():
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            states.require_tensors(state.get(part), shapes, part)
        known = [p.shape for group in self.optimizer.param_groups for p in group["params"]]
        states.require_optimizer(state.get("optimizer"), self.optimizer, known)
        if type(state.get("step")) is not int or state["step"] < 0:
            raise ValueError(f"the state's step is {state.get('step')!r}")
        state = copy.deepcopy(state)
        self.field.load_state_dict(state["field"])
        self.environment.load_state_dict(state["environment"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.occupancy.load_state_dict(state["occupancy"])
        self.step = int(state["step"])
        self.field.active = self.config.grid.active_levels(self.step)


def _parts(samples: Samples, limit: int) -> Iterator[tuple[int, Samples]]:
    """Cut at rays so that no part has more than ``limit`` samples, unless one ray has; yields
    the index of a part's first ray."""
    if len(samples.start) <= limit:
        yield 0, samples
        return
    offsets = samples.offsets
    count, first = len(offsets) - 1, 0
    while True:
        reach = offsets[first] + limit
        last = int(torch.searchsorted(offsets, reach, right=True)) - 1
        last = min(max(last, first + 1), count)
        low, high = int(offsets[first]), int(offsets[last])
        yield (
            first,
            Samples(
                ray=samples.ray[low:high] - first,
                start=samples.start[low:high],
                end=samples.end[low:high],
                offsets=offsets[first : last + 1] - low,
            ),
        )
        first = last
        if first >= count:
            return


def _orientation(trace: FieldTrace) -> Tensor:
    """Visible surface that faces away (Ref-NeRF), per pixel that sees anything; mean over views."""
    seen = (trace.render.alpha.detach() > 0).sum((1, 2, 3)).clamp(min=1)
    return (trace.backfacing.sum((1, 2, 3)) / seen).mean()


def _z_variance(trace: FieldTrace) -> Tensor:
    """Variance of depth along the ray (HiFA), mean over the pixels of a view that are more than
    half opaque, 0 when there is none; mean over views."""
    alpha = trace.render.alpha
    opaque = alpha.detach() > SURFACE_ALPHA
    variance = torch.where(opaque, trace.spread / alpha.clamp(min=SURFACE_ALPHA),
                           torch.zeros_like(alpha))  # fmt: skip
    return (variance.sum((1, 2, 3)) / opaque.sum((1, 2, 3)).clamp(min=1)).mean()


def _of_picture(term: Callable[[Render, Cameras], Tensor]) -> Callable[[FieldTrace], Tensor]:
    return lambda trace: term(trace.render, trace.cameras)


TERMS: dict[str, Callable[[FieldTrace], Tensor]] = {
    "orientation": _orientation,
    "z_variance": _z_variance,
    **{name: _of_picture(term) for name, term in picture_terms.TERMS.items()},
}
"""Name -> formula; those that look at the picture only are shared by all representations."""
