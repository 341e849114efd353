# SPDX-License-Identifier: Apache-2.0
"""The header of a PLY file, and where each of its tables begins.

plyfile would do, but for two things: it reads headers as ASCII, and programs write their users'
names into comments; and without a memory map it reads row by row, 9 s for 400,000 splats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from .base import ROWS, SplatFileError

LONGEST = 2**20  # bytes of a header
END = re.compile(rb"(^|\n)end_header[ \t]*(\r\n|\n|\r)")
ORDER = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "half": "f2", "float16": "f2", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


class Table(NamedTuple):
    """An element: its rows, and its columns in the order of the file."""

    name: str
    rows: int
    columns: dict[str, str]  # name -> numpy's kind and size; "list" for a list

    def dtype(self, order: str) -> np.dtype[np.void]:
        return np.dtype([(name, order + kind) for name, kind in self.columns.items()])


class Header(NamedTuple):
    path: Path
    form: str  # of ORDER
    tables: dict[str, Table]
    comments: list[str]
    size: int  # bytes before the first row


def read_header(path: Path, stream: BinaryIO) -> Header:
    """Parse the beginning of a file. SplatFileError where it is no PLY, or broken."""
    raw = stream.read(LONGEST)
    if raw[:4] not in (b"ply\n", b"ply\r"):
        raise SplatFileError(f"{path}: does not start with 'ply', so it is no PLY file")
    end = END.search(raw)
    if end is None:
        raise SplatFileError(f"{path}: broken or truncated PLY file: its header has no end")
    # Comments may be in any encoding; latin-1 reads every byte.
    lines = raw[: end.start()].decode("utf-8", "replace").splitlines()[1:]
    form, tables, comments = "", {}, []
    try:
        for line in lines:
            words = line.split()
            match words[:1]:
                case ["format"]:
                    form = words[1]
                case ["comment" | "obj_info"]:
                    comments.append(line.strip()[len(words[0]) :].strip())
                case ["element"]:
                    table = Table(words[1], int(words[2]), {})
                    if table.rows < 0 or table.name in tables:
                        raise ValueError(f"the element {line.strip()!r}")
                    tables[table.name] = table
                case ["property"]:
                    _add(table, words[1:])
                case []:
                    pass
                case _:
                    raise ValueError(f"the line {line.strip()[:60]!r}")
        order = ORDER[form]
    except (ValueError, KeyError, IndexError, UnboundLocalError) as error:
        raise SplatFileError(f"{path}: broken or truncated PLY file: {error}") from None
    del order
    return Header(path, form, tables, comments, end.end())


def _add(table: Table, words: list[str]) -> None:
    kind, name = ("list", words[3]) if words[0] == "list" else (TYPES[words[0]], words[1])
    if name in table.columns:
        raise ValueError(f"two properties {name!r} of {table.name}")
    table.columns[name] = kind


def require_whole(header: Header, name: str, size: int) -> int:
    """Where the rows of the element ``name`` begin in a binary file of ``size`` bytes.
    SplatFileError where the file ends before they do."""
    at = header.size
    for table in header.tables.values():
        if "list" in table.columns.values():
            raise SplatFileError(
                f"{header.path}: its element '{table.name}' has lists, so it is a mesh; "
                "--init reads a mesh whose name does not end in .ply, or write it as .obj or .glb"
            )
        rows = table.rows * table.dtype(ORDER[header.form]).itemsize
        if table.name == name:
            if at + rows > size:
                raise SplatFileError(
                    f"{header.path}: broken or truncated PLY file: {table.rows:,} rows of "
                    f"'{name}' need {at + rows:,} bytes, it has {size:,}"
                )
            return at
        at += rows
    raise AssertionError(name)


def binary_rows(header: Header, name: str, size: int) -> Iterator[np.ndarray]:
    """The rows of an element as structured arrays of at most ROWS; the sizes were checked."""
    table = header.tables[name]
    at, kind = require_whole(header, name, size), table.dtype(ORDER[header.form])
    with header.path.open("rb") as stream:
        stream.seek(at)
        for first in range(0, table.rows, ROWS):
            rows = np.fromfile(stream, kind, min(ROWS, table.rows - first))
            if len(rows) < min(ROWS, table.rows - first):
                raise SplatFileError(f"{header.path}: broken or truncated PLY file")
            yield rows


def text_rows(header: Header, name: str) -> Iterator[np.ndarray]:
    """The same of an ASCII file; every column is a double."""
    table = header.tables[name]
    kind = np.dtype([(column, "f8") for column in table.columns])
    with header.path.open("rb") as stream:
        stream.seek(header.size)
        for before in header.tables.values():
            if before.name == name:
                break
            for _ in range(min(before.rows, header.path.stat().st_size)):
                stream.readline()
        for first in range(0, table.rows, ROWS):
            wanted = min(ROWS, table.rows - first)
            lines = [line for line in (stream.readline() for _ in range(wanted)) if line]
            try:
                flat = np.array([line.split() for line in lines], dtype=np.float64)
            except ValueError:
                flat = np.empty((0, 0))
            if flat.shape != (wanted, len(table.columns)):
                raise SplatFileError(
                    f"{header.path}: broken or truncated PLY file: {wanted} rows of "
                    f"{len(table.columns)} numbers are needed from row {first}"
                )
            yield flat.view(kind)[:, 0]
