# SPDX-License-Identifier: Apache-2.0
"""The canonical PLY of 3D Gaussian Splatting (Kerbl et al. 2023).

Values are stored before activation: opacity is a logit, scales are natural logs, the quaternion
is w, x, y, z and of unit length, colour = 0.5 + 0.28209479177387814 * f_dc. f_rest is
channel-major: all red coefficients, then green, then blue. Binary little endian, every property
a ``float``, normals present and zero. The frame is y-down unless asked otherwise: :mod:`.axes`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cloud import SH_COUNTS, SplatCloud
from ..files import write_atomically
from .axes import VIEWER, rotate_from_file
from .layout import DEFAULT, Layout


class SplatFileError(ValueError):
    """A file that cannot be used as splats; the message says what was found and what is needed."""


def property_names(sh_rest_count: int) -> list[str]:
    """Column names for ``sh_rest_count`` higher coefficients per channel."""
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(3 * sh_rest_count)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def write_ply(path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT) -> int:
    """Write splats of our world frame as ``layout`` says; returns how many rows the file has.

    Raises ValueError when no splat is left, OSError when the disk refuses; the old file survives.
    """
    from plyfile import PlyData, PlyElement

    cloud = layout.apply(cloud)
    n, rest = len(cloud), cloud.sh_rest.shape[1]
    columns = torch.cat(
        [
            cloud.means,
            torch.zeros(n, 3),
            cloud.sh_dc,
            cloud.sh_rest.transpose(1, 2).reshape(n, 3 * rest),  # channel-major
            cloud.opacity_logit[:, None],
            cloud.log_scale,
            torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1),
        ],
        dim=1,
    )
    names = property_names(rest)
    rows = np.ascontiguousarray(columns.numpy(), dtype="<f4").view(
        [(name, "<f4") for name in names]
    )
    data = PlyData([PlyElement.describe(rows[:, 0], "vertex")], text=False, byte_order="<")
    write_atomically(path, data.write)
    return n


def read_ply(path: str | Path, up: str = VIEWER) -> SplatCloud:
    """Read a splat file in the layout above, written in the frame ``up``, into our world frame.

    Strict: raises :class:`SplatFileError` for anything that is not a complete, finite 3DGS file.
    """
    from plyfile import PlyData, PlyParseError

    path = Path(path)
    try:
        with path.open("rb") as stream:
            if stream.read(4) not in (b"ply\n", b"ply\r"):
                raise SplatFileError(f"{path}: does not start with 'ply', so it is no PLY file")
            stream.seek(0)
            data = PlyData.read(stream, mmap=False)
    except SplatFileError:
        raise
    except OSError as error:
        raise SplatFileError(f"{path}: cannot be opened: {error.strerror or error}") from error
    except (PlyParseError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise SplatFileError(f"{path}: broken or truncated PLY file: {error}") from error
    except MemoryError as error:
        raise SplatFileError(f"{path}: its header promises more rows than fit in memory") from error
    elements = {element.name: element for element in data.elements}
    if "chunk" in elements or "packed_position" in _names(elements.get("vertex")):
        raise SplatFileError(
            f"{path}: is a compressed splat PLY; convert it first, for example with "
            "`splat-transform in.compressed.ply out.ply`"
        )
    if "vertex" not in elements:
        raise SplatFileError(
            f"{path}: has the elements {sorted(elements) or 'none'}, needs 'vertex'"
        )
    return rotate_from_file(_decode(path, elements["vertex"]), up)


def _names(element: object) -> list[str]:
    return [] if element is None else [p.name for p in element.properties]  # type: ignore[attr-defined]


def _decode(path: Path, vertex) -> SplatCloud:  # type: ignore[no-untyped-def]
    names = _names(vertex)
    rest = sum(name.startswith("f_rest_") for name in names)
    if rest % 3 or rest // 3 + 1 not in SH_COUNTS:
        raise SplatFileError(f"{path}: has {rest} f_rest properties, needs 0, 9, 24 or 45")
    needed = [name for name in property_names(rest // 3) if name not in ("nx", "ny", "nz")]
    missing = [name for name in needed if name not in names]
    if missing:
        hint = ": a point cloud or mesh? use init.kind=points" if "f_dc_0" in missing else ""
        raise SplatFileError(f"{path}: misses the properties {', '.join(missing)}{hint}")
    if len(vertex.data) == 0:
        raise SplatFileError(f"{path}: holds 0 splats, needs at least 1")
    column = {}
    for name in needed:
        if vertex.data.dtype[name].kind != "f":
            raise SplatFileError(
                f"{path}: property {name} is {vertex.data.dtype[name]}, needs float"
            )
        column[name] = torch.from_numpy(vertex.data[name].astype(np.float32))

    def gather(*wanted: str) -> Tensor:
        return torch.stack([column[name] for name in wanted], dim=-1)

    n = len(vertex.data)
    cloud = SplatCloud(
        means=gather("x", "y", "z"),
        log_scale=gather("scale_0", "scale_1", "scale_2"),
        quat_wxyz=gather("rot_0", "rot_1", "rot_2", "rot_3"),
        opacity_logit=column["opacity"],
        sh_dc=gather("f_dc_0", "f_dc_1", "f_dc_2"),
        sh_rest=gather(*(f"f_rest_{i}" for i in range(rest))).reshape(n, 3, -1).transpose(1, 2)
        if rest
        else torch.zeros(n, 0, 3),
    )
    broken = ~cloud.finite()
    if bool(broken.any()):
        raise SplatFileError(
            f"{path}: {int(broken.sum())} of {n} splats hold NaN or infinity, "
            f"the first is row {int(broken.nonzero()[0])}"
        )
    if bool((cloud.quat_wxyz.norm(dim=-1) == 0).any()):
        raise SplatFileError(f"{path}: holds a rotation (rot_0..3) of length 0")
    return cloud
