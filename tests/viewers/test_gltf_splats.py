# SPDX-License-Identifier: Apache-2.0
"""Splats in glTF: ours by three.js's loader of the extension and by Khronos' validator, and those
of splat-transform by our reader."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from representations.axes import rotate_to_file
from representations.cloud import SplatCloud
from representations.export import write_ply
from representations.ops.constants import SH_DC
from representations.ops.splats.reference import rotation_matrices
from representations.reading import Reading, read_splats

from . import scenes
from .conftest import BIN, HERE, LIMIT_S
from .test_meshes import validated

NAME = "KHR_gaussian_splatting"


def loaded(node: str, path: Path) -> dict[str, Any]:
    """What three.js holds of the one thing in a file."""
    done = subprocess.run(
        [node, str(HERE / "gltf_splats.mjs"), str(path)],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    held: dict[str, Any] = found
    return held


def drawable(cloud: SplatCloud) -> SplatCloud:
    return cloud.map(lambda tensor: tensor[cloud.opacity_logit.sigmoid() >= 1.0 / 255.0])


def test_three_js_holds_the_same_splats(node: str, export: Callable[..., Path]) -> None:
    wanted = rotate_to_file(drawable(scenes.thin().cloud), "y")
    found = loaded(node, export("thin", "gltf-splats"))
    assert found["kind"] == "GaussianSplat"
    held = {name: np.array(column) for name, column in found["columns"].items()}
    n = len(wanted)
    np.testing.assert_allclose(held["position"].reshape(n, 3), wanted.means, atol=1e-6)
    axes = rotation_matrices(wanted.quat_wxyz.double()) * wanted.log_scale.double().exp()[:, None]
    whole = (axes @ axes.transpose(1, 2)).numpy()
    upper = whole[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(held["covariance"].reshape(n, 6), upper, rtol=1e-4, atol=1e-9)
    opacity = wanted.opacity_logit.sigmoid()[:, None]
    rgba = torch.cat([0.5 + SH_DC * wanted.sh_dc, opacity], 1).clamp(0, 1) * 255
    np.testing.assert_allclose(held["color"].reshape(n, 4), rgba, atol=0.51)
    # It packs harmonics in bytes around 128, those of a degree together.
    for degree, (first, last) in enumerate(((0, 3), (3, 8), (8, 15)), 1):
        raw = held[f"sphericalHarmonics{degree}"].astype("<u4").view("u1").reshape(n, -1)
        ours = wanted.sh_rest[:, first:last].reshape(n, -1).clamp(-1, 127 / 128) * 128 + 128
        np.testing.assert_allclose(raw[:, : ours.shape[1]], ours, atol=1.01)


def test_the_validator_finds_nothing_but_names_that_it_does_not_know(
    node: str, export: Callable[..., Path]
) -> None:
    """Its newest version knows no extension of splats, and takes attributes with its name in front
    for misspelt ones; points, accessors and buffers are checked all the same."""
    report = validated(node, export("mug", "gltf-splats"))
    print("\n", json.dumps(report["issues"])[:500])
    assert report["issues"]["numWarnings"] == 0
    errors = [said for said in report["issues"]["messages"] if said["severity"] == 0]
    assert {said["code"] for said in errors} == {"MESH_PRIMITIVE_INVALID_ATTRIBUTE"}
    assert all(f"/attributes/{NAME}:" in said["pointer"] for said in errors)
    assert report["info"]["extensionsUsed"] == [NAME]


def test_a_file_of_splat_transform_is_read(node: str, tmp_path: Path) -> None:
    """It turns a .ply of viewers by half a turn about its z: y up, and its front is our -x."""
    cloud = drawable(scenes.thin().cloud)
    write_ply(tmp_path / "a.ply", cloud)
    done = subprocess.run(
        [node, str(BIN / "splat-transform"), "-q", "-w", str(tmp_path / "a.ply"),
         str(tmp_path / "a.glb")],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = read_splats(tmp_path / "a.glb", Reading(up="z")).cloud
    held = rotate_to_file(cloud)
    means = got.means * torch.tensor([-1.0, -1.0, 1.0])
    near = torch.cdist(held.means, means).argmin(1)
    torch.testing.assert_close(means[near], held.means)
    for name in ("log_scale", "opacity_logit", "sh_dc"):
        ours, theirs = getattr(held, name), getattr(got, name)[near]
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert got.sh_degree == held.sh_degree
