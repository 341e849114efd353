# SPDX-License-Identifier: Apache-2.0
"""Readers of Python that know the layout by themselves: plyfile, open3d and gsply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from representations.cloud import SplatCloud
from representations.export import Layout, packed, write_ply

from . import scenes

UP = [("viewer", (0, -2, 1), (1, -1, 1)), ("y", (1, 2, 0), (1, 1, 1)), ("z", (0, 1, 2), (1, 1, 1))]


@pytest.fixture(scope="module")
def cloud() -> SplatCloud:
    return scenes.thin().cloud


@pytest.mark.parametrize(("up", "axes", "signs"), UP)
def test_plyfile(
    tmp_path: Path, cloud: SplatCloud, up: str, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    from plyfile import PlyData

    path = tmp_path / "a.ply"
    write_ply(path, cloud, Layout(up=up))
    (vertex,) = PlyData.read(path).elements
    assert vertex.count == len(cloud)
    for name, axis, sign in zip("xyz", axes, signs, strict=True):
        np.testing.assert_array_equal(vertex[name], sign * cloud.means[:, abs(axis)].numpy())
    np.testing.assert_array_equal(vertex["opacity"], cloud.opacity_logit.numpy())
    for i in range(3):
        np.testing.assert_array_equal(vertex[f"scale_{i}"], cloud.log_scale[:, i].numpy())
        np.testing.assert_array_equal(vertex[f"f_dc_{i}"], cloud.sh_dc[:, i].numpy())


def test_open3d(tmp_path: Path, cloud: SplatCloud) -> None:
    open3d = pytest.importorskip("open3d", reason="open3d is not installed (extra 'open3d')")
    path = tmp_path / "a.ply"
    write_ply(path, cloud, Layout(up="z"))
    read: Any = open3d.t.io.read_point_cloud(str(path)).point
    names = sorted(key for key, _ in read.items())
    assert {"f_dc", "f_rest", "opacity", "positions", "rot", "scale"} <= set(names), names
    held = {
        "positions": cloud.means,
        "scale": cloud.log_scale.exp(),  # it activates scales as it reads, and nothing else
        "opacity": cloud.opacity_logit[:, None],
        "f_dc": cloud.sh_dc,
        "rot": torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1),
        "f_rest": cloud.sh_rest,
    }
    for name, ours in held.items():
        theirs = read[name].numpy().reshape(ours.shape)
        # Not turned, so only the rotation rounds, and the harmonics, by a solution of equations.
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["ply", "ply-compressed", "spz"])
def test_gsply(tmp_path: Path, cloud: SplatCloud, kind: str) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")
    layout = Layout(up="z")
    if kind == "ply":
        write_ply(tmp_path / "a.ply", cloud, layout)
        data = gsply.plyread(tmp_path / "a.ply")
    elif kind == "spz":
        packed.write_spz(tmp_path / "a.spz", cloud, layout)
        data = gsply.read_spz(tmp_path / "a.spz")
    else:
        packed.write_compressed_ply(tmp_path / "a.compressed.ply", cloud, layout)
        data = gsply.plyread(tmp_path / "a.compressed.ply")
    # Compressed files are sorted: neighbours in space are the same splat.
    distance = torch.cdist(cloud.means, torch.from_numpy(np.array(data.means)))
    assert float(distance.min(1).values.max()) < 4e-3
    order = distance.argmin(1).numpy()
    exact = kind == "ply"
    for theirs, ours, tolerance in (
        (data.scales, cloud.log_scale, 0.04),  # SPZ has steps of 1/16
        (data.sh0, cloud.sh_dc, 0.02),
        (data.shN, cloud.sh_rest, 0.03),  # 8 bits of a range of 8 in compressed PLY
    ):
        np.testing.assert_allclose(
            np.asarray(theirs)[order], ours.numpy(), atol=1e-6 if exact else tolerance
        )
    quat = torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1).numpy()
    agreement = np.abs((np.asarray(data.quats)[order] * quat).sum(-1))
    assert agreement.min() > 1.0 - 1e-5
