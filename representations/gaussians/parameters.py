# SPDX-License-Identifier: Apache-2.0
"""The trainable splats, their activations, and the only function that changes their number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..adam import Adam
from ..cameras import rotation_matrices
from ..cloud import SplatCloud
from ..harmonics import evaluate_rest
from ..ops.constants import SH_DC
from ..ops.splats import Splats
from .config import RatesConfig

ADAM_EPS = 1e-15
"""Gradients of single splats are tiny; Adam's usual 1e-8 would turn it into plain SGD for them."""

NAMES = tuple(SplatCloud.__dataclass_fields__)


class _InwardClamp(torch.autograd.Function):
    """Clamp to [0, 1]; outside, only a gradient that pulls back inside passes.

    A plain clamp kills the gradient of a saturated colour for good; passing everything lets it
    run away. Descent moves against the gradient, so above 1 a positive one pulls back.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        outward = ((value > 1.0) & (grad < 0.0)) | ((value < 0.0) & (grad > 0.0))
        return grad.masked_fill(outward, 0.0)


def inward_clamp(value: Tensor) -> Tensor:
    """``value`` cut to [0, 1] in a way from which gradient descent can return."""
    return _InwardClamp.apply(value)  # type: ignore[no-any-return]


class GaussianParameters(nn.Module):
    """N splats as trainable tensors named as in :class:`SplatCloud`, pre-activation."""

    means: Tensor  # [N, 3]
    log_scale: Tensor  # [N, 3]
    quat_wxyz: Tensor  # [N, 4]
    opacity_logit: Tensor  # [N]
    sh_dc: Tensor  # [N, 3]
    sh_rest: Tensor  # [N, K - 1, 3]

    def __init__(self, cloud: SplatCloud) -> None:
        super().__init__()
        for name, tensor in cloud.check().items():
            setattr(self, name, nn.Parameter(tensor.detach().clone().contiguous()))

    def __len__(self) -> int:
        return int(self.means.shape[0])

    @property
    def scale(self) -> Tensor:
        """Standard deviations [N, 3], world units."""
        return self.log_scale.exp()

    @property
    def opacity(self) -> Tensor:
        """[N] in (0, 1)."""
        return self.opacity_logit.sigmoid()

    def splats(self) -> Splats:
        """Activated, for the rasteriser."""
        return Splats(self.means, self.quat_wxyz, self.scale, self.opacity)

    def colours(self, camera_positions: Tensor) -> Tensor:
        """Colour of each splat seen from each camera [B, 3] -> [B, N, 3] in [0, 1]."""
        colour = (0.5 + SH_DC * self.sh_dc).expand(len(camera_positions), -1, -1)
        if self.sh_rest.shape[1]:
            # As in Kerbl et al. the direction carries no gradient to the position.
            offset = self.means.detach()[None] - camera_positions[:, None]
            direction = torch.nn.functional.normalize(offset, dim=-1)
            colour = colour + evaluate_rest(self.sh_rest, direction)
        return inward_clamp(colour)

    def normals(self, camera_positions: Tensor) -> Tensor:
        """Shortest axis of each splat, turned towards each camera [B, 3] -> [B, N, 3], unit."""
        axes = rotation_matrices(self.quat_wxyz)  # [N, 3, 3], columns are the local axes
        shortest = self.log_scale.detach().argmin(-1)  # which axis is not differentiable
        normal = axes.gather(2, shortest[:, None, None].expand(-1, 3, 1))[..., 0]  # [N, 3]
        towards = camera_positions[:, None] - self.means.detach()[None]  # [B, N, 3]
        away = (towards * normal.detach()).sum(-1, keepdim=True) < 0
        return torch.where(away, -normal[None], normal[None])

    @torch.no_grad()
    def cloud(self) -> SplatCloud:
        """A detached copy."""
        return SplatCloud(*(getattr(self, name).detach().clone() for name in NAMES))


def make_optimizer(
    gaussians: GaussianParameters, rates: RatesConfig, environment: nn.Module
) -> Adam:
    """One Adam with a named group per tensor, and one for the environment."""
    groups: list[dict[str, Any]] = [
        {"params": [getattr(gaussians, name)], "lr": getattr(rates, name), "name": name}
        for name in NAMES
    ]
    groups.append(
        {"params": list(environment.parameters()), "lr": rates.environment, "name": "environment"}
    )
    return Adam(groups, betas=(0.9, 0.99), eps=ADAM_EPS)


@torch.no_grad()
def rebuild(
    gaussians: GaussianParameters,
    optimizer: torch.optim.Optimizer,
    source: Tensor,
    fresh: Tensor,
    values: dict[str, Tensor] | None = None,
) -> None:
    """Replace the splats by a selection of themselves: the only place where N changes.

    source [M] int64 says which old splat each new one copies, its Adam moments included; fresh
    [M] bool marks those whose moments start from zero. ``values`` replaces whole new tensors by
    name. The optimiser keeps its identity and owns exactly the new parameters.
    """
    values = values or {}
    for group in optimizer.param_groups:
        name = group["name"]
        if name not in NAMES:
            continue
        old = getattr(gaussians, name)
        new = nn.Parameter(values[name].to(old) if name in values else old.detach()[source])
        assert len(new) == len(source), name
        state = optimizer.state.pop(old, {})
        for key, moment in state.items():
            if torch.is_tensor(moment) and moment.shape == old.shape and moment.ndim > 0:
                moved = moment[source]
                moved[fresh] = 0.0
                state[key] = moved
        if state:
            optimizer.state[new] = state
        group["params"] = [new]
        setattr(gaussians, name, new)
