# SPDX-License-Identifier: Apache-2.0
"""The dialects of a PLY with one row per splat.

========================  ====================================================================
dialect                   how it is known, and what is done
========================  ====================================================================
3D Gaussian Splatting     the layout of :mod:`representations.export.ply`
Nerfstudio's colours      red, green, blue instead of f_dc: whole numbers of their range, or
                          floats in [0, 1]
2D Gaussian Splatting     scale_0 and scale_1 alone (Huang et al. 2024): a thousandth as thick
round splats              scale_0 alone: the same in every direction
Mip-Splatting             filter_3D (Yu et al. 2024, eq. 9): applied to scales and opacities
float16, float64          positions in float64 that float32 would blur are recentred
interleaved harmonics     a comment says so: f_rest runs over channels first
vertical axis             a comment "Vertical Axis: z" (Nerfstudio; ours): the frame
linear colours            a comment "color space: linear": converted for a screen
========================  ====================================================================

What is missing otherwise makes it a point cloud or a mesh, and is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..cloud import SH_COUNTS, SplatCloud
from ..ops.constants import SH_DC
from . import packed_ply
from .base import ROWS, Source, SplatFileError, tensor
from .header import Header, Table, binary_rows, read_header, require_whole, text_rows

THIN = math.log(1e-3)
"""Of the thickness of a flat splat, against its smaller side: drawn as if it had none."""

DEGREE_4 = 24  # harmonics of degree 1 to 4
VERTICAL = re.compile(r"vertical axis\s*[:=]?\s*([xyz])\b", re.IGNORECASE)
INTERLEAVED = re.compile(r"(f_rest|sh|harmonics)\b.*\b(interleaved|coefficient[- _]major|rgbrgb)",
                         re.IGNORECASE)  # fmt: skip
LINEAR = re.compile(r"colou?r[ _-]?space\s*[:=]?\s*(lin\b|lin_|linear)|\blinear colou?rs?\b",
                    re.IGNORECASE)  # fmt: skip
BLUR = 1e-6  # of the extent: rounding of positions that is worth a recentring

Rows = Callable[[], Iterator[np.ndarray]]


class Dialect(NamedTuple):
    """Which columns hold what."""

    scales: list[str]  # one to three
    colours: list[str]  # f_dc_0 ..., or red ...
    stored: int  # harmonics per channel in the file
    rest: int  # those that are kept
    filtered: bool
    interleaved: bool
    centre: np.ndarray | None  # [3] float64, subtracted from every position


def open_ply(path: Path) -> Source:
    """Raises SplatFileError for anything that is not a complete file of splats."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = read_header(path, stream)
    if "vertex" not in header.tables:
        raise SplatFileError(
            f"{path}: has the elements {sorted(header.tables) or 'none'}, needs 'vertex'"
        )
    vertex = header.tables["vertex"]
    if packed_ply.is_packed(header):
        return packed_ply.open_packed(header, size)
    if "list" in vertex.columns.values():
        raise SplatFileError(f"{path}: its element 'vertex' has lists, so it holds no splats")
    dialect, notes = _dialect(header, vertex)
    if vertex.rows == 0:
        raise SplatFileError(f"{path}: holds 0 splats, needs at least 1")
    ascii_ = header.form == "ascii"
    if not ascii_:
        require_whole(header, "vertex", size)

    def rows() -> Iterator[np.ndarray]:
        return text_rows(header, "vertex") if ascii_ else binary_rows(header, "vertex", size)

    if ascii_ or vertex.columns["x"] == "f8":
        centre = _centre(rows)
        if centre is not None:
            dialect = dialect._replace(centre=centre)
            x, y, z = (f"{value:.17g}" for value in centre)
            notes.append(
                f"its positions need more than float32 holds: recentred, {x}, {y}, {z} of the file "
                "is 0, 0, 0 here"
            )
    blocks = (_decode(block, dialect) for block in rows())
    up = _up(header.comments, notes)
    linear = any(LINEAR.search(line) for line in header.comments)
    return Source(
        vertex.rows, dialect.rest, blocks, tuple(notes), up, activatable=True, linear=linear
    )


