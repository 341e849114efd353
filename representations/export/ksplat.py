# SPDX-License-Identifier: Apache-2.0
"""The ``.ksplat`` of GaussianSplats3D (mkkellogg), version 0.1, compression level 0: float32, and 8
bits for colours and opacities. The layout is told where it is read, :mod:`..reading.ksplat`.

One section holds all splats. Every count stands twice, as what there is and
as what there will be once all of it has arrived: the viewer makes room by the second, and draws
nothing, without a word, where that is 0.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..cloud import SH_COUNTS, SplatCloud
from ..files import write_atomically
from ..interface import Say, silent
from ..ops.constants import SH_DC
from ..reading.ksplat import HEADER, SECTION, row
from .layout import DEFAULT, Layout, require_scales, tell_cut
from .splat import LOG_SCALES

LEVEL = 0
HALF_RANGE = 1.5  # of harmonics in 8 bits, which this level does not have; what the viewer writes


def write_ksplat(
    path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT, say: Say = silent
) -> int:
    """Write splats of our world frame as ``layout`` says; returns how many the file has. ``say`` is
    told which colours are cut.

    Raises ValueError when no splat is left or one does not fit, OSError when the disk refuses; the
    old file survives.
    """
    cloud = layout.apply(cloud)
    require_scales(cloud, *LOG_SCALES, "a .ksplat file")
    tell_cut(say, cloud.sh_dc, 0.5 / SH_DC + 1e-4, "colours")
    rows = _rows(cloud)

    def write(stream: BinaryIO) -> None:
        stream.write(_heads(len(rows), rows.nbytes, cloud.sh_degree))
        stream.write(rows.view(np.uint8).data)

    write_atomically(path, write, needed=HEADER + SECTION + rows.nbytes)
    return len(cloud)


def _rows(cloud: SplatCloud) -> np.ndarray:
    rgba = torch.cat([0.5 + SH_DC * cloud.sh_dc, cloud.opacity_logit.sigmoid()[:, None]], dim=-1)
    rows = np.empty(len(cloud), row(LEVEL, cloud.sh_degree))
    rows["position"] = cloud.means.numpy()
    rows["scale"] = cloud.log_scale.exp().numpy()
    rows["quat_wxyz"] = cloud.quat_wxyz.numpy()
    rows["rgba"] = (rgba.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()
    # Degree by degree, and within a degree by channel.
    for start, end in pairwise(count - 1 for count in SH_COUNTS[: cloud.sh_degree + 1]):
        band = cloud.sh_rest[:, start:end].transpose(1, 2).reshape(len(cloud), -1)
        rows["harmonics"][:, 3 * start : 3 * end] = band.numpy()
    return rows


def _heads(count: int, size: int, degree: int) -> bytes:
    """The header of the file and that of its section of ``count`` splats and ``size`` bytes."""
    head, section = bytearray(HEADER), bytearray(SECTION)
    sections = 1
    struct.pack_into("<BB2x4IH", head, 0, 0, 1, sections, sections, count, count, LEVEL)
    struct.pack_into("<3f2f", head, 24, 0.0, 0.0, 0.0, -HALF_RANGE, HALF_RANGE)
    struct.pack_into("<2I", section, 0, count, count)
    struct.pack_into("<I", section, 28, size)
    struct.pack_into("<H", section, 40, degree)
    return bytes(head + section)
