# SPDX-License-Identifier: Apache-2.0
"""The container of glTF 2.0: its tree, and accessors that are checked against the bytes there are.

trimesh reads the container too, but knows no attribute with a colon in its name, and makes room for
what an accessor claims before it looks.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from .base import SplatFileError

MAGIC, VERSION = b"glTF", 2
JSON_CHUNK, BINARY_CHUNK = b"JSON", b"BIN\0"
MOST_TEXT = 64 * 2**20  # bytes of the tree
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Column(NamedTuple):
    """An accessor."""

    raw: np.ndarray  # [N, width] in the numbers of the file: a view of it
    normalised: bool

    def at(self, rows: slice) -> np.ndarray:
        """[n, width] float32. A whole number that is normalised lies in [-1, 1] or [0, 1]."""
        held: np.ndarray = self.raw[rows].astype(np.float32)
        if self.normalised and self.raw.dtype.kind in "iu":
            held = np.maximum(held / np.iinfo(self.raw.dtype).max, -1.0)
        return held


class Gltf(NamedTuple):
    """A file that was opened."""

    path: Path
    tree: dict[str, Any]
    binary: np.ndarray | None  # of a .glb: a memory map
    held: dict[int, np.ndarray]  # buffers that were opened

    def broken(self, what: str) -> SplatFileError:
        return SplatFileError(f"{self.path}: broken or truncated glTF file: {what}")

    def row(self, table: str, index: Any) -> dict[str, Any]:
        """An entry of a table of the tree. SplatFileError where there is none."""
        rows = self.tree.get(table)
        if not isinstance(rows, list) or not self.whole(index) < len(rows):
            raise self.broken(f"there is no {index!r} in its {table}")
        found = rows[index]
        if not isinstance(found, dict):
            raise self.broken(f"{index} of its {table} is no object")
        return found

    def whole(self, value: Any) -> int:
        """A count or an index as it must be."""
        if type(value) is not int or not 0 <= value < 2**53:
            raise self.broken(f"{value!r} where a whole number from 0 on is needed")
        return value

    def column(self, index: Any, width: int) -> Column:
        """An accessor of ``width`` numbers a row. SplatFileError where it reaches beyond its
        bytes."""
        found = self.row("accessors", index)
        component, count = found.get("componentType"), self.whole(found.get("count"))
        kind = COMPONENTS.get(component) if isinstance(component, int) else None
        if kind is None or WIDTHS.get(str(found.get("type"))) != width:
            raise self.broken(f"accessor {index} is a {found.get('type')}, needs {width} numbers")
        if "sparse" in found or "bufferView" not in found:
            raise SplatFileError(f"{self.path}: its accessor {index} is sparse, which is not read")
        view = self.row("bufferViews", found["bufferView"])
        data, size = self._buffer(view.get("buffer")), np.dtype(kind).itemsize
        stride = self.whole(view.get("byteStride", size * width))
        begins, inside = self.whole(view.get("byteOffset", 0)), self.whole(view.get("byteLength"))
        start = begins + self.whole(found.get("byteOffset", 0))
        end = start + (stride * (count - 1) + size * width if count else 0)
        if stride < size * width or end > min(begins + inside, len(data)):
            raise self.broken(f"accessor {index} needs {end:,} bytes, it has {len(data):,}")
        if count == 0:
            return Column(np.zeros((0, width), kind), False)
        raw: np.ndarray = np.ndarray((count, width), kind, data.data, start, (stride, size))
        return Column(raw, found.get("normalized") is True)

    def _buffer(self, index: Any) -> np.ndarray:
        if self.whole(index) not in self.held:
            uri = self.row("buffers", index).get("uri")
            found = self.binary if uri is None else self._outside(str(uri))
            if found is None:
                raise self.broken(f"its buffer {index} is not there")
            self.held[index] = found
        return self.held[index]

    def _outside(self, uri: str) -> np.ndarray:
        if uri.startswith("data:"):
            return np.frombuffer(base64.b64decode(uri.partition(",")[2], validate=True), np.uint8)
        name = unquote(uri)
        beside = self.path.parent / name
        if name != Path(name).name or not beside.is_file():
            raise SplatFileError(f"{self.path}: names the file {name!r}, which is not beside it")
        return np.memmap(beside, np.uint8, "r") if beside.stat().st_size else np.zeros(0, np.uint8)


def is_gltf(path: Path, first: bytes) -> bool:
    """Whether a file is glTF, of splats or of triangles, by its first bytes."""
    return first[:4] == MAGIC or (path.suffix.lower() == ".gltf" and first.lstrip()[:1] == b"{")


def named_in(path: Path, word: str) -> bool:
    """Whether the tree of a glTF file has ``word`` in it; False for what cannot be read."""
    try:
        with path.open("rb") as stream:
            text = stream.read(20)
            if text[:4] == MAGIC and len(text) == 20:
                text = stream.read(min(struct.unpack_from("<I", text, 12)[0], MOST_TEXT))
            elif path.suffix.lower() == ".gltf":
                text += stream.read(MOST_TEXT)
    except OSError:
        return False
    return word.encode() in text


def open_file(path: Path) -> Gltf:
    """SplatFileError where it is no glTF 2.0, or ends before it should."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(20)
        if head[:4] != MAGIC:
            if size > MOST_TEXT:
                raise SplatFileError(f"{path}: is no glTF file: {size:,} bytes of text")
            return Gltf(path, _tree(path, head + stream.read()), None, {})
        if len(head) < 20:
            raise SplatFileError(f"{path}: broken or truncated glTF file: it has {size} bytes")
        version, whole, length, kind = struct.unpack("<III4s", head[4:])
        if version != VERSION or kind != JSON_CHUNK:
            raise SplatFileError(f"{path}: is no binary glTF of version 2: it says {version}")
        if whole > size or 20 + length > whole or length > MOST_TEXT:
            raise SplatFileError(
                f"{path}: broken or truncated glTF file: it claims {max(whole, length):,} bytes "
                f"and has {size:,}"
            )
        tree, chunk = _tree(path, stream.read(length)), stream.read(8)
    at = 28 + length
    inside, kind = struct.unpack("<I4s", chunk) if len(chunk) == 8 else (0, BINARY_CHUNK)
    if kind != BINARY_CHUNK or at - 8 + (8 if chunk else 0) + inside > size:
        raise SplatFileError(f"{path}: broken or truncated glTF file: its second part")
    binary = np.memmap(path, np.uint8, "r", at, (inside,)) if inside else None
    return Gltf(path, tree, binary, {})


def _tree(path: Path, text: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SplatFileError(f"{path}: broken or truncated glTF file: {error}") from None
    if not isinstance(tree, dict):
        raise SplatFileError(f"{path}: is no glTF file: it holds no object")
    return tree
