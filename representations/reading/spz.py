# SPDX-License-Identifier: Apache-2.0
"""Niantic's SPZ, versions 1 to 4 (github.com/nianticlabs/spz, load-spz.cc).

One table per attribute: positions (24-bit fixed point; version 1: float16), opacities, colours,
scales, rotations (three bytes; from version 3 on the smallest three in 32 bits), harmonics. Up to
version 3 all are one gzip stream behind a header of 16 bytes; version 4 has a header of 32 bytes
and a zstd stream for each table.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checks import pip_install
from ..cloud import SH_COUNTS, SplatCloud
from .base import (
    Source,
    SplatFileError,
    opacity_logit,
    ranges,
    require_room,
    smallest_three,
    tensor,
)

MAGIC = b"NGSP"
GZIP = b"\x1f\x8b"
HALF = 1.0 / np.sqrt(2.0)
DEGREES = (*SH_COUNTS, 25)  # version 4 knows degree 4 too

Y_UP = (
    "programs disagree about an SPZ: it is read with y down, as SuperSplat does; if it stands on "
    "its head, --in-up y reads it as Niantic's own tools do"
)


class Head(NamedTuple):
    version: int
    splats: int
    harmonics: int  # per channel
    bits: int  # after the point of a position

    def sizes(self) -> list[int]:
        """Bytes of the tables, in their order."""
        wide = 6 if self.version == 1 else 9
        each = (wide, 1, 3, 3, 4 if self.version >= 3 else 3, 3 * self.harmonics)
        return [size * self.splats for size in each]


def is_spz(first: bytes) -> bool:
    return first[:4] == MAGIC or first[:2] == GZIP


def open_spz(path: Path) -> Source:
    """Raises SplatFileError for one that is not complete, or claims the impossible."""
    raw = path.read_bytes()
    try:
        head, tables = _new(path, raw) if raw[:4] == MAGIC else _old(path, raw)
    except (zlib.error, struct.error) as error:
        raise SplatFileError(f"{path}: broken or truncated SPZ file: {error}") from None
    rest = min(head.harmonics, SH_COUNTS[-1] - 1)
    notes = [Y_UP]
    if head.harmonics > rest:
        notes.append("its harmonics have degree 4: those above degree 3 are left out")
    return Source(head.splats, rest, _blocks(head, tables, rest), tuple(notes))


def _head(path: Path, raw: bytes, size: int) -> Head:
    magic, version, count, degree, bits = struct.unpack_from("<4sIIBB", raw)
    if magic != MAGIC or not 1 <= version <= 4:
        raise SplatFileError(f"{path}: is no SPZ file of version 1 to 4")
    if degree >= len(DEGREES) or bits > 24:
        raise SplatFileError(
            f"{path}: broken SPZ file: harmonics of degree {degree}, {bits} bits after the point"
        )
    if count == 0:
        raise SplatFileError(f"{path}: holds 0 splats, needs at least 1")
    head = Head(version, count, DEGREES[degree] - 1, bits)
    require_room(path, sum(head.sizes()), size)
    return head


def _old(path: Path, raw: bytes) -> tuple[Head, list[np.ndarray]]:
    unpack = zlib.decompressobj(wbits=31)
    first = unpack.decompress(raw, 16)
    if len(first) < 16:
        raise SplatFileError(f"{path}: broken or truncated SPZ file")
    head = _head(path, first, len(raw))
    if head.version > 3:
        raise SplatFileError(f"{path}: an SPZ file of version {head.version} is not gzipped")
    wanted = sum(head.sizes())
    body = unpack.decompress(unpack.unconsumed_tail, wanted)
    return head, _cut(path, body, head)


def _new(path: Path, raw: bytes) -> tuple[Head, list[np.ndarray]]:
    head = _head(path, raw, len(raw))
    if head.version < 4:
        raise SplatFileError(f"{path}: an SPZ file of version {head.version} is gzipped")
    streams, table = struct.unpack_from("<BI", raw, 15)
    sizes = [size for size in head.sizes() if size]
    at = table + 16 * streams
    if streams != len(sizes) or table < 32 or at > len(raw):
        raise SplatFileError(f"{path}: broken SPZ file: {streams} tables, needs {len(sizes)}")
    body = []
    for i, size in enumerate(sizes):
        packed, claimed = struct.unpack_from("<QQ", raw, table + 16 * i)
        if claimed != size or at + packed > len(raw):
            raise SplatFileError(f"{path}: broken or truncated SPZ file: its table {i}")
        body.append(_zstd(path, raw[at : at + packed], size))
        at += packed
    return head, _cut(path, b"".join(body), head)


def _zstd(path: Path, packed: bytes, size: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise SplatFileError(
            f"{path}: an SPZ file of version 4 needs the Python package zstandard: "
            + pip_install("zstandard")
        ) from None
    try:
        # As a stream: asked for the whole, it would make room for what the frame claims.
        with zstandard.ZstdDecompressor().stream_reader(packed) as stream:
            return bytes(stream.read(size))
    except zstandard.ZstdError as error:
        raise SplatFileError(f"{path}: broken or truncated SPZ file: {error}") from None


def _cut(path: Path, body: bytes, head: Head) -> list[np.ndarray]:
    sizes = head.sizes()
    if len(body) < sum(sizes):
        raise SplatFileError(
            f"{path}: broken or truncated SPZ file: {head.splats:,} splats need {sum(sizes):,} "
            f"bytes, it unpacks into {len(body):,}"
        )
    flat = np.frombuffer(body, np.uint8)
    ends = np.cumsum([0, *sizes])
    return [flat[a:b].reshape(head.splats, -1) for a, b in pairwise(ends)]


def _blocks(head: Head, tables: list[np.ndarray], rest: int) -> Iterator[SplatCloud]:
    for rows in ranges(head.splats):
        place, opacity, colour, scale, turn, higher = (table[rows] for table in tables)
        shs = (higher.astype("f4") - 128.0) / 128.0
        yield SplatCloud(
            means=tensor(_positions(place, head)),
            log_scale=tensor(scale.astype("f4") / 16.0 - 10.0),
            quat_wxyz=tensor(_rotations(turn)),
            opacity_logit=opacity_logit(opacity[:, 0] / 255.0),
            sh_dc=tensor((colour.astype("f4") / 255.0 - 0.5) / 0.15),
            sh_rest=tensor(shs.reshape(len(shs), head.harmonics, 3)[:, :rest]),
        )


def _positions(place: np.ndarray, head: Head) -> np.ndarray:
    if head.version == 1:
        return np.ascontiguousarray(place).view("<f2").astype("f4")
    low, middle, high = (place.reshape(-1, 3, 3)[..., i].astype(np.int32) for i in range(3))
    whole = low | middle << 8 | high << 16
    return (whole - ((whole & 0x800000) << 1)) / float(1 << head.bits)


def _rotations(turn: np.ndarray) -> np.ndarray:
    """w, x, y, z of three bytes (x, y, z), or of two bits and three times ten (from w down)."""
    if turn.shape[1] == 3:
        xyz = turn.astype("f4") / 127.5 - 1.0
        return smallest_three(xyz, np.zeros(len(xyz), np.int64))
    word = np.ascontiguousarray(turn).view("<u4")[:, 0]
    three = []
    for shift in (20, 10, 0):  # the first of x, y, z, w that is not the largest is the highest
        size = ((word >> shift) & 511) / 511.0 * HALF
        three.append(np.where((word >> (shift + 9)) & 1, -size, size))
    largest = (word >> 30).astype(np.int64)  # of x, y, z, w
    xyzw = smallest_three(np.stack(three, 1).astype("f4"), largest)
    return np.roll(xyzw, 1, axis=1)
