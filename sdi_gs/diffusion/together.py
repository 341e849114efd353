# SPDX-License-Identifier: Apache-2.0
"""Views of one shape that a network sees side by side: attention over all of them, cameras in.

As MVDream does it (arXiv 2308.16512): where a picture attends to itself, it attends to the other
views as well, with the weights that it has; and the pose of the camera goes beside the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

POSE = 16  # numbers of a camera


def poses(camera_to_world: Tensor) -> Tensor:
    """What a network is told of cameras [B, 4, 4] (columns right, up, backwards, position): the
    matrix row by row, [B, 16], its position at a distance of 1."""
    far = camera_to_world[:, :3, 3].norm(dim=1).clamp_min(1e-8)
    out = camera_to_world.clone()
    out[:, :3, 3] = out[:, :3, 3] / far[:, None]
    return out.flatten(1)


class Together:
    """An attention processor of diffusers under which ``views`` rows attend to each other."""

    def __init__(self, inner: Any, views: int) -> None:
        self.inner, self.views = inner, views

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        rows = hidden_states.shape[0]
        side_by_side = hidden_states.reshape(rows // self.views, -1, hidden_states.shape[-1])
        out: Tensor = self.inner(attn, side_by_side, encoder_hidden_states, *args, **kwargs)
        return out.reshape(rows, -1, out.shape[-1])


def see_together(unet: nn.Module, views: int, inner: Any = None) -> None:
    """Have ``views`` rows of a UNet of diffusers, or of the plain one, see each other.

    ``inner``: the processor of diffusers that attends; None: the one that is there.
    """
    for name, module in unet.named_modules():
        if not name.endswith(".attn1"):
            continue
        if hasattr(module, "set_processor"):
            there = module.processor
            kept = there.inner if isinstance(there, Together) else there
            module.set_processor(Together(inner or kept, views))
        else:
            module.views = views


class PoseEmbedding(nn.Module):
    """Poses [B, 16] -> [B, width], under the names of diffusers' ``TimestepEmbedding``, which a
    ``UNet2DConditionModel`` with ``class_embed_type="projection"`` adds to its time embedding."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, pose: Tensor) -> Tensor:
        dtype = self.linear_1.weight.dtype
        out: Tensor = self.linear_2(nn.functional.silu(self.linear_1(pose.to(dtype))))
        return out


def nowhere(rows: int, like: Tensor) -> Tensor:
    """Poses that say nothing, [rows, 16]."""
    return torch.zeros(rows, POSE, device=like.device)
