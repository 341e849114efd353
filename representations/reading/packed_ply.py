# SPDX-License-Identifier: Apache-2.0
"""PlayCanvas's compressed PLY: blocks of 256 splats share a range, 11, 10, 11 bits within it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..cloud import SH_COUNTS, SplatCloud
from ..ops.constants import SH_DC
from .base import Source, SplatFileError, opacity_logit, smallest_three, tensor
from .header import Header, binary_rows, require_whole

SHARED = 256  # splats of a chunk
WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
RANGES = [f"{end}_{name}" for kind in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"))
          for end in ("min", "max") for name in kind]  # fmt: skip
COLOURS = [f"{end}_{name}" for end in ("min", "max") for name in "rgb"]

_LEVELS = (np.arange(256) + 0.5) / 256
_LEVELS[[0, 255]] = 0.0, 1.0
HARMONIC = ((_LEVELS - 0.5) * 8.0).astype(np.float32)
"""By its level, 0 to 255."""


def is_packed(header: Header) -> bool:
    vertex = header.tables["vertex"]
    return "chunk" in header.tables or WORDS[0] in vertex.columns


def open_packed(header: Header, size: int) -> Source:
    """Raises SplatFileError for one that is not complete."""
    path, vertex = header.path, header.tables["vertex"]
    chunk, harmonics = header.tables.get("chunk"), header.tables.get("sh")
    tinted = chunk is not None and COLOURS[0] in chunk.columns
    wanted = [*RANGES, *(COLOURS if tinted else ())]
    if chunk is None or header.form == "ascii":
        raise SplatFileError(f"{path}: is a compressed splat PLY without its binary 'chunk' table")
    for table, names, kind in ((vertex, WORDS, "u4"), (chunk, wanted, "f4")):
        missing = [name for name in names if table.columns.get(name) != kind]
        if missing:
            raise SplatFileError(
                f"{path}: is a compressed splat PLY that misses {', '.join(missing)} of "
                f"'{table.name}'"
            )
    if vertex.rows == 0:
        raise SplatFileError(f"{path}: holds 0 splats, needs at least 1")
    if chunk.rows < -(-vertex.rows // SHARED):
        raise SplatFileError(
            f"{path}: is a compressed splat PLY of {vertex.rows:,} splats with {chunk.rows:,} "
            f"chunks, needs {-(-vertex.rows // SHARED):,}"
        )
    rest = 0
    if harmonics is not None:
        rest = len(harmonics.columns) // 3
        whole = set(harmonics.columns.values()) == {"u1"} and harmonics.rows == vertex.rows
        if not whole or len(harmonics.columns) % 3 or rest + 1 not in SH_COUNTS:
            raise SplatFileError(f"{path}: is a compressed splat PLY with a damaged 'sh' table")
        require_whole(header, "sh", size)
    require_whole(header, "vertex", size)
    shared = np.concatenate(list(binary_rows(header, "chunk", size)))
    limits = np.stack([shared[name] for name in wanted], axis=1).astype("f8")
    return Source(vertex.rows, rest, _blocks(header, size, limits, rest))


def _blocks(header: Header, size: int, limits: np.ndarray, rest: int) -> Iterator[SplatCloud]:
    higher = binary_rows(header, "sh", size) if rest else None
    first = 0
    for rows in binary_rows(header, "vertex", size):
        n = len(rows)
        share = limits[(first + np.arange(n)) // SHARED]
        first += n
        shs: np.ndarray = np.zeros((n, 0, 3), np.float32)
        if higher is not None:
            levels = next(higher).view("u1").reshape(n, 3, rest).transpose(0, 2, 1)
            shs = HARMONIC[levels]
        yield _decode(rows, share, shs)


def _fields(word: np.ndarray, *bits: int) -> np.ndarray:
    """Unsigned fields of a word [N], from the highest bit down, each in [0, 1]."""
    out, left = [], 32
    for width in bits:
        left -= width
        most = (1 << width) - 1
        out.append(((word >> left) & most) / most)
    return np.stack(out, axis=1)


def _decode(rows: np.ndarray, share: np.ndarray, shs: np.ndarray) -> SplatCloud:
    position, rotation, scale, colour = (rows[name].astype("<u4") for name in WORDS)

    def between(part: np.ndarray, first: int) -> np.ndarray:
        low, high = share[:, first : first + 3], share[:, first + 3 : first + 6]
        whole: np.ndarray = low + part * (high - low)
        return whole

    rgba = _fields(colour, 8, 8, 8, 8)
    rgb = between(rgba[:, :3], 12) if share.shape[1] > 12 else rgba[:, :3]
    largest = (rotation >> 30).astype(np.int64)
    three = (_fields(rotation, 2, 10, 10, 10)[:, 1:] - 0.5) * np.sqrt(2.0)
    with np.errstate(over="ignore", invalid="ignore"):
        return SplatCloud(
            means=tensor(between(_fields(position, 11, 10, 11), 0)),
            log_scale=tensor(between(_fields(scale, 11, 10, 11), 6)),
            quat_wxyz=tensor(smallest_three(three.astype("f4"), largest)),
            opacity_logit=opacity_logit(rgba[:, 3]),
            sh_dc=tensor((rgb - 0.5) / SH_DC),
            sh_rest=tensor(shs),
        )
