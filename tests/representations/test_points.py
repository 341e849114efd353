# SPDX-License-Identifier: Apache-2.0
"""Meshes and point clouds as a beginning: where their points are, which way up, and in which
colours, against what the files were made of."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from representations.export.mesh import Mesh, write_mesh
from representations.points import file_points, sample, to_display, to_linear, up_of

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def points(path: Path, count: int = 2000, up: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Where they are in the world, and their colours; nothing is centred or scaled."""
    found, colours = file_points(path, count, 0.0, 0.5, torch.Generator().manual_seed(0), up)
    assert found.shape == colours.shape == (count, 3)
    return found.double().numpy(), colours.double().numpy()


def extents(found: np.ndarray) -> list[float]:
    return np.ptp(found, axis=0).round(1).tolist()


def plain(tmp_path: Path, ending: str, shape: Any) -> Path:
    path = tmp_path / f"a.{ending}"
    shape.export(path)
    return path


@pytest.mark.parametrize(
    ("ending", "up", "wanted"),
    [
        ("glb", "auto", [3, 1, 2]), ("glb", "z", [1, 2, 3]), ("gltf", "auto", [3, 1, 2]),
        ("obj", "auto", [1, 2, 3]), ("obj", "y", [3, 1, 2]), ("stl", "y", [3, 1, 2]),
        ("ply", "auto", [1, 2, 3]), ("off", "viewer", [1, 3, 2]),
    ],
)  # fmt: skip
def test_which_way_is_up(tmp_path: Path, ending: str, up: str, wanted: list[float]) -> None:
    """A box of 1 x 2 x 3. With y up, y becomes z and the front, z, becomes x."""
    box = trimesh.creation.box((1.0, 2.0, 3.0))
    if ending == "gltf":
        trimesh.Scene(box).export(tmp_path / "a.gltf")
        path = tmp_path / "a.gltf"
    else:
        path = plain(tmp_path, ending, box)
    assert extents(points(path, up=up)[0]) == wanted
    said = up_of(path, up)[1]
    assert ("--in-up y" in said) == (up == "auto" and ending not in ("glb", "gltf"))


def blob() -> Mesh:
    """Off centre and lopsided, so that no turn is another; red above, green below."""
    ball = trimesh.creation.icosphere(3)
    vertices = ball.vertices * (0.3, 0.5, 0.8) + (0.4, -0.2, 0.1)
    colors = np.where(ball.vertices[:, 2:] > 0, (0.9, 0.2, 0.2), (0.2, 0.7, 0.2))
    return Mesh(vertices.astype(np.float32), np.asarray(ball.faces), colors.astype(np.float32))


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
def test_our_own_meshes_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    mesh = blob()
    write_mesh(tmp_path / f"a.{kind}", mesh, kind)
    found, colours = points(tmp_path / f"a.{kind}", 5000)
    np.testing.assert_allclose(found.min(0), mesh.vertices.min(0), atol=0.03)
    np.testing.assert_allclose(found.max(0), mesh.vertices.max(0), atol=0.03)
    above = found[:, 2] > 0.1 + 0.15
    below = found[:, 2] < 0.1 - 0.15
    np.testing.assert_allclose(colours[above], [[0.9, 0.2, 0.2]] * above.sum(), atol=0.005)
    np.testing.assert_allclose(colours[below], [[0.2, 0.7, 0.2]] * below.sum(), atol=0.005)
    assert up_of(tmp_path / f"a.{kind}", "auto")[1] == ""


def quad(image: Image.Image, repeat: float = 1.0) -> trimesh.Trimesh:
    """A square in x and y whose picture is as large as it, ``repeat`` times."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    visual = trimesh.visual.TextureVisuals(uv=repeat * corners[:, :2], material=material)
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)


def picture(size: int = 64) -> Image.Image:
    """Red on the left, green on the right, white at the four corners only."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[:, : size // 2], pixels[:, size // 2 :] = RED, GREEN
    pixels[0, 0] = pixels[0, -1] = pixels[-1, 0] = pixels[-1, -1] = WHITE
    return Image.fromarray(pixels)


def halves(x: np.ndarray, colours: np.ndarray, margin: float = 0.04) -> None:
    left, right = (x > margin) & (x < 0.5 - margin), (x > 0.5 + margin) & (x < 1 - margin)
    assert left.sum() > 100
    assert right.sum() > 100
    np.testing.assert_allclose(colours[left], [[1.0, 0, 0]] * left.sum(), atol=0.01)
    np.testing.assert_allclose(colours[right], [[0.0, 1, 0]] * right.sum(), atol=0.01)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_texture_is_read_where_the_points_are(tmp_path: Path, mode: str) -> None:
    path = plain(tmp_path, "glb", quad(picture().convert(mode)))
    found, colours = points(path, up="z")
    halves(found[:, 0], colours)


