# SPDX-License-Identifier: Apache-2.0
"""glTF of splats, OpenUSD, SPZ 4, .ksplat, and SOG without Node.js: each by a reader that does not
share our code, or by numbers known beforehand. tests/viewers has three.js and splat-transform."""

from __future__ import annotations

import base64
import builtins
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from representations.axes import rotate_to_file
from representations.cloud import SplatCloud
from representations.export import Layout, forge, packed, usd
from representations.export.gltf_splats import write_gltf_splats
from representations.export.ksplat import write_ksplat
from representations.export.packed import MissingTool
from representations.harmonics import evaluate_rest
from representations.ops.constants import SH_DC
from representations.ops.splats.reference import rotation_matrices
from representations.points import to_linear
from representations.reading import Reading, SplatFileError, holds_splats, read_splats
from representations.transfer import display_of, displayed, linear_of

from .test_splat_files import cloud

AS_IS = Reading(up="z")
NAME = "KHR_gaussian_splatting"
KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
COMPONENTS = {"f4": 5126, "i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123}


def opened(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The tree of a .glb of one primitive, and its attributes: a decoder of thirty lines."""
    raw = path.read_bytes()
    magic, version, whole, length, kind = struct.unpack_from("<4sIII4s", raw)
    assert (magic, version, whole, kind) == (b"glTF", 2, len(raw), b"JSON")
    tree = json.loads(raw[20 : 20 + length])
    size, kind = struct.unpack_from("<I4s", raw, 20 + length)
    body = raw[28 + length :]
    assert (kind, size) == (b"BIN\0", len(body)) == (b"BIN\0", tree["buffers"][0]["byteLength"])
    attributes = {}
    for name, index in tree["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = tree["accessors"][index]
        view = tree["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5123: "<u2"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        held = body[view["byteOffset"] :][: view["byteLength"]]
        attributes[name] = np.frombuffer(held, dtype).reshape(accessor["count"], width)
    return tree, attributes


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gltf_holds_what_the_extension_asks_for(tmp_path: Path, degree: int) -> None:
    before = cloud(50, degree)
    path = tmp_path / "mug.splats.glb"
    assert write_gltf_splats(path, before, Layout(min_opacity=0.0)) == 50
    tree, held = opened(path)
    assert tree["extensionsUsed"] == [NAME]
    assert tree["nodes"][0]["name"] == "mug"
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    assert primitive["extensions"][NAME] == {
        "kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }  # fmt: skip
    assert len(held) == 5 + (degree + 1) ** 2
    x, y, z = before.means.T.numpy()
    np.testing.assert_array_equal(held["POSITION"], np.stack([y, z, x], 1))  # y up, front +z
    accessor = tree["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(accessor["min"], held["POSITION"].min(0))
    np.testing.assert_array_equal(accessor["max"], held["POSITION"].max(0))
    np.testing.assert_allclose(held[f"{NAME}:SCALE"], before.log_scale.exp().numpy(), rtol=1e-6)
    opacity = before.opacity_logit.sigmoid().numpy()
    np.testing.assert_allclose(held[f"{NAME}:OPACITY"][:, 0], opacity, atol=1e-6)
    np.testing.assert_array_equal(held[f"{NAME}:SH_DEGREE_0_COEF_0"], before.sh_dc.numpy())
    # x y z w: the axes of a splat in the file are those in our world, permuted like positions.
    axes = Rotation.from_quat(held[f"{NAME}:ROTATION"]).as_matrix()
    ours = rotation_matrices(before.quat_wxyz.double()).numpy()[:, [1, 2, 0]]
    np.testing.assert_allclose(axes, ours, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(held[f"{NAME}:ROTATION"], axis=1), 1, atol=1e-6)


def test_gltf_s_harmonics_shine_where_ours_do(tmp_path: Path) -> None:
    """By the functions of the specification's text, written down here."""
    before = cloud(20, 2)
    write_gltf_splats(tmp_path / "a.glb", before)
    held = opened(tmp_path / "a.glb")[1]
    rng = torch.Generator().manual_seed(1)
    ours = torch.nn.functional.normalize(torch.randn(1, 20, 3, generator=rng), dim=-1)
    wanted = evaluate_rest(before.sh_rest, ours)[0].numpy()
    x, y, z = (ours[0].numpy()[:, axis, None] for axis in (1, 2, 0))  # of the file
    basis = {
        (1, 0): -0.4886025119029199 * y, (1, 1): 0.4886025119029199 * z,
        (1, 2): -0.4886025119029199 * x,
        (2, 0): 1.092548430592079 * x * y, (2, 1): -1.092548430592079 * y * z,
        (2, 2): 0.3153915652525200 * (2 * z * z - x * x - y * y),
        (2, 3): -1.092548430592079 * x * z, (2, 4): 0.5462742152960395 * (x * x - y * y),
    }  # fmt: skip
    got = sum(held[f"{NAME}:SH_DEGREE_{d}_COEF_{m}"] * value for (d, m), value in basis.items())
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_who_knows_no_splats_sees_coloured_points(tmp_path: Path) -> None:
    before, told = cloud(200), list[str]()
    write_gltf_splats(tmp_path / "a.glb", before, Layout(min_opacity=0.0), told.append)
    (points,) = trimesh.load_scene(tmp_path / "a.glb").geometry.values()
    assert isinstance(points, trimesh.PointCloud)
    np.testing.assert_allclose(points.vertices, before.means.numpy()[:, [1, 2, 0]], atol=1e-6)
    held = opened(tmp_path / "a.glb")[1]["COLOR_0"] / 65535.0
    shown = np.clip(0.5 + SH_DC * before.sh_dc.numpy(), 0.0, 1.0)
    np.testing.assert_allclose(held[:, :3], to_linear(shown), atol=1e-5)
    np.testing.assert_allclose(held[:, 3], before.opacity_logit.sigmoid(), atol=1e-5)
    beyond = int(((0.5 + SH_DC * before.sh_dc - 0.5).abs() > 0.5).any(1).sum())
    assert told == [f"{beyond} of 200 splats have colours beyond 0 to 1: whole in the splats, cut "
                    "in the points for programs that know no splats"]  # fmt: skip


def same(got: SplatCloud, wanted: SplatCloud, **within: float) -> None:
    """Up to the sign of a rotation."""
    turned = [torch.nn.functional.normalize(c.quat_wxyz, dim=-1) for c in (got, wanted)]
    sign = (turned[0] * turned[1]).sum(-1, keepdim=True).sign()
    got, wanted = got.replace(quat_wxyz=turned[0] * sign), wanted.replace(quat_wxyz=turned[1])
    for (name, a), (_, b) in zip(got.items(), wanted.items(), strict=True):
        torch.testing.assert_close(a, b, atol=within.get(name, 2e-5), rtol=1e-5, msg=name)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gltf_comes_back(tmp_path: Path, degree: int) -> None:
    before = cloud(40, degree)
    write_gltf_splats(tmp_path / "a.glb", before, Layout(min_opacity=0.0))
    found = read_splats(tmp_path / "a.glb")
    assert found.notes == ()
    same(found.cloud, before)
    assert holds_splats(tmp_path / "a.glb")


def gltf(held: dict[str, np.ndarray], path: Path, *, text: bool = False, said: Any = None,
         nodes: Any = None, normalised: tuple[str, ...] = (), mode: int = 0,
         extra: Any = None) -> Path:  # fmt: skip
    """A glTF of our own making of these attributes, in whatever numbers they have."""
    body, views, accessors, attributes = b"", [], [], {}
    for index, (name, column) in enumerate(held.items()):
        data = column.tobytes() + b"\0" * (-column.nbytes % 4)
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(data)})
        accessors.append({
            "bufferView": index, "componentType": COMPONENTS[column.dtype.str[1:]],
            "count": len(column), "type": KINDS[column.shape[1]],
            "normalized": name in normalised,
        })  # fmt: skip
        attributes[name] = index
        body += data
    said = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"} if said is None else said
    primitive = {"attributes": attributes, "mode": mode, "extensions": {NAME: said}}
    tree = {
        "asset": {"version": "2.0"}, "extensionsUsed": [NAME], "scene": 0,
        "scenes": [{"nodes": [0]}], "nodes": nodes or [{"mesh": 0}],
        "meshes": [{"primitives": [primitive, *(extra or [])]}], "accessors": accessors,
        "bufferViews": views, "buffers": [{"byteLength": len(body)}],
    }  # fmt: skip
    if text:
        uri = "data:application/octet-stream;base64," + base64.b64encode(body).decode()
        tree["buffers"][0]["uri"] = uri  # type: ignore[index]
        path.write_text(json.dumps(tree))
        return path
    head = json.dumps(tree).encode()
    head += b" " * (-len(head) % 4)
    path.write_bytes(
        struct.pack("<4sIII4s", b"glTF", 2, 28 + len(head) + len(body), len(head), b"JSON")
        + head + struct.pack("<I4s", len(body), b"BIN\0") + body
    )  # fmt: skip
    return path


