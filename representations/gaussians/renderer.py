# SPDX-License-Identifier: Apache-2.0
"""The Gaussian representation behind the common contract."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import states
from ..cloud import SplatCloud
from ..environment import Environment, background_pictures
from ..interface import Alone, Cameras, Exchange, RefineReport, Render
from ..ops.constants import ALPHA_FLOOR
from ..ops.splats import SplatOps, splat_ops
from . import densify, mcmc, terms
from .config import DensifyConfig, GaussianConfig
from .initialise import initialise
from .parameters import NAMES, GaussianParameters, inward_clamp, make_optimizer

SURFACE_ALPHA = 0.5
"""A pixel has a normal when more than half of its light comes from splats."""

STATE_VERSION = 1

MOST = 0.5
"""An event that removes a larger share of all opacity is worth a word."""

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class GaussianTrace:
    """One render, as refine needs it. Sealed: nobody else looks inside."""

    means2d: Tensor  # [B, N, 2], its .grad appears after backward
    radii: Tensor  # [B, N, 2] int32
    render: Render
    cameras: Cameras


class GaussianRenderer:
    """A field of 3D Gaussians; satisfies :class:`representations.interface.Renderer`.

    Splat colours are kept in [0, 1] by :func:`inward_clamp` before blending, so a picture is a
    convex mix of displayable colours and looks the same in every viewer, yet a saturated colour
    still receives the gradient that brings it back.

    Args:
        config: every setting.
        device: where parameters live; the generator that drives structure stays on the CPU.
        cloud: start from these splats instead of what ``config.init`` describes.
        ops: kernels, for tests; chosen by device and ``config.backend`` when None.
        steps: length of the run: learning rates and the shares of ``densify`` refer to it.
        seed: of the first splats, of splitting and sampling, and of the environment.
        exchange: copies of this field in other processes, which draw other views of a step.
    """

    def __init__(
        self,
        config: GaussianConfig | None = None,
        device: torch.device | str = "cpu",
        cloud: SplatCloud | None = None,
        ops: SplatOps | None = None,
        *,
        steps: int = 400,
        seed: int = 0,
        exchange: Exchange | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps}: a run has at least 1 step")
        self.config = config or GaussianConfig()
        self.steps = steps
        self.exchange = exchange or Alone()
        self.device = torch.device(device)
        backend = None if self.config.backend == "auto" else self.config.backend
        self.ops = ops or splat_ops(self.device, backend)
        self.generator = torch.Generator().manual_seed(seed)
        cloud = initialise(self.config, seed) if cloud is None else cloud
        if len(cloud) > self.config.max_count:
            raise ValueError(
                f"{self.config.init.path or 'the cloud'} holds {len(cloud)} splats, "
                f"representation.max_count={self.config.max_count} allows fewer: "
                f"write representation.max_count={len(cloud)}"
            )
        cloud = cloud.with_sh_degree(self.config.sh_degree)
        self.gaussians = GaussianParameters(cloud).to(self.device)
        self.environment = Environment(self.generator).to(self.device)
        self.optimizer = make_optimizer(self.gaussians, self.config.rates, self.environment)
        self.optimizers = (self.optimizer,)
        self.term_names = terms.TERMS
        self.statistics = densify.Statistics.empty(len(self.gaussians), self.device)

    def __len__(self) -> int:
        return len(self.gaussians)

    def cloud(self) -> SplatCloud:
        """A detached copy of the splats, for export."""
        return self.gaussians.cloud()

    @property
    def scene_radius(self) -> float:
        """World units; what "too large" is measured against."""
        return self.config.init.radius or 1.0

    def render(self, cameras: Cameras, background: Tensor | None) -> tuple[Render, GaussianTrace]:
        """Pictures [B, C, H, W] and their trace; ``background`` [B, 3] or None = environment."""
        behind = background_pictures(background, self.environment, cameras)
        positions = cameras.positions  # [B, 3]
        features = torch.cat(
            [self.gaussians.colours(positions), self.gaussians.normals(positions)], dim=-1
        )  # [B, N, 6]
        drawn = self.ops.splat(self.gaussians.splats(), features, cameras)
        if drawn.means2d.requires_grad:
            drawn.means2d.retain_grad()

        rgb = drawn.features[:, :3] + (1.0 - drawn.alpha) * behind
        covered = drawn.alpha.detach() > ALPHA_FLOOR
        depth = drawn.depth / drawn.alpha.clamp(min=ALPHA_FLOOR)
        normal = drawn.features[:, 3:]
        length = normal.square().sum(1, keepdim=True).clamp(min=1e-6).sqrt()
        solid = drawn.alpha.detach() > SURFACE_ALPHA
        render = Render(
            rgb=inward_clamp(rgb),  # rounding may leave 1 + 1e-7
            alpha=drawn.alpha,
            depth=torch.where(covered, depth, torch.zeros_like(depth)),
            normal=torch.where(solid, normal / length, torch.zeros_like(normal)),
        )
        return render, GaussianTrace(drawn.means2d, drawn.radii, render, cameras)

    def terms(
        self, trace: GaussianTrace, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted regularisers of a render by name (None = all); see :data:`terms.TERMS`."""
        return terms.compute(self.gaussians, trace.render, trace.cameras, names)

    def means_rate(self, step: int) -> float:
        """Learning rate of positions at ``step``: exponential between the two ends."""
        rates = self.config.rates
        done = min(max(step / max(1, self.steps - 1), 0.0), 1.0)
        return float(rates.means * (rates.means_final / rates.means) ** done)

    def refine(self, step: int, *traces: GaussianTrace) -> RefineReport:
        """Edit the structure when it is due and set the learning rates of ``step + 1``.

        ``step`` counts from 0 and has just been optimised. Raises ValueError when no splat is
        finite any more.
        """
        self._count(traces)
        config = self.config.densify.at(min(1.0, (step + 1) / self.steps))
        unchanged = RefineReport(size=len(self), unit="splats")
        report = self._densify(config) if self._due(step) else unchanged
        if config.kind == "mcmc":
            mcmc.add_noise(self.gaussians, self.means_rate(step), config, self.generator)
        for group in self.optimizer.param_groups:
            if group["name"] == "means":
                group["lr"] = self.means_rate(step + 1)
        return report

    def _count(self, traces: Sequence[GaussianTrace]) -> None:
        """Add what the views of a step say of each splat, those of other processes included."""
        batch = self.exchange.count * sum(len(trace.cameras) for trace in traces)
        seen = densify.Statistics.empty(len(self), self.device)
        for trace in traces:
            gradient = trace.means2d.grad
            if gradient is not None and gradient.shape[1] == len(self):
                height, width = trace.render.rgb.shape[-2:]
                seen.add(gradient * batch, trace.radii, (height, width))
        self.statistics.merge(seen, self.exchange)

    def _due(self, step: int) -> bool:
        config, done = self.config.densify, (step + 1) / self.steps
        return (
            config.kind != "none"
            and config.start <= done <= config.stop
            and (step + 1) % config.every == 0
        )

    def _densify(self, config: DensifyConfig) -> RefineReport:
        budget = self.config.max_count
        if config.kind == "mcmc":
            moved, added = mcmc.relocate_and_grow(
                self.gaussians, self.optimizer, budget, self.scene_radius, config, self.generator
            )
            removed = 0
            events: tuple[str, ...] = (f"relocated {moved}",) if moved else ()
        else:
            plan = densify.plan_densify(
                self.gaussians, self.statistics, budget, self.scene_radius, config
            )
            self._warn_of_loss(plan, config)
            densify.apply_plan(self.gaussians, self.optimizer, plan, config, self.generator)
            added, removed = plan.added, plan.removed
            events = (f"cloned {int(plan.clone.sum())}", f"split {int(plan.split.sum())}")
        densify.decay_opacity(self.gaussians, self.optimizer, config.opacity_decay)
        self.statistics = densify.Statistics.empty(len(self), self.device)
        return RefineReport(len(self), added, removed, events, unit="splats")

    def _warn_of_loss(self, plan: densify.Plan, config: DensifyConfig) -> None:
        """Say that one event takes most of the shape, where its faintness is the reason. Haze can
        be most of the splats; the shape is where the opacity is."""
        opacity = self.gaussians.opacity.detach()
        faint = (plan.prune & (opacity < config.prune_opacity)).to(opacity)
        values = torch.stack([(faint * opacity).nan_to_num().sum(), opacity.nan_to_num().sum()])
        gone, all_of_it = values.tolist()
        if gone > MOST * all_of_it:
            LOG.warning(
                "%d of %d splats go at once: their opacity is below %.3g, which "
                "representation.densify.prune_opacity sets; the default 0.01 keeps them",
                int(faint.sum()), len(self), config.prune_opacity,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """A snapshot that later training does not touch; tensors and plain values only."""
        return copy.deepcopy(
            {
                "version": STATE_VERSION,
                "gaussians": {name: getattr(self.gaussians, name).detach() for name in NAMES},
                "environment": dict(self.environment.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "statistics": vars(self.statistics),
                "generator": self.generator.get_state(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot, bit for bit. The number of splats is taken from it.

        Raises ValueError, and changes nothing, when the state belongs to something else.
        """
        if state.get("version") != STATE_VERSION or set(state.get("gaussians", ())) != set(NAMES):
            raise ValueError(
                "this state was not written by GaussianRenderer.state_dict() of version "
                f"{STATE_VERSION}: it has version {state.get('version')!r} and the entries "
                f"{sorted(state)}"
            )
        wrong = [name for name, value in state["gaussians"].items() if not torch.is_tensor(value)]
        if wrong:
            raise ValueError(f"the state's {', '.join(wrong)} is no tensor")
        cloud = SplatCloud(**state["gaussians"]).check()
        if cloud.sh_degree != self.config.sh_degree:
            raise ValueError(
                f"the state has sh_degree={cloud.sh_degree}, this renderer "
                f"sh_degree={self.config.sh_degree}: write sh_degree={cloud.sh_degree}"
            )
        self._require_state(state, cloud)
        state = copy.deepcopy(state)
        self.environment.load_state_dict(state["environment"])
        for name, tensor in cloud.items():
            old = getattr(self.gaussians, name)
            new = torch.nn.Parameter(tensor.detach().clone().to(old))
            setattr(self.gaussians, name, new)
            for group in self.optimizer.param_groups:
                if group["name"] == name:
                    self.optimizer.state.pop(old, None)
                    group["params"] = [new]
        self.optimizer.load_state_dict(state["optimizer"])
        saved = {key: value.to(self.device) for key, value in state["statistics"].items()}
        self.statistics = densify.Statistics(**saved)
        self.generator.set_state(state["generator"].cpu())

    def _require_state(self, state: dict[str, Any], cloud: SplatCloud) -> None:
        """Raise ValueError unless every part belongs to ``cloud`` and this renderer."""
        broken = int((~cloud.finite()).sum())
        if len(cloud) == 0 or broken:
            raise ValueError(f"of the {len(cloud)} splats of the state {broken} are not finite")
        own = {name: value.shape for name, value in self.environment.state_dict().items()}
        states.require_tensors(state.get("environment"), own, "environment")
        shapes: list[torch.Size] = []
        for group in self.optimizer.param_groups:
            named = getattr(cloud, group.get("name", ""), None)
            shapes += [p.shape for p in group["params"]] if named is None else [named.shape]
        states.require_optimizer(state.get("optimizer"), self.optimizer, shapes)
        counted = dict.fromkeys(vars(self.statistics), (len(cloud),))
        states.require_tensors(state.get("statistics"), counted, "statistics")