@pytest.mark.parametrize("factor", [None, [0.5, 1.0, 1.0, 1.0]])
def test_a_texture_is_as_displayed_and_a_factor_is_light(
    tmp_path: Path, factor: list[float] | None
) -> None:
    shape = quad(Image.new("RGB", (8, 8), (204, 102, 51)))
    shape.visual.material.baseColorFactor = factor
    colours = points(plain(tmp_path, "glb", shape))[1]
    wanted = np.array([0.8, 0.4, 0.2])
    if factor is not None:
        wanted[0] = to_display(np.array(0.5 * to_linear(np.array(0.8))))
    np.testing.assert_allclose(colours, [wanted] * len(colours), atol=0.004)


def test_a_texture_repeats(tmp_path: Path) -> None:
    found, colours = points(plain(tmp_path, "glb", quad(picture(), 3.0)), up="z")
    halves((3 * found[:, 0]) % 1.0, colours, 0.06)


def test_an_obj_with_a_picture(tmp_path: Path) -> None:
    picture().save(tmp_path / "p.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 0 0 0\nmap_Kd p.png\n")
    (tmp_path / "a.obj").write_text(
        "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
        "usemtl m\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
    )
    found, colours = points(tmp_path / "a.obj")
    halves(found[:, 0], colours)


@pytest.mark.parametrize("material", ["Kd 0.8 0.1 0.2\n", "Kd 0.8 0.1 0.2\nmap_Kd gone.png\n"])
def test_an_obj_of_plain_colours(tmp_path: Path, material: str) -> None:
    (tmp_path / "a.mtl").write_text(f"newmtl m\n{material}newmtl n\nKd 0 0 1\n")
    (tmp_path / "a.obj").write_text(
        "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 5 0 0\nv 6 0 0\nv 5 1 0\n"
        "usemtl m\nf 1 2 3\nusemtl n\nf 4 5 6\n"
    )
    found, colours = points(tmp_path / "a.obj")
    near = found[:, 0] < 2
    np.testing.assert_allclose(colours[near], [[0.8, 0.1, 0.2]] * near.sum(), atol=0.01)
    np.testing.assert_allclose(colours[~near], [[0.0, 0, 1]] * (~near).sum(), atol=0.01)


