# SPDX-License-Identifier: Apache-2.0
"""What a mesh file claims to hold, compared with what it has, before a reader believes it."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

MOST_UNPACKED = 256 * 2**20  # bytes of all members of an archive
MOST_NODES = 20_000  # of a glTF scene: a reader walks from each to the root
MOST_VERTICES = 20_000_000  # of a glTF scene, a mesh counted as often as it is placed
LARGEST_TREE = 64 * 2**20  # bytes of the JSON in a glTF file
ARCHIVES = (".zip", ".gz", ".bz2", ".xz", ".tar", ".tgz", ".7z", ".rar")


def require_honest(path: Path) -> None:
    """Raise ValueError for an archive, and for a file that unfolds into far more than it has bytes
    for: zipped formats by the sizes in their directory, glTF by the counts in its tree."""
    if path.suffix.lower() in ARCHIVES:
        raise ValueError(f"{path} is an archive: unpack it, and give the mesh or points in it")
    with path.open("rb") as stream:
        first = stream.read(20)
    if first[:4] == b"PK\x03\x04":
        _require_small(path)
    elif first[:4] == b"glTF":
        _require_scene(path, _tree_of(path, first))
    elif path.suffix.lower() == ".gltf":
        if path.stat().st_size > 4 * LARGEST_TREE:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes: write it as .glb")
        _require_scene(path, _parsed(path, path.read_bytes()))


def _require_small(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} is a damaged archive ({error})") from None
    if claimed > MOST_UNPACKED:
        raise ValueError(
            f"{path} unpacks into {claimed:,} bytes: at most {MOST_UNPACKED:,} are read; unpack it "
            "yourself, and give a .ply, .obj or .glb"
        )


def _tree_of(path: Path, first: bytes) -> Any:
    """The JSON of a binary glTF file, whose first 20 bytes are given."""
    size = path.stat().st_size
    length, chunk = (struct.unpack("<I", first[at : at + 4])[0] for at in (8, 12)) \
        if len(first) == 20 else (0, 0)  # fmt: skip
    if length > size or not 2 <= chunk <= min(LARGEST_TREE, size - 20):
        raise ValueError(
            f"{path} is cut off: it claims {length:,} bytes, {chunk:,} of them for its tree, and "
            f"has {size:,}"
        )
    with path.open("rb") as stream:
        stream.seek(20)
        return _parsed(path, stream.read(chunk))


def _parsed(path: Path, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged tree ({error})") from None


def _require_scene(path: Path, tree: Any) -> None:
    try:
        nodes, meshes = tree.get("nodes", []), tree.get("meshes", [])
        counts = [int(accessor["count"]) for accessor in tree.get("accessors", [])]
        bare = [a for a in tree.get("accessors", []) if "bufferView" not in a]
        of_mesh = [
            sum(counts[p["attributes"]["POSITION"]] for p in mesh["primitives"]) for mesh in meshes
        ]
        placed = sum(of_mesh[node["mesh"]] for node in nodes if "mesh" in node)
        bare_count = sum(int(accessor["count"]) for accessor in bare)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a damaged tree ({type(error).__name__}: {error})") from None
    if len(nodes) > MOST_NODES:
        raise ValueError(
            f"{path} has {len(nodes):,} nodes: at most {MOST_NODES:,} are read; join its meshes in "
            "a modelling program first"
        )
    if max(placed, bare_count) > MOST_VERTICES:
        raise ValueError(
            f"{path} unfolds into {max(placed, bare_count):,} vertices: at most {MOST_VERTICES:,} "
            "are read; thin it out in a modelling program first"
        )
