# SPDX-License-Identifier: Apache-2.0
"""SOG by the package gaussforge (the extra ``formats``), which needs no Node.js.

What it writes is read back by our reader before it is kept: of the .ksplat that its version 0.6.0
writes, GaussianSplats3D, whose format it is, draws nothing.
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
from ..framing import typical_radius
from ..interface import Say, silent
from ..reading import Reading, read_splats
from .layout import DEFAULT, Layout, require_scales
from .packed import MissingTool
from .splat import LOG_SCALES

SAMPLE = 4000  # splats that are compared
NEAR = 0.02
"""Of a harmonic that was read back, in root mean square, and as much again as they are large: the
palette of a SOG comes nearer, another order, which is off by 1.4 times as much, does not."""

WANTED = "gaussforge>=0.6,<1"


def installed() -> bool:
    """Whether gaussforge can be imported."""
    try:
        import gaussforge  # noqa: F401
    except ImportError:
        return False
    return True


def write_by_gaussforge(
    path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT, say: Say = silent
) -> int:
    """Write a SOG; returns how many splats the file has. ``say`` is told what wrote it.

    Raises ValueError when no splat is left, or what was written reads back as something else,
    :class:`MissingTool` without gaussforge, OSError when the disk refuses; the old file survives.
    """
    try:
        import gaussforge
    except ImportError as error:
        raise MissingTool(
            "sog is written by the Python package gaussforge, which cannot be imported here "
            f"({error}): {pip_install(WANTED)}, or take ply, splat or gltf-splats, which need "
            "nothing more"
        ) from None
    cloud = layout.apply(cloud)
    require_scales(cloud, *LOG_SCALES, "a sog")
    made = gaussforge.GaussForge().write(_columns(cloud), "sog")
    if "error" in made or not made.get("data"):
        raise ValueError(f"gaussforge wrote no sog: {made.get('error', 'no message')}")
    _require_same(made["data"], cloud)
    write_bytes(path, made["data"])
    say(f"written by gaussforge {gaussforge.__version__}")
    return len(cloud)


def _columns(cloud: SplatCloud) -> dict[str, Any]:
    """As gaussforge holds them, before activation."""
    columns = {
        "positions": cloud.means, "scales": cloud.log_scale, "rotations": cloud.quat_wxyz,
        "alphas": cloud.opacity_logit, "colors": cloud.sh_dc, "sh": cloud.sh_rest,
    }  # fmt: skip
    data = {name: np.ascontiguousarray(c.numpy(), "<f4").tobytes() for name, c in columns.items()}
    meta = {"shDegree": cloud.sh_degree, "sourceFormat": "ply"}
    return {"numPoints": len(cloud), **data, "extras": {}, "meta": meta}


def _require_same(data: bytes, cloud: SplatCloud) -> None:
    """ValueError where our reader finds other splats than were to be written."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.sog"
        draft.write_bytes(data)
        found = read_splats(draft, Reading(up="z")).cloud
    if len(found) != len(cloud) or not _alike(found, cloud):
        raise ValueError(
            "gaussforge wrote a sog that reads back as other splats; its version may be newer "
            f"than what was tried ({WANTED}): add --sh-degree 0, or write a .ply"
        )


def _alike(found: SplatCloud, cloud: SplatCloud) -> bool:
    """Whether splats that were read are those that were written, in any order: by some of them."""
    from scipy.spatial import cKDTree

    if found.sh_degree != cloud.sh_degree:
        return False
    some = torch.linspace(0, len(cloud) - 1, min(SAMPLE, len(cloud))).long()
    near = some
    if float((found.means[some] - cloud.means[some]).abs().max()) > 1e-3 * typical_radius(cloud):
        place = [torch.cat([c.means, c.log_scale], 1).double().numpy() for c in (found, cloud)]
        near = torch.from_numpy(cKDTree(place[0]).query(place[1][some.numpy()])[1])
    for a, b in ((found.sh_dc, cloud.sh_dc), (found.sh_rest, cloud.sh_rest)):
        wanted = b[some].double()
        off = (a[near].double() - wanted).square().mean().sqrt() if wanted.numel() else 0.0
        if float(off) > NEAR + wanted.square().mean().sqrt():
            return False
    return True
