# SPDX-License-Identifier: Apache-2.0
"""Readers of Python that know the layout by themselves: plyfile, open3d, gsply, Niantic's own
reader of SPZ, which the package alspz brings, NVIDIA's converter to OpenUSD and its validator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from representations.cloud import SplatCloud
from representations.export import Layout, packed, usd, write_ply

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


@pytest.mark.parametrize(("kind", "source"), [("usdc", "ply"), ("usda", "ply"), ("usdz", "spz")])
def test_what_nvidia_writes(tmp_path: Path, cloud: SplatCloud, kind: str, source: str) -> None:
    """Its OpenUSD of our .ply or .spz holds the numbers of our OpenUSD. Harmonics of an .spz are
    left out: it reads channel after channel there, where Niantic's code has r, g, b in turn."""
    theirs = pytest.importorskip(
        "usd_convert_gsplat", reason="usd-convert-gsplat is not installed; docs/files.md says how"
    )
    pytest.importorskip("pxr", reason="usd-core is not installed (extra 'usd')")
    from pxr import Usd, UsdGeom, UsdVol

    layout = Layout(up="y", sh_degree=0 if source == "spz" else None)
    given = tmp_path / f"a.{source}"
    usd.write_usd(tmp_path / f"ours.{kind}", cloud, kind, layout)
    (write_ply if source == "ply" else packed.write_spz)(given, cloud, layout)
    data = (theirs.read_ply if source == "ply" else theirs.read_spz)(str(given))
    theirs.write_gaussian_splat_usd(data, str(tmp_path / "theirs.usdc"))
    stages = [Usd.Stage.Open(str(tmp_path / name)) for name in (f"ours.{kind}", "theirs.usdc")]
    assert [UsdGeom.GetStageUpAxis(stage) for stage in stages] == ["Y", "Y"]
    assert [UsdGeom.GetStageMetersPerUnit(stage) for stage in stages] == [1.0, 1.0]
    one, other = (UsdVol.ParticleField3DGaussianSplat(s.GetDefaultPrim()) for s in stages)
    exact = source == "ply"
    for name, step in (
        ("Positions", 1 / 4096), ("Scales", 0.02), ("Opacities", 0.005),
        ("RadianceSphericalHarmonicsDegree", 0.0),
        ("RadianceSphericalHarmonicsCoefficients", 0.02),
    ):  # fmt: skip
        ours, seen = (np.array(getattr(held, f"Get{name}Attr")().Get()) for held in (one, other))
        assert ours.shape == seen.shape, name
        np.testing.assert_allclose(ours, seen, atol=2e-6 if exact else step, err_msg=name)
    ours, seen = (
        np.array([[q.GetReal(), *q.GetImaginary()] for q in held.GetOrientationsAttr().Get()])
        for held in (one, other)
    )
    assert np.abs((ours * seen).sum(1)).min() > 1.0 - 1e-5


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("kind", ["usdc", "usdz"])
def test_nvidia_finds_no_fault(tmp_path: Path, cloud: SplatCloud, kind: str, up: str) -> None:
    """The usual rules of its Asset Validator, and the one of splats, which does see a fault."""
    validator = pytest.importorskip(
        "omni.asset_validator", reason="omniverse-asset-validator is not installed; docs/files.md"
    )
    pytest.importorskip("pxr", reason="usd-core is not installed (extra 'usd')")
    from pxr import Usd, UsdVol

    path = tmp_path / f"a.{kind}"
    usd.write_usd(path, cloud, kind, Layout(up=up))
    judge = validator.ValidationEngine(init_rules=True)
    judge.enable_rule(validator.GaussianSplatSchemaChecker)
    assert [issue.message for issue in judge.validate(str(path)).issues()] == []
    stage = Usd.Stage.Open(str(path))
    splats = UsdVol.ParticleField3DGaussianSplat(stage.GetDefaultPrim())
    splats.GetOpacitiesAttr().Set([2.0] * len(cloud))
    stage.Export(str(tmp_path / "wrong.usdc"))
    told = [issue.message for issue in judge.validate(str(tmp_path / "wrong.usdc")).issues()]
    assert any("Opacity at index 0 is 2" in message for message in told), told


@pytest.mark.parametrize("version", packed.SPZ_VERSIONS)
def test_the_code_of_niantic(tmp_path: Path, cloud: SplatCloud, version: int) -> None:
    alspz = pytest.importorskip("alspz", reason="alspz is not installed; docs/files.md says how")
    path = tmp_path / "a.spz"
    packed.write_spz(path, cloud, Layout(up="z"), version=version)
    assert (path.read_bytes()[:4] == b"NGSP") == (version == 4)  # version 3 is packed by gzip
    read = alspz.load_spz(path.read_bytes())
    assert (read["num_points"], read["sh_degree"], read["antialiased"]) == (len(cloud), 3, False)
    for name, ours, step in (
        ("positions", cloud.means, 1 / 4096),
        ("scales", cloud.log_scale, 1 / 16),
        ("colors", cloud.sh_dc, 1 / (0.15 * 255)),
        ("sh", cloud.sh_rest, 1 / 128),
    ):
        theirs = read[name].reshape(ours.shape)
        np.testing.assert_allclose(theirs, ours.numpy(), atol=step / 2 + 1e-6, err_msg=name)
    opacity = 1.0 / (1.0 + np.exp(-read["alphas"]))
    np.testing.assert_allclose(opacity, cloud.opacity_logit.sigmoid(), atol=0.5 / 255 + 1e-6)
    quat = torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1).numpy()
    agreement = np.abs((read["rotations"] * quat[:, [1, 2, 3, 0]]).sum(-1))  # x, y, z, w there
    assert agreement.min() > 1.0 - 1e-5
