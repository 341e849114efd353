# SPDX-License-Identifier: Apache-2.0
"""Small splat files by the package gsply (the extra ``formats``): compressed PLY and SPZ.

Both hold positions, scales, rotations and harmonics with 8 to 24 bits. They are in the frame of
our ``.ply``: SuperSplat reads an SPZ as it reads a PLY, although the SPZ of Niantic is y-up.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import pip_install
from ..cloud import SplatCloud
from ..files import write_bytes
from ..framing import typical_radius
from ..interface import Say, silent
from .layout import DEFAULT, Layout, require_scales, tell_cut

SPZ_VERSIONS = (3, 4)
SPZ_VERSION = 3
"""Unless asked for: version 4 is packed by zstd, which Spark and older programs do not read."""


SPZ_STEPS = 2**23 - 1  # to each side of the origin
SPZ_BITS = 24  # after the point, at most
SPZ_USUAL_BITS = 12
SPZ_FINE = 2048
SPZ_COARSE = 512
"""Steps of a position in the radius of the shape: as many as that where the format allows it, and
no fewer than that."""

SPZ_LOG_SCALES = (-10.0, 5.9375)  # 256 steps of 1 / 16
SPZ_UNSEEN = 1e-3
"""A splat may be drawn as e^-10 world units wide although it is narrower, if even that is less than
this share of the shape."""

SPZ_CONSTANT = 0.5 / 0.15  # the largest of the harmonics of degree 0
SPZ_HIGHER = 1.0  # and above
PACKED_HIGHER = 4.0
PACKED_LOG_SCALE = 20.0
"""Natural logs of scale. What is below e^-20 of a world unit is drawn as that; what is above the
largest would be another shape."""


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


def _require_zstd() -> None:
    try:
        import zstandard  # noqa: F401
    except ImportError as error:
        raise MissingTool(
            f"SPZ of version 4 is packed by the Python package zstandard, which cannot be imported "
            f"here ({error}): {pip_install('zstandard')}, or write version 3"
        ) from None


def _columns(cloud: SplatCloud) -> dict[str, np.ndarray]:
    """As gsply names them, before activation."""
    return {
        "means": cloud.means.numpy(),
        "scales": cloud.log_scale.numpy(),
        "quats": torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1).numpy(),
        "opacities": cloud.opacity_logit.numpy(),
        "sh0": cloud.sh_dc.numpy(),
    }


def write_compressed_ply(
    path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT, say: Say = silent
) -> int:
    """Write PlayCanvas's compressed PLY, about a quarter of the size; returns how many rows.
    ``say`` is told what the format cuts.

    Raises ValueError when no splat is left, :class:`MissingTool` without gsply, OSError when the
    disk refuses; the old file survives.
    """
    gsply = _gsply("compressed PLY")
    cloud = layout.apply(cloud)
    require_scales(cloud, -87.0, PACKED_LOG_SCALE, "a compressed PLY")
    tell_cut(say, cloud.sh_rest, PACKED_HIGHER, "harmonics")
    rest = cloud.sh_rest.numpy() if cloud.sh_degree else None  # [N, K - 1, 3]
    data = gsply.compress_to_bytes(
        cloud.means.numpy(),
        *(column for name, column in _columns(cloud).items() if name != "means"),
        rest,
    )
    write_bytes(path, data)
    return len(cloud)


def position_bits(cloud: SplatCloud, radius: float) -> int:
    """Bits after the point of an SPZ's positions, for splats of the typical ``radius``:
    SPZ_USUAL_BITS, more where the shape is small, fewer where it reaches far. ValueError where the
    steps would be seen."""
    reach, row = (float(x) for x in cloud.means.abs().amax(-1).max(0))
    fine = math.ceil(math.log2(SPZ_FINE / radius))
    fits = math.floor(math.log2(SPZ_STEPS / max(reach, 1e-30)))
    bits = min(max(fine, SPZ_USUAL_BITS), fits, SPZ_BITS)
    if bits < 0 or radius * 2.0**bits < SPZ_COARSE:
        step = 2.0 ** -max(bits, 0)
        raise ValueError(
            f"positions reach to {reach:.6g} world units (row {row:.0f}), the shape is "
            f"{2 * radius:.3g} large, and the finest steps that an SPZ has, {step:.3g}, would be "
            "seen; write a .ply, which has no steps, or add --recentre, and if need be "
            f"--scale {1.0 / radius:.2g} too"
        )
    return bits


def _require_thickness(cloud: SplatCloud, radius: float) -> None:
    """ValueError where the narrowest splat of the format would be seen and is not narrow enough."""
    least, most = SPZ_LOG_SCALES
    require_scales(cloud, -87.0, most, "an SPZ")
    if math.exp(least) > SPZ_UNSEEN * radius:
        require_scales(cloud, least - 1 / 32, most, "an SPZ")


def write_spz(
    path: str | Path,
    cloud: SplatCloud,
    layout: Layout = DEFAULT,
    say: Say = silent,
    version: int = SPZ_VERSION,
) -> int:
    """Write Niantic's SPZ of a version of SPZ_VERSIONS; returns how many rows. How fine positions
    are follows from the shape; harmonics are cut at +-1, of which ``say`` is told. Raises like
    :func:`write_compressed_ply`; version 4 needs the package zstandard too.
    """
    gsply = _gsply("SPZ")
    if version not in SPZ_VERSIONS:
        raise ValueError(f"spz_version={version}: written are 3 and 4")
    if version == 4:
        _require_zstd()
    cloud = layout.apply(cloud)
    radius = typical_radius(cloud)
    _require_thickness(cloud, radius)
    bits = position_bits(cloud, radius)
    tell_cut(say, cloud.sh_dc, SPZ_CONSTANT, "colours")
    tell_cut(say, cloud.sh_rest, SPZ_HIGHER, "harmonics")
    rest = cloud.sh_rest.numpy() if cloud.sh_degree else None  # [N, K - 1, 3]
    data = gsply.GSData.from_arrays(**_columns(cloud), shN=rest)
    # gsply writes to a path of its own; the bytes go into place in one step.
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.spz"
        gsply.write_spz(draft, data, version=version, fractional_bits=bits)
        raw = draft.read_bytes()
    write_bytes(path, raw)
    return len(cloud)