def attributes(splats: SplatCloud) -> dict[str, np.ndarray]:
    out = {
        "POSITION": splats.means, f"{NAME}:ROTATION": splats.quat_wxyz[:, [1, 2, 3, 0]],
        f"{NAME}:SCALE": splats.log_scale.exp(),
        f"{NAME}:OPACITY": splats.opacity_logit.sigmoid()[:, None],
        f"{NAME}:SH_DEGREE_0_COEF_0": splats.sh_dc,
    }  # fmt: skip
    at = 0
    for degree in (1, 2, 3):
        for order in range(2 * degree + 1):
            if at < splats.sh_rest.shape[1]:
                out[f"{NAME}:SH_DEGREE_{degree}_COEF_{order}"] = splats.sh_rest[:, at]
            at += 1
    return {name: np.ascontiguousarray(column.numpy(), "<f4") for name, column in out.items()}


def test_gltf_as_text_with_its_numbers_inside(tmp_path: Path) -> None:
    before = cloud(9, 1)
    path = gltf(attributes(before), tmp_path / "a.gltf", text=True)
    same(read_splats(path, AS_IS).cloud, before)
    assert holds_splats(path)


def test_gltf_of_whole_numbers(tmp_path: Path) -> None:
    before = cloud(30)
    held = attributes(before)
    turn, opacity = f"{NAME}:ROTATION", f"{NAME}:OPACITY"
    held[turn] = np.round(held[turn] * 32767).astype("<i2")
    held[opacity] = np.round(held[opacity] * 255).astype("u1")
    path = gltf(held, tmp_path / "a.glb", normalised=(turn, opacity))
    same(read_splats(path, AS_IS).cloud, before, quat_wxyz=1e-4, opacity_logit=0.05)


