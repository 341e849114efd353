# SPDX-License-Identifier: Apache-2.0
"""The .glb export by Khronos' validator and by trimesh, which must see the same mesh."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from .conftest import HERE, LIMIT_S
from .scenes import Scene


def validated(node: str, path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [node, str(HERE / "validate.mjs"), str(path)],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_glb_is_valid_and_is_the_mug(
    node: str, export: Callable[..., Path], all_scenes: dict[str, Scene]
) -> None:
    path = export("mug", "glb", "--resolution", "48")
    report = validated(node, path)
    print("\n", json.dumps(report["issues"]))
    assert report["issues"]["numErrors"] == 0, report["issues"]["messages"]
    assert report["issues"]["numWarnings"] == 0, report["issues"]["messages"]
    (mesh,) = trimesh.load_scene(path).geometry.values()
    assert report["info"]["totalTriangleCount"] == len(mesh.faces) > 100
    assert report["info"]["totalVertexCount"] == len(mesh.vertices)
    # y is up: the mug's height is the z of its opaque splats
    cloud = all_scenes["mug"].cloud
    solid = cloud.means[cloud.opacity_logit.sigmoid() > 0.5].numpy()
    low, high = np.quantile(solid[:, 2], [0.02, 0.98])
    np.testing.assert_allclose(mesh.bounds[:, 1], [low, high], atol=0.1)


def test_the_textured_glb_is_valid_and_is_the_mug(
    node: str, export: Callable[..., Path], all_scenes: dict[str, Scene]
) -> None:
    """The picture is read by both, and shows the colours of the splats that are near."""
    path = export("mug", "glb", "--resolution", "48", "--texture", "256")
    report = validated(node, path)
    print("\n", json.dumps(report["issues"]))
    assert report["issues"]["numErrors"] == 0, report["issues"]["messages"]
    assert report["issues"]["numWarnings"] == 0, report["issues"]["messages"]
    image = report["info"]["resources"][1]["image"]
    assert (image["width"], image["height"], image["transfer"]) == (256, 256, "srgb")
    (mesh,) = trimesh.load_scene(path).geometry.values()
    assert report["info"]["totalTriangleCount"] == len(mesh.faces) > 100
    cloud = all_scenes["mug"].cloud
    solid = cloud.means[cloud.opacity_logit.sigmoid() > 0.5].numpy()
    low, high = np.quantile(solid[:, 2], [0.02, 0.98])
    np.testing.assert_allclose(mesh.bounds[:, 1], [low, high], atol=0.1)  # upright


def test_the_validator_finds_an_error(node: str, tmp_path: Path) -> None:
    """A test of the test: an index beyond the vertices."""
    mesh = trimesh.creation.box()
    data = bytearray(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(None, "glb"))
    start = data.index(np.asarray(mesh.faces[0], np.uint32).tobytes())
    data[start : start + 4] = np.uint32(99).tobytes()
    path = tmp_path / "broken.glb"
    path.write_bytes(bytes(data))
    assert validated(node, path)["issues"]["numErrors"] > 0
