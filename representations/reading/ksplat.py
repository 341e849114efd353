# SPDX-License-Identifier: Apache-2.0
"""The ``.ksplat`` of GaussianSplats3D (mkkellogg), version 0.1, compression levels 0 to 2.

A header of 4096 bytes, one of 1024 for each section, then the sections: lengths of the buckets
that are not full, centres of the buckets, splats. A splat is position, scale, rotation w x y z,
colour and opacity in 8 bits, harmonics degree by degree, within a degree by channel. From level 1
on positions are 16 bits around the centre of their bucket and the rest is float16; on level 2
harmonics have 8 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cloud import SH_COUNTS, SplatCloud
from ..ops.constants import SH_DC
from .base import Source, SplatFileError, opacity_logit, ranges, tensor

HEADER, SECTION = 4096, 1024
MOST_SECTIONS = 65_536
FLOATS = ("<f4", "<f2", "<f2")  # of scales and rotations, by level
HARMONICS = ("<f4", "<f2", "u1")
REACH = 32767  # steps to each side of a bucket's centre, where a section does not say


class Section(NamedTuple):
    """Where the splats of a section are, and what their positions are relative to."""

    splats: int
    at: int  # first byte of the first splat
    degree: int
    step: float
    reach: int
    centres: np.ndarray  # [buckets, 3]
    ends: np.ndarray  # [buckets] splats before the end of each


class File(NamedTuple):
    raw: np.ndarray  # bytes, as a memory map
    level: int
    low: float  # of harmonics on level 2
    high: float


def open_ksplat(path: Path) -> Source:
    """Raises SplatFileError for one that is not complete."""
    size = path.stat().st_size
    if size < HEADER:
        raise SplatFileError(f"{path}: broken or truncated .ksplat file: it has {size:,} bytes")
    raw = np.memmap(path, np.uint8, "r")
    head = raw[:HEADER].tobytes()
    most, claimed = struct.unpack_from("<I8xI", head, 4)
    (level,) = struct.unpack_from("<H", head, 20)
    low, high = struct.unpack_from("<ff", head, 36)
    if head[0] != 0 or head[1] < 1 or level > 2:
        raise SplatFileError(
            f"{path}: is no .ksplat file of version 0.1, level 0 to 2: it says {head[0]}.{head[1]}"
            f", level {level}"
        )
    if most > MOST_SECTIONS or HEADER + most * SECTION > size:
        raise SplatFileError(f"{path}: broken or truncated .ksplat file: {most:,} sections")
    file = File(raw, level, low or -1.5, high or 1.5)
    sections = _sections(path, file, most, size)
    count = sum(section.splats for section in sections)
    if count == 0 or count != claimed:
        raise SplatFileError(
            f"{path}: broken .ksplat file: it claims {claimed:,} splats, its sections hold "
            f"{count:,}"
        )
    degree = max(section.degree for section in sections)
    rest = SH_COUNTS[degree] - 1
    return Source(count, rest, _blocks(file, sections, rest))


def _sections(path: Path, file: File, most: int, size: int) -> list[Section]:
    sections, at = [], HEADER + most * SECTION
    for i in range(most):
        head = file.raw[HEADER + i * SECTION :][:SECTION].tobytes()
        count, room, capacity, buckets = struct.unpack_from("<4I", head)
        (block,) = struct.unpack_from("<f", head, 16)
        (stored,) = struct.unpack_from("<H", head, 20)
        (reach,) = struct.unpack_from("<I", head, 24)
        full, partial = struct.unpack_from("<2I", head, 32)
        (degree,) = struct.unpack_from("<H", head, 40)
        centres_at = at + 4 * partial
        splats_at = centres_at + stored * buckets
        end = splats_at + room * row(file.level, min(degree, 3)).itemsize
        if degree > 3 or end > size or count > room or (buckets and stored not in (0, 12)):
            raise SplatFileError(f"{path}: broken or truncated .ksplat file: its section {i}")
        reach = reach or REACH
        # Without centres a count of buckets says nothing, and may be anything.
        held = min(full, buckets) if stored else 0
        lengths = file.raw[at:centres_at].view("<u4").astype(np.int64)
        ends = np.cumsum(np.concatenate([np.full(held, capacity, np.int64), lengths]))
        centres = file.raw[centres_at:splats_at].view("<f4").reshape(-1, 3).astype("f8")
        if file.level and count and (len(ends) > len(centres) or not len(ends) or ends[-1] < count):
            raise SplatFileError(f"{path}: broken .ksplat file: the buckets of section {i}")
        step = block / 2.0 / reach
        sections.append(Section(count, splats_at, degree, step, reach, centres, ends))
        at = end
    return sections


def row(level: int, degree: int) -> np.dtype[np.void]:
    half = FLOATS[level]
    return np.dtype(
        [
            ("position", "<u2" if level else "<f4", 3),
            ("scale", half, 3),
            ("quat_wxyz", half, 4),
            ("rgba", "u1", 4),
            ("harmonics", HARMONICS[level], 3 * (SH_COUNTS[degree] - 1)),
        ]
    )


def _blocks(file: File, sections: list[Section], rest: int) -> Iterator[SplatCloud]:
    for section in sections:
        kind = row(file.level, section.degree)
        for rows in ranges(section.splats):
            first, last = (section.at + kind.itemsize * end for end in (rows.start, rows.stop))
            held = np.frombuffer(file.raw[first:last].tobytes(), kind)
            position = held["position"].astype("f8")
            if file.level:
                bucket = np.searchsorted(section.ends, np.arange(rows.start, rows.stop), "right")
                position = (position - section.reach) * section.step + section.centres[bucket]
            rgba = held["rgba"].astype("f4") / 255.0
            with np.errstate(divide="ignore", invalid="ignore"):
                log_scale = np.log(held["scale"].astype("f4"))
            yield SplatCloud(
                means=tensor(position),
                log_scale=tensor(log_scale),
                quat_wxyz=tensor(held["quat_wxyz"]),
                opacity_logit=opacity_logit(rgba[:, 3]),
                sh_dc=tensor((rgba[:, :3] - 0.5) / SH_DC),
                sh_rest=tensor(_harmonics(held["harmonics"], file, rest)),
            )


def _harmonics(held: np.ndarray, file: File, rest: int) -> np.ndarray:
    """[N, rest, 3] of the numbers of a splat, padded with zeros."""
    values = held.astype("f4")
    if file.level == 2:
        values = file.low + values / 255.0 * (file.high - file.low)
    out = np.zeros((len(held), rest, 3), np.float32)
    at = done = 0
    for band in (3, 5, 7):  # functions of degree 1, 2, 3
        if at < values.shape[1]:
            part = values[:, at : at + 3 * band].reshape(-1, 3, band)
            out[:, done : done + band] = part.transpose(0, 2, 1)
            at, done = at + 3 * band, done + band
    return out