def test_nodes_move_turn_and_scale_their_splats(tmp_path: Path) -> None:
    """Two levels; harmonics too: the colour that a splat shows follows the turn."""
    before, turn = cloud(25, 3), Rotation.from_euler("xyz", [0.3, -1.1, 2.0])
    nodes = [
        {"children": [1], "translation": [1.0, 2.0, 3.0], "scale": [2.0, 2.0, 2.0]},
        {"mesh": 0, "rotation": turn.as_quat().tolist(), "translation": [0.5, 0.0, 0.0]},
    ]
    got = read_splats(gltf(attributes(before), tmp_path / "a.glb", nodes=nodes), AS_IS).cloud
    matrix = torch.from_numpy(turn.as_matrix()).float()
    means = 2.0 * (before.means @ matrix.T + torch.tensor([0.5, 0.0, 0.0]))
    torch.testing.assert_close(got.means, means + torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(got.log_scale, before.log_scale + math.log(2.0))
    wanted = matrix @ rotation_matrices(before.quat_wxyz)
    torch.testing.assert_close(rotation_matrices(got.quat_wxyz), wanted, atol=1e-5, rtol=0)
    rng = torch.Generator().manual_seed(0)
    seen = torch.nn.functional.normalize(torch.randn(1, 25, 3, generator=rng), dim=-1)
    torch.testing.assert_close(
        evaluate_rest(got.sh_rest, seen @ matrix.T), evaluate_rest(before.sh_rest, seen),
        atol=1e-5, rtol=0,
    )  # fmt: skip


def test_a_matrix_of_a_node_is_column_by_column(tmp_path: Path) -> None:
    whole = np.eye(4)
    whole[:3, 3] = (7.0, 8.0, 9.0)
    nodes = [{"mesh": 0, "matrix": whole.T.reshape(-1).tolist()}]
    got = read_splats(gltf(attributes(cloud(5)), tmp_path / "a.glb", nodes=nodes), AS_IS).cloud
    torch.testing.assert_close(got.means, cloud(5).means + torch.tensor([7.0, 8.0, 9.0]))


REFUSED: dict[str, tuple[Callable[[dict[str, np.ndarray], Path], Path], str]] = {
    "stretched": (
        lambda held, path: gltf(held, path, nodes=[{"mesh": 0, "scale": [1, 2, 1]}]),
        "stretches or mirrors",
    ),
    "mirrored": (
        lambda held, path: gltf(held, path, nodes=[{"mesh": 0, "scale": [1, -1, 1]}]),
        "stretches or mirrors",
    ),
    "a circle": (
        lambda held, path: gltf(held, path, nodes=[{"children": [1]}, {"children": [0]}]),
        "a circle",
    ),
    "packed": (
        lambda held, path: gltf(
            held, path, said={"extensions": {f"{NAME}_compression_spz_2": {"bufferView": 0}}}
        ),
        "packed by KHR_gaussian_splatting_compression_spz_2",
    ),
    "lines": (lambda held, path: gltf(held, path, mode=1), "mode 1, needs 0"),
    "no scale": (
        lambda held, path: gltf(
            {name: c for name, c in held.items() if "SCALE" not in name}, path
        ),
        "miss the attributes KHR_gaussian_splatting:SCALE",
    ),
    "half a degree": (
        lambda held, path: gltf(
            {n: c for n, c in held.items() if "1_COEF_0" not in n}, path
        ),
        "SH_DEGREE_1_COEF_0",
    ),
    "fewer rows": (
        lambda held, path: gltf({**held, "POSITION": held["POSITION"][:3]}, path), "POSITION 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_gltf_that_cannot_be_read_says_why(tmp_path: Path, fault: str) -> None:
    make, said = REFUSED[fault]
    path = make(attributes(cloud(6, 1)), tmp_path / "a.glb")
    with pytest.raises(SplatFileError, match=said) as caught:
        read_splats(path)
    assert str(path) in str(caught.value)


def test_a_plain_glb_stays_a_mesh(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "box.glb")
    assert not holds_splats(tmp_path / "box.glb")
    with pytest.raises(SplatFileError, match="if it holds triangles, --init starts"):
        read_splats(tmp_path / "box.glb")


def test_what_stands_beside_the_splats_is_said(tmp_path: Path) -> None:
    extra = [{"attributes": {"POSITION": 0}, "mode": 0}]
    found = read_splats(gltf(attributes(cloud(4)), tmp_path / "a.glb", extra=extra))
    assert "beside the splats: they are left out" in found.notes[0]


def test_scales_of_an_earlier_draft_are_noticed(tmp_path: Path) -> None:
    before = cloud(8)
    held = {**attributes(before), f"{NAME}:SCALE": before.log_scale.numpy()}
    found = read_splats(gltf(held, tmp_path / "a.glb"), AS_IS)
    assert "they are logarithms" in found.notes[0]
    torch.testing.assert_close(found.cloud.log_scale, before.log_scale)


def test_an_opacity_beyond_its_range_is_a_bad_row(tmp_path: Path) -> None:
    held = attributes(cloud(8))
    held[f"{NAME}:OPACITY"][3] = 1.5
    path = gltf(held, tmp_path / "a.glb")
    with pytest.raises(SplatFileError, match="row 3; --drop-bad"):
        read_splats(path)
    assert len(read_splats(path, Reading(drop_bad=True)).cloud) == 7


def test_colours_of_linear_light_are_read_for_a_screen(tmp_path: Path) -> None:
    """The file says so, or whoever reads it. By the derivative of the curve, taken numerically."""
    before = cloud(30, 1)
    before = before.replace(sh_dc=before.sh_dc.clamp(-1.7, 1.7))
    said = {"kernel": "ellipse", "colorSpace": "lin_rec709_display"}
    found = read_splats(gltf(attributes(before), tmp_path / "a.glb", said=said), AS_IS)
    assert "colours are linear light" in found.notes[0]
    asked = read_splats(gltf(attributes(before), tmp_path / "b.glb"),
                        Reading(up="z", linear_colours=True))  # fmt: skip
    same(found.cloud, asked.cloud)
    linear = (0.5 + SH_DC * before.sh_dc).double()
    seen = 0.5 + SH_DC * found.cloud.sh_dc.double()
    np.testing.assert_allclose(to_linear(seen.numpy()), linear.numpy(), atol=1e-5)
    slope = (display_of(linear + 1e-6) - display_of(linear - 1e-6)) / 2e-6
    wanted = (before.sh_rest * slope[:, None]).float()
    torch.testing.assert_close(found.cloud.sh_rest, wanted, atol=1e-3, rtol=1e-3)


def test_the_curve_and_back() -> None:
    values = torch.linspace(-0.2, 1.5, 300, dtype=torch.float64)
    torch.testing.assert_close(linear_of(display_of(values)), values)
    assert display_of(torch.tensor(0.214041)).item() == pytest.approx(0.5, abs=1e-5)
    grey = cloud(3).replace(sh_dc=torch.zeros(3, 3))  # linear 0.5
    shown = 0.5 + SH_DC * displayed(grey).sh_dc
    torch.testing.assert_close(shown, torch.full((3, 3), 0.735357), atol=1e-5, rtol=0)


@pytest.mark.parametrize("up", ["viewer", "z"])
def test_gltf_has_one_axis_up(tmp_path: Path, up: str) -> None:
    with pytest.raises(ValueError, match="y up by its standard"):
        write_gltf_splats(tmp_path / "a.glb", cloud(3), Layout(up=up))


# OpenUSD


@pytest.mark.parametrize("kind", usd.KINDS)
@pytest.mark.parametrize("up", ["y", "z"])
def test_usd_core_finds_every_number(tmp_path: Path, kind: str, up: str) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed (extra 'usd')")
    from pxr import Usd, UsdGeom, UsdVol

    before = cloud(30, 2)
    path = tmp_path / f"a.{kind}"
    assert usd.write_usd(path, before, kind, Layout(up=up, min_opacity=0.0)) == 30
    stage = Usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == up.upper()
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    prim = stage.GetDefaultPrim()
    assert prim.IsA(UsdVol.ParticleField3DGaussianSplat)
    got = UsdVol.ParticleField3DGaussianSplat(prim)
    held = rotate_to_file(before, up)
    for theirs, ours in (
        (got.GetPositionsAttr(), held.means),
        (got.GetScalesAttr(), held.log_scale.exp()),
        (got.GetOpacitiesAttr(), held.opacity_logit.sigmoid()),
    ):
        np.testing.assert_allclose(np.array(theirs.Get()), ours.numpy(), rtol=1e-5, atol=1e-6)
    turns = [(q.GetReal(), *q.GetImaginary()) for q in got.GetOrientationsAttr().Get()]
    np.testing.assert_allclose(turns, held.quat_wxyz.numpy(), atol=1e-5)
    assert got.GetRadianceSphericalHarmonicsDegreeAttr().Get() == 2
    held_shs = got.GetRadianceSphericalHarmonicsCoefficientsAttr()
    assert held_shs.GetMetadata("interpolation") == "vertex"
    assert held_shs.GetMetadata("elementSize") == 9
    shs = np.array(held_shs.Get()).reshape(30, 9, 3)
    np.testing.assert_allclose(shs[:, 0], held.sh_dc.numpy(), atol=1e-5)
    np.testing.assert_allclose(shs[:, 1:], held.sh_rest.numpy(), atol=1e-5)
    low, high = np.array(got.GetExtentAttr().Get())
    assert (low < held.means.numpy().min(0)).all()
    assert (high > held.means.numpy().max(0)).all()
    assert list(stage.GetRootLayer().subLayerPaths) == []


def test_usd_with_y_down_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write up=y or up=z"):
        usd.write_usd(tmp_path / "a.usda", cloud(3), "usda", Layout(up="viewer"))


# Without a package


@pytest.mark.parametrize(
    ("missing", "write", "said"),
    [
        ("pxr", lambda path: usd.write_usd(path, cloud(3), "usdc"), "pip install 'usd-core>=26.3'"),
        ("gaussforge", lambda path: forge.write_by_gaussforge(path, cloud(3)),
         "pip install 'gaussforge>=0.6,<1'"),
        ("zstandard", lambda path: packed.write_spz(path, cloud(3), version=4),
         "pip install zstandard"),
    ],
)  # fmt: skip
def test_without_its_package_a_writer_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str,
    write: Callable[[Path], int], said: str,
) -> None:  # fmt: skip
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == missing:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingTool, match=said.replace("'", ".")):
        write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# SPZ 4


def test_spz_4_is_what_gsply_and_gaussforge_read(tmp_path: Path) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")
    gaussforge = pytest.importorskip("gaussforge", reason="gaussforge is not installed")
    before = cloud(300, 2)
    path = tmp_path / "a.spz"
    packed.write_spz(path, before, Layout(up="z", min_opacity=0.0), version=4)
    raw = path.read_bytes()
    assert raw[:4] == b"NGSP"
    assert int.from_bytes(raw[4:8], "little") == 4
    forged = gaussforge.GaussForge().read(raw, "spz")["data"]
    theirs = np.frombuffer(forged["positions"], np.float32).reshape(-1, 3)
    for means in (gsply.read_spz(path).means, theirs, read_splats(path, AS_IS).cloud.means.numpy()):
        np.testing.assert_allclose(np.asarray(means), before.means.numpy(), atol=1 / 4096)


def test_an_spz_of_another_version_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")
    with pytest.raises(ValueError, match="written are 3 and 4"):
        packed.write_spz(tmp_path / "a.spz", cloud(3), version=2)


# .ksplat


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ksplat_to_the_byte(tmp_path: Path, degree: int) -> None:
    """What GaussianSplats3D's own writer has at its level 0, field by field."""
    before, told = cloud(5, degree), list[str]()
    path = tmp_path / "a.ksplat"
    assert write_ksplat(path, before, Layout(up="z", min_opacity=0.0), told.append) == 5
    raw = path.read_bytes()
    assert raw[:4] == b"\0\1\0\0"
    assert struct.unpack_from("<4I", raw, 4) == (1, 1, 5, 5)  # sections, splats: most and all
    assert struct.unpack_from("<HH3f2f", raw, 20) == (0, 0, 0.0, 0.0, 0.0, -1.5, 1.5)
    size = 44 + 12 * ((degree + 1) ** 2 - 1)
    assert struct.unpack_from("<4IfI2I2II", raw, 4096) == (
        5, 5, 0, 0, 0.0, 0, 0, 5 * size, 0, 0, degree,
    )  # fmt: skip
    assert len(raw) == 4096 + 1024 + 5 * size
    assert not any(raw[44:4096] + raw[4096 + 42 : 5120])
    for i in range(5):
        found = raw[5120 + i * size :][:size]
        place, scale = (np.frombuffer(found, "<f4", 3, at) for at in (0, 12))
        np.testing.assert_array_equal(place, before.means[i])
        np.testing.assert_allclose(scale, np.exp(before.log_scale[i].numpy()), rtol=1e-6)
        quat = np.frombuffer(found, "<f4", 4, 24)
        np.testing.assert_allclose(quat, before.quat_wxyz[i], atol=1e-6)
        rgb = 255 * (0.5 + 0.28209479 * before.sh_dc[i].numpy()).clip(0, 1)
        assert np.abs(np.frombuffer(found, "u1", 3, 40) - rgb).max() <= 0.501
        opacity = 255 / (1 + math.exp(-float(before.opacity_logit[i])))
        assert abs(found[43] - opacity) <= 0.501
        at = 44
        for first, last in ((0, 3), (3, 8), (8, 15))[:degree]:
            for channel in range(3):
                wanted = before.sh_rest[i, first:last, channel].numpy()
                np.testing.assert_array_equal(np.frombuffer(found, "<f4", len(wanted), at), wanted)
                at += 4 * len(wanted)
    beyond = int((before.sh_dc.abs() > 0.5 / SH_DC + 1e-4).any(1).sum())
    assert [int(line.split()[0]) for line in told] == [beyond] * bool(beyond)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ksplat_reads_back_equal(tmp_path: Path, degree: int) -> None:
    before = cloud(300, degree)
    before = before.replace(sh_dc=before.sh_dc.clamp(-1.7, 1.7))
    assert write_ksplat(tmp_path / "a.ksplat", before, Layout(min_opacity=0.0)) == 300
    got = read_splats(tmp_path / "a.ksplat").cloud
    same(got.replace(opacity_logit=got.opacity_logit.sigmoid()),
         before.replace(opacity_logit=before.opacity_logit.sigmoid()),
         log_scale=1e-5, quat_wxyz=1e-6, opacity_logit=0.002, sh_dc=0.007)  # fmt: skip


# Without Node.js


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_what_gaussforge_writes_reads_back_equal(tmp_path: Path, degree: int) -> None:
    pytest.importorskip("gaussforge", reason="gaussforge is not installed (extra 'formats')")
    before, told = cloud(300, degree), list[str]()
    before = before.replace(sh_dc=before.sh_dc.clamp(-1.7, 1.7))
    path = tmp_path / "a.sog"
    layout = Layout(up="z", min_opacity=0.0)
    assert forge.write_by_gaussforge(path, before, layout, told.append) == 300
    assert told[-1].startswith("written by gaussforge ")
    got = read_splats(path, AS_IS).cloud
    near = torch.cdist(before.means, got.means).argmin(1)
    got = got.map(lambda tensor: tensor[near])
    step = 0.03
    same(got.replace(opacity_logit=got.opacity_logit.sigmoid()),
         before.replace(opacity_logit=before.opacity_logit.sigmoid()),
         means=1e-4, log_scale=step, quat_wxyz=0.01, opacity_logit=0.005, sh_dc=0.02,
         sh_rest=step)  # fmt: skip


def test_another_order_of_harmonics_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channel after channel over all degrees, as gaussforge 0.6.0 has them in its .ksplat."""
    pytest.importorskip("gaussforge", reason="gaussforge is not installed (extra 'formats')")
    columns = forge._columns

    def other(given: SplatCloud) -> dict[str, Any]:
        rest = given.sh_rest.transpose(1, 2).reshape(given.sh_rest.shape)
        return columns(given.replace(sh_rest=rest))

    monkeypatch.setattr(forge, "_columns", other)
    with pytest.raises(ValueError, match="reads back as other splats"):
        forge.write_by_gaussforge(tmp_path / "a.sog", cloud(300, 2))
    assert list(tmp_path.iterdir()) == []
