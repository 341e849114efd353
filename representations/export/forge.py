# SPDX-License-Identifier: Apache-2.0
"""SOG and .ksplat by the package gaussforge (the extra ``formats``), which needs no Node.js.

What it writes is read back by our reader before it is kept. gaussforge 0.6.0 stores the harmonics
of a .ksplat channel by channel over all degrees, where GaussianSplats3D (whose format it is) and
splat-transform have degree by degree, so it is given them in the order that comes out right.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import pip_install
from ..cloud import SH_COUNTS, SplatCloud
from ..files import write_bytes
from ..framing import typical_radius
from ..interface import Say, silent
from ..ops.constants import SH_DC
from ..reading import Reading, read_splats
from .layout import DEFAULT, Layout, require_scales, tell_cut
from .packed import MissingTool
from .splat import LOG_SCALES

KINDS = ("sog", "ksplat")
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
    path: str | Path, cloud: SplatCloud, kind: str, layout: Layout = DEFAULT, say: Say = silent
) -> int:
    """Write as "sog" or "ksplat"; returns how many splats the file has. ``say`` is told what wrote
    it, and what the format cuts.

    Raises ValueError when no splat is left, or what was written reads back as something else,
    :class:`MissingTool` without gaussforge, OSError when the disk refuses; the old file survives.
    """
    if kind not in KINDS:
        raise ValueError(f"splat format {kind!r} is not one of {', '.join(KINDS)}")
    try:
        import gaussforge
    except ImportError as error:
        raise MissingTool(
            f"{kind} is written by the Python package gaussforge, which cannot be imported here "
            f"({error}): {pip_install(WANTED)}, or take ply, splat or gltf-splats, which need "
            "nothing more"
        ) from None
    cloud = layout.apply(cloud)
    require_scales(cloud, *LOG_SCALES, f"a {kind}")
    if kind == "ksplat":
        tell_cut(say, cloud.sh_dc, 0.5 / SH_DC + 1e-4, "colours")
    given = _columns(cloud, _for_ksplat(cloud.sh_rest) if kind == "ksplat" else cloud.sh_rest)
    made = gaussforge.GaussForge().write(given, kind)
    if "error" in made or not made.get("data"):
        raise ValueError(f"gaussforge wrote no {kind}: {made.get('error', 'no message')}")
    _require_same(made["data"], kind, cloud)
    write_bytes(path, made["data"])
    say(f"written by gaussforge {gaussforge.__version__}")
    return len(cloud)


def _columns(cloud: SplatCloud, rest: torch.Tensor) -> dict[str, Any]:
    """As gaussforge holds them, before activation."""
    columns = {
        "positions": cloud.means, "scales": cloud.log_scale, "rotations": cloud.quat_wxyz,
        "alphas": cloud.opacity_logit, "colors": cloud.sh_dc, "sh": rest,
    }  # fmt: skip
    data = {name: np.ascontiguousarray(c.numpy(), "<f4").tobytes() for name, c in columns.items()}
    meta = {"shDegree": cloud.sh_degree, "sourceFormat": "ply"}
    return {"numPoints": len(cloud), **data, "extras": {}, "meta": meta}


def _for_ksplat(rest: torch.Tensor) -> torch.Tensor:
    """Harmonics [N, K, 3] such that gaussforge, which writes channel after channel, writes degree
    after degree and channel after channel within it."""
    ends = [count - 1 for count in SH_COUNTS if count - 1 <= rest.shape[1]]
    file = [rest[:, a:b].transpose(1, 2).reshape(len(rest), -1) for a, b in pairwise(ends)]
    flat = torch.cat(file, 1) if file else rest.reshape(len(rest), 0)
    return flat.reshape(len(rest), 3, -1).transpose(1, 2) if rest.shape[1] else rest


def _require_same(data: bytes, kind: str, cloud: SplatCloud) -> None:
    """ValueError where our reader finds other splats than were to be written."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"draft.{kind}"
        draft.write_bytes(data)
        found = read_splats(draft, Reading(up="z")).cloud
    if len(found) != len(cloud) or not _alike(found, cloud):
        raise ValueError(
            f"gaussforge wrote a {kind} that reads back as other splats; its version may be newer "
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