def test_an_obj_without_its_materials_is_grey(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("mtllib no.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl m\nf 1 2 3\n")
    assert np.ptp(points(tmp_path / "a.obj")[1]) == 0.0


def test_an_obj_with_colours_at_its_vertices(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 1 0 0\nf 1 2 3\n")
    found, colours = points(tmp_path / "a.obj")
    np.testing.assert_allclose(colours[:, 1], found[:, 0], atol=0.01)


def gltf(tmp_path: Path, material: dict[str, Any] | None, colour: np.ndarray | None) -> Path:
    """A triangle written by hand, as text with its numbers beside it."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4")
    body = corners.tobytes()
    views = [{"buffer": 0, "byteLength": 36}]
    accessors: list[dict[str, Any]] = [
        {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3",
         "min": [0, 0, 0], "max": [1, 1, 0]}
    ]  # fmt: skip
    primitive: dict[str, Any] = {"attributes": {"POSITION": 0}}
    if colour is not None:
        kind = colour.dtype.str[1:]
        component = {"u1": 5121, "u2": 5123, "f4": 5126}[kind]
        views.append({"buffer": 0, "byteOffset": 36, "byteLength": colour.nbytes})
        accessors.append({"bufferView": 1, "componentType": component, "count": 3,
                          "type": f"VEC{colour.shape[1]}", "normalized": kind != "f4"})  # fmt: skip
        primitive["attributes"]["COLOR_0"] = 1
        body += colour.tobytes()
    tree: dict[str, Any] = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}], "accessors": accessors,
        "bufferViews": views, "buffers": [{"byteLength": len(body), "uri": "a.bin"}],
    }  # fmt: skip
    if material is not None:
        primitive["material"] = 0
        tree["materials"] = [{"pbrMetallicRoughness": material}]
    (tmp_path / "a.bin").write_bytes(body)
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    return tmp_path / "a.gltf"


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("factor", [None, (1.0, 0.5, 0.25, 1.0)])
def test_gltf_colours_are_linear_and_multiplied(
    tmp_path: Path, kind: str, channels: int, factor: tuple[float, ...] | None
) -> None:
    """0.2 of light is shown as 0.48: IEC 61966-2-1."""
    if (kind, channels) in (("u1", 3), ("u2", 3)):
        pytest.skip("glTF aligns vertices to four bytes")
    light = np.array([0.2, 0.6, 1.0, 1.0])[:channels]
    most = 1.0 if kind == "f4" else float(np.iinfo(kind).max)
    held = np.tile(light * most, (3, 1)).round(0 if kind != "f4" else 9).astype(f"<{kind}")
    material = None if factor is None else {"baseColorFactor": list(factor)}
    colours = points(gltf(tmp_path, material, held))[1]
    wanted = to_display(light[:3] * np.array(factor or (1.0,) * 3)[:3])
    np.testing.assert_allclose(colours, [wanted] * len(colours), atol=0.006)


def test_a_plain_gltf_colour_without_uv(tmp_path: Path) -> None:
    path = gltf(tmp_path, {"baseColorFactor": [0.5, 0.0, 1.0, 1.0]}, None)
    colours = points(path)[1]
    np.testing.assert_allclose(colours, [[0.735, 0.0, 1.0]] * len(colours), atol=0.004)
    assert np.ptp(points(gltf(tmp_path, {}, None))[1], axis=0).max() == 0.0
    assert np.ptp(points(gltf(tmp_path, None, None))[1], axis=0).max() == 0.0


def test_every_part_is_where_its_scene_places_it(tmp_path: Path) -> None:
    """One box, twice, one of them larger; and a ball with a colour of its own."""
    box, ball = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(2, 0.5)
    ball.visual.vertex_colors = (*RED, 255)
    scene = trimesh.Scene()
    move = trimesh.transformations.translation_matrix
    scene.add_geometry(box, geom_name="box", transform=move((-5, 0, 0)))
    scene.graph.update("again", matrix=move((0, 5, 0)) @ np.diag([2, 2, 2, 1.0]), geometry="box")
    scene.add_geometry(ball, transform=move((5, 0, 0)))
    scene.export(tmp_path / "a.glb")
    found, colours = points(tmp_path / "a.glb", 4000, up="z")
    at = found[:, 0] > 2
    assert extents(found[found[:, 0] < -2]) == [1, 1, 1]
    assert extents(found[found[:, 1] > 2]) == [2, 2, 2]
    np.testing.assert_allclose(colours[at], [[1.0, 0, 0]] * at.sum(), atol=0.01)
    assert np.ptp(colours[~at]) < 0.01
    # by area: 6, 24 and pi
    shares = [np.mean(found[:, 0] < -2), np.mean(found[:, 1] > 2), at.mean()]
    np.testing.assert_allclose(shares, np.array([6, 24, np.pi]) / (30 + np.pi), atol=0.03)


def test_colours_of_faces(tmp_path: Path) -> None:
    shape = trimesh.creation.box((1, 1, 1))
    up = shape.face_normals[:, 2] > 0.5
    shape.visual.face_colors = np.where(up[:, None], (*RED, 255), (*GREEN, 255)).astype(np.uint8)
    found, colours = points(plain(tmp_path, "ply", shape))
    above = found[:, 2] > 0.5 - 1e-6
    np.testing.assert_allclose(colours[above], [[1.0, 0, 0]] * above.sum(), atol=0.01)
    np.testing.assert_allclose(colours[~above], [[0.0, 1, 0]] * (~above).sum(), atol=0.01)


def test_clouds_of_several_parts(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    for x, colour in ((0.0, RED), (10.0, GREEN)):
        corners = np.random.default_rng(0).random((50, 3)) + np.array([x, 0, 0])
        held = np.tile((*colour, 255), (50, 1)).astype(np.uint8)
        scene.add_geometry(trimesh.PointCloud(corners, colors=held))
    scene.export(tmp_path / "a.glb")
    found, colours = points(tmp_path / "a.glb", 300, up="z")
    far = found[:, 0] > 5
    assert 100 < far.sum() < 200
    np.testing.assert_allclose(colours[far], [[0.0, 1, 0]] * far.sum(), atol=0.01)
    np.testing.assert_allclose(colours[~far], [[1.0, 0, 0]] * (~far).sum(), atol=0.01)


@pytest.mark.parametrize("ending", ["stl", "off", "obj", "ply", "glb", "xyz", "dae", "3mf"])
def test_kinds_of_file(tmp_path: Path, ending: str) -> None:
    shape = trimesh.creation.box((1, 1, 1))
    try:
        if ending == "xyz":
            trimesh.PointCloud(shape.vertices).export(tmp_path / "a.xyz")
        else:
            shape.export(tmp_path / f"a.{ending}")
    except (ImportError, ValueError, KeyError, ModuleNotFoundError) as error:
        pytest.skip(f"trimesh writes no {ending} here: {error}")
    try:
        found, _ = points(tmp_path / f"a.{ending}", 8 if ending == "xyz" else 500)
    except ValueError as error:  # a package of trimesh's is missing: told, and no accident
        pytest.skip(str(error))
    assert np.ptp(found, axis=0).round(0).tolist() == [1, 1, 1]


def test_between_the_pixels() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255]], [[0, 0, 0], [255, 255, 255]]], np.uint8)
    at = np.array([[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.625, 0.9]])
    np.testing.assert_allclose(sample(image, at)[:, 0], [0, 1, 0.5, 0.75], atol=1e-12)
    tall = np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8)  # red above
    np.testing.assert_allclose(sample(tall, np.array([[0.5, 0.75]])), [[1, 0, 0]])


def test_linear_and_display_undo_each_other() -> None:
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(to_display(to_linear(values)), values, atol=1e-7)


def test_a_picture_that_is_none_is_told(tmp_path: Path) -> None:
    out = io.BytesIO()
    picture().save(out, "PNG")
    raw = plain(tmp_path, "glb", quad(picture())).read_bytes()
    at = raw.index(b"\x89PNG")
    (tmp_path / "a.glb").write_bytes(raw[: at + 40] + bytes(60) + raw[at + 100 :])
    with contextlib.suppress(ValueError):  # and no other error
        points(tmp_path / "a.glb")
