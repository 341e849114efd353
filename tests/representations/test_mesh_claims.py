# SPDX-License-Identifier: Apache-2.0
"""A mesh file that unfolds into more than it holds is refused before a reader believes it."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from representations import claims
from representations.gaussians.initialise import file_points


def read(path: Path) -> torch.Tensor:
    return file_points(path, 50, 0.8, 0.5, torch.Generator().manual_seed(0))[0]


def glb(path: Path, **changed: Any) -> Path:
    """A whole box, with parts of its tree replaced."""
    data: bytes = trimesh.creation.box().export(file_type="glb")
    length = struct.unpack("<I", data[12:16])[0]
    tree = {**json.loads(data[20 : 20 + length]), **changed}
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = struct.pack("<I", len(text)) + b"JSON" + text + data[20 + length :]
    path.write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(rest)) + rest)
    return path


@pytest.fixture(autouse=True)
def _unread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "whole" not in request.node.name:
        monkeypatch.setattr(trimesh, "load", lambda path, **_: pytest.fail(f"{path} was read"))


def test_whole_files_are_read(tmp_path: Path) -> None:
    assert read(glb(tmp_path / "a.glb")).shape == (50, 3)
    trimesh.creation.box().export(tmp_path / "a.obj")
    assert read(tmp_path / "a.obj").shape == (50, 3)
    (tmp_path / "a.gltf").write_text(json.dumps({"asset": {"version": "2.0"}}))
    with pytest.raises(ValueError, match="no triangles and no points"):
        read(tmp_path / "a.gltf")


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.obj", "v 0 0 0\n")
    with pytest.raises(ValueError, match="is an archive: unpack it"):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.glb", "a.3mf", "a.obj"])
def test_an_archive_by_another_name_is_not_unpacked_into_gigabytes(
    tmp_path: Path, name: str
) -> None:
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.obj", bytes(90 * 2**20))
    assert (tmp_path / name).stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"unpacks into 283,115,520 bytes: at most"):
        read(tmp_path / name)


SCENE: dict[str, dict[str, Any]] = {
    "nodes": {"nodes": [{"mesh": 0}] * (claims.MOST_NODES + 1)},
    "placed": {"nodes": [{"mesh": 0}] * 2,
               "accessors": [{"count": claims.MOST_VERTICES // 2 + 1, "bufferView": 0}] * 9},
    "bare": {"accessors": [{"count": claims.MOST_VERTICES + 1, "componentType": 5126}] * 9},
    "damaged": {"meshes": [{"primitives": [{"attributes": {"POSITION": 99}}]}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "told"),
    [("nodes", "has 20,001 nodes"), ("placed", "unfolds into 20,000,002 vertices"),
     ("bare", "unfolds into 180,000,009 vertices"), ("damaged", "damaged tree")],
)  # fmt: skip
def test_a_scene_of_more_than_anybody_made(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(glb(tmp_path / "a.glb", **SCENE[name]))


def test_a_header_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    path = glb(tmp_path / "a.glb")
    data = path.read_bytes()
    for broken in (data[:15], data[:100], data[:12] + struct.pack("<I", 2**31) + data[16:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is cut off"):
            read(path)


@pytest.mark.parametrize("value", ["nan", "inf", "1e30"])
def test_a_vertex_that_is_no_place_is_named_whole(tmp_path: Path, value: str) -> None:
    rows = ["v 0 0 0", "v 1 0 0", f"v 0 {value} 0", "f 1 2 3"]
    (tmp_path / "a.obj").write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"a.obj cannot be read .*the first is 2"):
        read(tmp_path / "a.obj")


def test_a_whole_file_of_vertices_of_two_numbers_is_refused(tmp_path: Path) -> None:
    """A cut line of an OBJ file makes them, where it cuts all alike."""
    (tmp_path / "flat.obj").write_text("v 0 0\nv 1 0\nv 0 1\n")
    with pytest.raises(ValueError, match=r"flat\.obj.*three numbers are needed, these have 2"):
        read(tmp_path / "flat.obj")
