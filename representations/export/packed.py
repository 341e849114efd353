# SPDX-License-Identifier: Apache-2.0
"""Small splat files by the package gsply (the extra ``formats``): compressed PLY and SPZ.

Both hold positions, scales, rotations and harmonics with 8 to 24 bits. They are in the frame of
our ``.ply``: SuperSplat reads an SPZ as it reads a PLY, although the SPZ of Niantic is y-up.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import pip_install
from ..cloud import SplatCloud
from ..files import write_bytes
from .layout import DEFAULT, Layout, require_rows, require_scales

SPZ_VERSION = 3
"""Version 4 is packed by zstd, which Spark does not read."""


SPZ_REACH = 2048.0
SPZ_LOG_SCALE = 5.9375  # the largest of 256 steps of 1 / 16 from -10
PACKED_LOG_SCALE = 20.0
"""Natural logs of scale. What is below the least that a format has (e^-10 of a world unit for SPZ)
is drawn as that, which nobody sees; what is above the largest would be another shape."""


class MissingTool(ValueError):
    """Another program or package writes this format, and it is not there; the message says how to
    get it."""


def _gsply(kind: str) -> Any:
    try:
        import gsply
    except ImportError as error:
        raise MissingTool(
            f"{kind} is written by the Python package gsply, which cannot be imported here "
            f"({error}): {pip_install('gsply>=0.4.6,<1')}, or take ply or splat, which need "
            "nothing more"
        ) from None
    return gsply


def _columns(cloud: SplatCloud) -> dict[str, np.ndarray]:
    """As gsply names them, before activation."""
    return {
        "means": cloud.means.numpy(),
        "scales": cloud.log_scale.numpy(),
        "quats": torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1).numpy(),
        "opacities": cloud.opacity_logit.numpy(),
        "sh0": cloud.sh_dc.numpy(),
    }


def write_compressed_ply(path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT) -> int:
    """Write PlayCanvas's compressed PLY, about a quarter of the size; returns how many rows.

    Raises ValueError when no splat is left, :class:`MissingTool` without gsply, OSError when the
    disk refuses; the old file survives.
    """
    gsply = _gsply("compressed PLY")
    cloud = layout.apply(cloud)
    require_scales(cloud, -87.0, PACKED_LOG_SCALE, "a compressed PLY")
    rest = cloud.sh_rest.numpy() if cloud.sh_degree else None  # [N, K - 1, 3]
    data = gsply.compress_to_bytes(
        cloud.means.numpy(),
        *(column for name, column in _columns(cloud).items() if name != "means"),
        rest,
    )
    write_bytes(path, data)
    return len(cloud)


def write_spz(path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT) -> int:
    """Write Niantic's SPZ, version 3; returns how many rows. Positions are multiples of 1 / 4096
    and reach to +-2048 world units; harmonics are cut at +-1. Raises like
    :func:`write_compressed_ply`.
    """
    gsply = _gsply("SPZ")
    cloud = layout.apply(cloud)
    require_scales(cloud, -87.0, SPZ_LOG_SCALE, "an SPZ")
    require_rows(
        (cloud.means.abs() < SPZ_REACH).all(-1),
        f"lies beyond +-{SPZ_REACH:g} world units, all that an SPZ reaches",
        "write a .ply, or scale the shape down",
    )
    rest = cloud.sh_rest.numpy() if cloud.sh_degree else None  # [N, K - 1, 3]
    data = gsply.GSData.from_arrays(**_columns(cloud), shN=rest)
    # gsply writes to a path of its own; the bytes go into place in one step.
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.spz"
        gsply.write_spz(draft, data, version=SPZ_VERSION)
        raw = draft.read_bytes()
    write_bytes(path, raw)
    return len(cloud)
