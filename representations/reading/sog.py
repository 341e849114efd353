# SPDX-License-Identifier: Apache-2.0
"""PlayCanvas's SOG (developer.playcanvas.com, "The SOG Format"), versions 1 and 2: a zip archive,
or its folder's ``meta.json``, whose pictures hold one splat a pixel."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..cloud import SH_COUNTS, SplatCloud
from .base import (
    FREE,
    MOST_UNPACKED,
    Source,
    SplatFileError,
    opacity_logit,
    ranges,
    require_room,
    smallest_three,
    tensor,
)

META = "meta.json"
LONGEST = 2**20  # bytes of meta.json
COLUMNS = 64  # entries of the palette in a row of its picture
ROTATION = 252  # and the index of the largest component: the fourth channel of a rotation

Load = Callable[[str], bytes]


class Pictures(NamedTuple):
    """Every picture as rows of four bytes."""

    low: np.ndarray
    high: np.ndarray
    scales: np.ndarray
    turns: np.ndarray
    colours: np.ndarray
    labels: np.ndarray | None
    palette: np.ndarray | None  # [entries, harmonics, 3] bytes


def is_sog(path: Path, first: bytes) -> bool:
    return path.name.lower() == META or first[:4] == b"PK\x03\x04"


def open_sog(path: Path) -> Source:
    """Raises SplatFileError for one that is not complete, or claims the impossible."""
    try:
        if path.name.lower() == META:
            return _opened(path, lambda name: _neighbour(path, name))
        with zipfile.ZipFile(path) as archive:
            return _opened(path, lambda name: _member(path, archive, name))
    except SplatFileError:
        raise
    except Exception as error:  # zip, JSON and pictures raise a dozen unrelated types
        told = str(error).strip() or type(error).__name__
        raise SplatFileError(f"{path}: broken or truncated SOG file: {told}") from error


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    found = archive.getinfo(name)
    if found.file_size > FREE + MOST_UNPACKED * found.compress_size:
        raise SplatFileError(f"{path}: its {name} claims to unpack into {found.file_size:,} bytes")
    with archive.open(found) as stream:
        return stream.read(found.file_size)


def _neighbour(path: Path, name: str) -> bytes:
    if name != Path(name).name:
        raise SplatFileError(f"{path}: names the file {name!r}, which is not beside it")
    return (path.parent / name).read_bytes()


def _opened(path: Path, load: Load) -> Source:
    raw = load(META)
    if len(raw) > LONGEST:
        raise SplatFileError(f"{path}: its {META} has {len(raw):,} bytes")
    meta = json.loads(raw)
    count = int(meta["count"] if "count" in meta else meta["means"]["shape"][0])
    if count <= 0:
        raise SplatFileError(f"{path}: holds {count} splats, needs at least 1")
    # Positions hardly pack: a picture of them is as large as its splats are many.
    require_room(path, 17 * count, sum(len(load(name)) for name in meta["means"]["files"]))
    pixels = {
        name: [_picture(path, load, file, count) for file in meta[name]["files"]]
        for name in ("means", "scales", "quats", "sh0")
    }
    rest, labels, palette = 0, None, None
    if meta.get("shN"):
        palette, rest = _palette(path, load, meta["shN"]["files"][0])
        labels = _picture(path, load, meta["shN"]["files"][1], count)
    low, high = pixels["means"]
    pictures = Pictures(
        low, high, pixels["scales"][0], pixels["quats"][0], pixels["sh0"][0], labels, palette
    )
    return Source(count, rest, _blocks(meta, count, pictures))


def _rgba(path: Path, load: Load, name: str, most: int) -> np.ndarray:
    """[H, W, 4] bytes of a picture of at most ``most`` pixels."""
    from PIL import Image

    data = load(name)
    with Image.open(io.BytesIO(data), formats=("WEBP", "PNG")) as picture:
        if picture.width * picture.height > most:
            raise SplatFileError(
                f"{path}: its picture {name} has {picture.width} x {picture.height} pixels, more "
                "than its splats need"
            )
        return np.asarray(picture.convert("RGBA"))


def _picture(path: Path, load: Load, name: str, count: int) -> np.ndarray:
    """[count, 4] bytes."""
    flat = _rgba(path, load, name, 4 * count + 2**20).reshape(-1, 4)
    if len(flat) < count:
        raise SplatFileError(
            f"{path}: its picture {name} has {len(flat):,} pixels, {count:,} splats need one each"
        )
    return flat[:count]


def _palette(path: Path, load: Load, name: str) -> tuple[np.ndarray, int]:
    """Bytes [entries, harmonics, 3], and how many harmonics a channel has."""
    image = _rgba(path, load, name, 2**16 * (SH_COUNTS[-1] - 1) + 2**16)
    rest = image.shape[1] // COLUMNS
    if image.shape[1] % COLUMNS or rest + 1 not in SH_COUNTS[1:]:
        raise SplatFileError(f"{path}: its palette {name} is {image.shape[1]} pixels wide")
    return image[..., :3].reshape(-1, rest, 3), rest


def _values(entry: dict[str, Any], levels: np.ndarray) -> np.ndarray:
    """Levels of 0 to 255 as numbers: by a code book (version 2), or between two ends."""
    if "codebook" in entry:
        book = np.asarray(entry["codebook"], np.float64)
        if book.shape != (256,):
            raise ValueError(f"a code book of shape {book.shape}, needs 256 numbers")
        looked_up: np.ndarray = book[levels]
        return looked_up
    low, high = (np.asarray(entry[end], np.float64) for end in ("mins", "maxs"))
    between: np.ndarray = low + levels / 255.0 * (high - low)
    return between


def _blocks(meta: dict[str, Any], count: int, pictures: Pictures) -> Iterator[SplatCloud]:
    low, high = (np.asarray(meta["means"][end], np.float64) for end in ("mins", "maxs"))
    if low.shape != (3,) or high.shape != (3,):
        raise ValueError("means need three mins and three maxs")
    opaque = "codebook" in meta["sh0"]  # opacities are levels; in version 1 logits like the rest
    for rows in ranges(count):
        share = (pictures.low[rows, :3].astype("f8") + 256.0 * pictures.high[rows, :3]) / 65535.0
        where = low + share * (high - low)
        tint = pictures.colours[rows]
        turn = pictures.turns[rows]
        largest = turn[:, 3].astype(np.int64) - ROTATION
        three = (turn[:, :3] / 255.0 - 0.5) * np.sqrt(2.0)
        if opaque:
            colours, logits = _values(meta["sh0"], tint[:, :3]), opacity_logit(tint[:, 3] / 255.0)
        else:
            four = _values(meta["sh0"], tint)
            colours, logits = four[:, :3], tensor(four[:, 3])
        with np.errstate(over="ignore", invalid="ignore"):
            means = np.sign(where) * np.expm1(np.abs(where))
        # A fourth byte below 252 is no rotation: the row is a bad one.
        quat = smallest_three(three.astype("f4"), largest.clip(0, 3))
        quat[largest < 0] = 0.0
        yield SplatCloud(
            means=tensor(means),
            log_scale=tensor(_values(meta["scales"], pictures.scales[rows, :3])),
            quat_wxyz=tensor(quat),
            opacity_logit=logits,
            sh_dc=tensor(colours),
            sh_rest=tensor(_harmonics(meta, pictures, rows)),
        )


def _harmonics(meta: dict[str, Any], pictures: Pictures, rows: slice) -> np.ndarray:
    n = rows.stop - rows.start
    if pictures.labels is None or pictures.palette is None:
        return np.zeros((n, 0, 3), np.float32)
    label = pictures.labels[rows]
    index = label[:, 0].astype(np.int64) + 256 * label[:, 1].astype(np.int64)
    if int(index.max(initial=0)) >= len(pictures.palette):
        raise ValueError(f"a splat names entry {int(index.max())} of the palette")
    return _values(meta["shN"], pictures.palette[index])