def _dialect(header: Header, vertex: Table) -> tuple[Dialect, list[str]]:
    """Which columns are what; and what is worth saying."""
    path, columns, notes = header.path, vertex.columns, list[str]()
    stored = sum(name.startswith("f_rest_") for name in columns)
    if stored % 3 or stored // 3 + 1 not in (*SH_COUNTS, DEGREE_4 + 1):
        raise SplatFileError(f"{path}: has {stored} f_rest properties, needs 0, 9, 24 or 45")
    rest = min(stored // 3, SH_COUNTS[-1] - 1)
    if stored // 3 > rest:
        notes.append("its harmonics have degree 4: those above degree 3 are left out")
    scales = [f"scale_{i}" for i in range(3)]
    if "scale_2" not in columns and "scale_1" in columns:
        scales = scales[:2]
        notes.append(
            "it has two scales a splat, as 2D Gaussian Splatting writes: read as flat splats, a "
            "thousandth as thick as wide"
        )
    elif "scale_1" not in columns and "scale_2" not in columns and "scale_0" in columns:
        scales = scales[:1]
        notes.append("it has one scale a splat: read as round ones")
    colours, rgb = [f"f_dc_{i}" for i in range(3)], ["red", "green", "blue"]
    if not any(name in columns for name in colours) and all(name in columns for name in rgb):
        colours = rgb
        notes.append("it has red, green and blue instead of f_dc: read as the splats' colours")
    rotations = [f"rot_{i}" for i in range(4)]
    higher = [f"f_rest_{i}" for i in range(stored)]
    needed = ["x", "y", "z", *colours, *higher, "opacity", *scales, *rotations]
    missing = [name for name in needed if name not in columns]
    if missing:
        plain = not any(name in columns for name in ("scale_0", "rot_0", "opacity"))
        hint = ": a point cloud or mesh? --init starts a run from one" if plain else ""
        raise SplatFileError(f"{path}: misses the properties {', '.join(missing)}{hint}")
    for name in needed:
        kind = columns[name]
        if not kind.startswith("f") and header.form != "ascii" and name not in rgb:
            raise SplatFileError(f"{path}: property {name} is {_word(kind)}, needs float")
    filtered = columns.get("filter_3D", "").startswith("f")
    if filtered:
        notes.append("it has Mip-Splatting's filter_3D: applied to scales and opacities")
    interleaved = stored > 0 and any(INTERLEAVED.search(line) for line in header.comments)
    if interleaved:
        notes.append("its header says that harmonics are interleaved: read so")
    return Dialect(scales, colours, stored // 3, rest, filtered, interleaved, None), notes


def _word(kind: str) -> str:
    return str(np.dtype(kind))


def _up(comments: list[str], notes: list[str]) -> str | None:
    for line in comments:
        found = VERTICAL.search(line)
        if found and found[1].lower() in "yz":
            axis = found[1].lower()
            notes.append(f"its header says that {axis} is up: read so; --in-up says otherwise")
            return axis
    return None


def _centre(rows: Rows) -> np.ndarray | None:
    """Where the splats are [3], in whole units, if float32 would round their positions by more than
    a millionth of their extent."""
    seen = [np.stack([block[axis] for axis in "xyz"], 1).astype("f8") for block in rows()]
    points = np.concatenate(seen)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        return None
    low, high = np.quantile(points, (0.05, 0.95), axis=0)
    rounding = np.abs(points).max() * 2.0**-24
    middle = np.round((low + high) / 2)
    if rounding <= BLUR * float(np.max(high - low)) or not middle.any():
        return None
    exact = np.abs(points.astype(np.float32) - points).max() == 0
    return None if exact else middle


def _decode(rows: np.ndarray, dialect: Dialect) -> SplatCloud:
    n = len(rows)
    kinds = {rows.dtype[name] for name in rows.dtype.names or ()}
    flat = rows.view(kinds.pop()).reshape(n, -1) if len(kinds) == 1 else None

    def gather(*wanted: str) -> np.ndarray:
        if flat is None or not wanted:
            columns = [rows[name] for name in wanted]
            return np.stack(columns, axis=1) if columns else np.zeros((n, 0), np.float32)
        places = [(rows.dtype.names or ()).index(name) for name in wanted]
        first = places[0]
        if places == list(range(first, first + len(places))):
            return flat[:, first : first + len(places)]
        return flat[:, places]

    means = gather("x", "y", "z")
    if dialect.centre is not None:
        means = means.astype("f8") - dialect.centre
    rest = gather(*(f"f_rest_{i}" for i in range(3 * dialect.stored)))
    shape = (n, dialect.stored, 3) if dialect.interleaved else (n, 3, dialect.stored)
    rest = rest.reshape(shape) if dialect.interleaved else rest.reshape(shape).transpose(0, 2, 1)
    cloud = SplatCloud(
        means=tensor(means),
        log_scale=tensor(gather(*dialect.scales)),
        quat_wxyz=tensor(gather("rot_0", "rot_1", "rot_2", "rot_3")),
        opacity_logit=tensor(gather("opacity")[:, 0]),
        sh_dc=tensor(_constant(gather(*dialect.colours), dialect.colours[0])),
        sh_rest=tensor(rest[:, : dialect.rest]),
    )
    if dialect.filtered:
        cloud = _filter(cloud, tensor(gather("filter_3D")))
    return _three_scales(cloud)


def _constant(colours: np.ndarray, name: str) -> np.ndarray:
    """The constant harmonics of colours as the file holds them."""
    if name.startswith("f_dc"):
        return colours
    most = 1.0
    if colours.dtype.kind in "iu":
        most = float(np.iinfo(colours.dtype).max)
    elif colours.dtype == np.float64 and float(np.max(colours, initial=0.0)) > 1.0:
        most = 255.0  # of an ASCII file, whose columns are doubles here
    return (colours.astype("f8") / most - 0.5) / SH_DC


def _three_scales(cloud: SplatCloud) -> SplatCloud:
    given = cloud.log_scale.shape[1]
    if given == 1:
        return cloud.replace(log_scale=cloud.log_scale.repeat(1, 3))
    if given == 2:
        thin = cloud.log_scale.amin(1, keepdim=True) + THIN
        return cloud.replace(log_scale=torch.cat([cloud.log_scale, thin], 1))
    return cloud


def _filter(cloud: SplatCloud, width: torch.Tensor) -> SplatCloud:
    """Splats convolved with a Gaussian of standard deviation ``width`` [N, 1]; their mass stays."""
    wide = 0.5 * torch.logaddexp(2.0 * cloud.log_scale, 2.0 * width.abs().log())
    thinner = (cloud.log_scale - wide).sum(-1)  # log of the ratio of volumes, at most 0
    # logit(p * r) for p = sigmoid(x), r = exp(thinner): log p + log r - log(1 - p r)
    log_opacity = torch.nn.functional.logsigmoid(cloud.opacity_logit) + thinner
    logit = log_opacity - torch.log(-torch.expm1(log_opacity.clamp(max=-1e-7)))
    return cloud.replace(log_scale=wide, opacity_logit=logit)


__all__ = ["ROWS", "open_ply"]
