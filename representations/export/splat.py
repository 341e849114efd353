# SPDX-License-Identifier: Apache-2.0
"""The ``.splat`` format: 32 bytes per splat, no header, most important first.

position 3 x float32, linear scale 3 x float32, colour and opacity 4 x uint8, quaternion w, x, y, z
4 x uint8 as q * 128 + 128. View-dependent colour is lost. The frame is the one of :mod:`.ply`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cloud import SplatCloud
from ..files import write_bytes
from ..interface import Say, silent
from ..ops.constants import SH_DC
from ..reading.splat import ROW
from .layout import DEFAULT, Layout, require_scales, tell_cut

LOG_SCALES = (-87.0, 88.0)
"""Whose exponentials are neither 0 nor infinite in float32."""


def falling(values: Tensor) -> Tensor:
    """Indices [N] that sort float32 ``values`` [N], none NaN, from the largest to the smallest,
    equal ones as they come: a stable argsort. As whole numbers of value and place they are sorted
    faster than floats with their indices."""
    bits = (values + 0.0).numpy().view(np.int32).astype(np.int64)  # -0.0 is 0.0
    # The bits of a float rise with it where it is positive, and fall where it is negative.
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = (~rising << 32) | np.arange(len(bits))
    keys.sort()
    return torch.from_numpy(keys & 0xFFFFFFFF)


def write_splat(
    path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT, say: Say = silent
) -> int:
    """Write splats of our world frame, sorted by volume times opacity; returns their number.

    The format has no place for harmonics, so only ``up`` and ``min_opacity`` of ``layout`` count.
    ``say`` is told what is cut.

    Raises ValueError when no splat is left or one does not fit, OSError when the disk refuses; the
    old file survives.
    """
    rest = cloud.check().sh_rest
    # Of the least and the largest, which are found many times as fast as any that is not 0.
    coloured = bool(rest.numel()) and bool(torch.stack(torch.aminmax(rest)).any())
    # Before they are turned, which takes most of the time and is of no use here.
    cloud = replace(layout, sh_degree=None).apply(cloud.with_sh_degree(0))
    require_scales(cloud, *LOG_SCALES, "a .splat file")
    if coloured:
        say("view-dependent colour is left out: the format has one colour a splat")
    tell_cut(say, cloud.sh_dc, 0.5 / SH_DC + 1e-4, "colours")
    opacity = cloud.opacity_logit.sigmoid()
    importance = cloud.log_scale.sum(-1) + opacity.log()  # log of volume * opacity
    order = falling(importance)
    rgba = torch.cat([0.5 + SH_DC * cloud.sh_dc, opacity[:, None]], dim=-1)
    quat = torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1)
    rows = np.empty(len(cloud), ROW)
    rows["position"] = cloud.means[order].numpy()
    rows["scale"] = cloud.log_scale[order].exp().numpy()
    rows["rgba"] = (rgba[order].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()
    rows["quat_wxyz"] = (quat[order] * 128.0 + 128.0).round().clamp(0, 255).to(torch.uint8).numpy()
    write_bytes(path, rows.tobytes())
    return len(cloud)
