# SPDX-License-Identifier: Apache-2.0
"""Points with colours from mesh and point cloud files: where a shape may start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .axes import FRAMES
from .claims import require_honest

GLTF = (".glb", ".gltf")  # y up and linear colours, by their standard
AUTO = "auto"
VERTICAL = re.compile(rb"vertical axis\s*[:=]?\s*([yz])\b", re.IGNORECASE)
HEAD = 4096  # bytes at the beginning of a file where such a remark may stand

LARGEST = 1e18
"""Of a coordinate: float32 has to hold the square of a distance."""


class Surface(NamedTuple):
    """Triangles where the scene has them, and what colour they have."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3]
    visual: Any  # trimesh's


class Cloud(NamedTuple):
    vertices: np.ndarray  # [V, 3] float64
    colours: np.ndarray | None  # [V, 3] in [0, 1], as displayed


class Shade(NamedTuple):
    """Which points are asked for their colour."""

    face: np.ndarray  # [N]
    corners: np.ndarray  # [N, 3] vertices
    weight: np.ndarray  # [N, 3] of the corners; sums to 1


def up_of(path: Path, up: str) -> tuple[str, str]:
    """The frame of a file for the setting ``up``, and what is worth saying about it."""
    if up != AUTO:
        return up, ""
    if path.suffix.lower() in GLTF:
        return "y", ""
    with path.open("rb") as stream:
        found = VERTICAL.search(stream.read(HEAD))
    if found:
        return found[1].decode().lower(), ""
    note = (
        f"{path}: does not say which axis is up: z is taken; if the shape lies on its side, add "
        "--in-up y"
    )
    return "z", note


def file_points(
    path: str | Path,
    count: int,
    radius: float,
    grey: float,
    generator: torch.Generator,
    up: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """``count`` points and colours [count, 3] from a mesh or point cloud file.

    Anything trimesh reads, with every part where its scene has it. A mesh is sampled uniformly by
    area and its texture where the points are; a point cloud is subsampled, or repeated with a small
    jitter. The result is centred and, for radius > 0, scaled to that radius (world units). ``up``
    is a name in :data:`axes.FRAMES`, or "auto": y for glTF, else what the file says, else z.
    Raises ValueError for a file that holds no points.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"init.path={str(path)!r} is not a file: give a mesh or a point cloud")
    require_honest(path)
    try:
        surfaces, clouds = parts_of(path)
        for part in surfaces:
            require_sound(part.vertices, part.faces)
        for cloud in clouds:
            require_sound(cloud.vertices)
        if surfaces:
            points, colours = _on_surfaces(path, surfaces, count, grey, generator)
        elif clouds:
            points, colours = _of_clouds(clouds, count, grey, generator)
    except Exception as error:  # trimesh raises a dozen unrelated types
        told = str(error).strip() or type(error).__name__
        raise ValueError(f"{path} cannot be read as a mesh or point cloud: {told}") from error
    if not surfaces and not clouds:
        raise ValueError(f"{path} holds no triangles and no points")
    points = points @ FRAMES[up_of(path, up)[0]].matrix().to(points)  # its transpose, from the left
    if radius > 0:
        points = points - 0.5 * (points.amax(0) + points.amin(0))
        points = points * (radius / points.norm(dim=-1).max().clamp(min=1e-12))
    for found, what in ((points, "points"), (colours, "colours")):
        broken = ~torch.isfinite(found).all(-1)
        if bool(broken.any()):
            raise ValueError(f"{path} holds {int(broken.sum())} {what} that are not finite")
    return points.float(), colours.clamp(0.0, 1.0).float()


def parts_of(path: Path) -> tuple[list[Surface], list[Cloud]]:
    """Everything in the file, where its scene places it."""
    import trimesh

    surfaces, clouds = [], []
    # Unprocessed: what is no number is refused below, and not left out in silence.
    for part, matrix in _placed(trimesh.load(path, process=False)):
        if not len(getattr(part, "vertices", ())):
            continue
        vertices = np.asarray(part.vertices, np.float64)
        if vertices.ndim == 2 and vertices.shape[1] == 3:
            vertices = vertices @ matrix[:3, :3].T + matrix[:3, 3]
        if isinstance(part, trimesh.Trimesh) and len(part.faces):
            surfaces.append(Surface(vertices, np.asarray(part.faces, np.int64), part.visual))
        else:
            held = getattr(part, "colors", None)
            clouds.append(Cloud(vertices, _vertex_colours(path, held, len(vertices))))
    return surfaces, clouds


def _placed(loaded: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """Each geometry with the matrix of each of its places."""
    if not hasattr(loaded, "graph"):
        yield loaded, np.eye(4)
        return
    for node in loaded.graph.nodes_geometry:
        matrix, name = loaded.graph[node]
        yield loaded.geometry[name], np.asarray(matrix, np.float64)


def require_sound(vertices: np.ndarray, faces: np.ndarray | None = None) -> None:
    """ValueError with the row where a vertex is no number, or a face names one that is not
    there."""
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices of three numbers are needed, these have {vertices.shape[-1]}")
    broken = ~(np.abs(vertices) < LARGEST).all(axis=-1)
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} of {len(vertices)} vertices are not finite or beyond 1e18, the "
            f"first is {int(broken.argmax())}"
        )
    if faces is not None and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
        raise ValueError(f"a face names vertex {int(faces.max())} of {len(vertices)}")


def _on_surfaces(
    path: Path, parts: list[Surface], count: int, grey: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    corners = np.concatenate([part.vertices[part.faces] for part in parts])  # [F, 3, 3]
    edges = corners[:, 1:] - corners[:, :1]
    area = torch.from_numpy(np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2)
    if not float(area.sum()) > 0.0:
        raise ValueError("the mesh has no area: every triangle is a line or a point")
    face = torch.multinomial(area, count, replacement=True, generator=generator)
    u = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    root = u[:, :1].sqrt()  # uniform barycentric coordinates
    weight = torch.cat([1 - root, root * (1 - u[:, 1:]), root * u[:, 1:]], dim=1)
    points = (weight[..., None] * torch.from_numpy(corners)[face]).sum(1)
    colours = np.full((count, 3), grey)
    first = 0
    for part in parts:
        here = ((face >= first) & (face < first + len(part.faces))).numpy()
        own = face.numpy()[here] - first
        first += len(part.faces)
        shade = Shade(own, part.faces[own], weight.numpy()[here])
        found = shaded(path, part, shade)
        if found is not None:
            colours[here] = found
    return points, torch.from_numpy(colours)


def shaded(path: Path, part: Surface, at: Shade) -> np.ndarray | None:
    """Displayed colours [N, 3] of points of a surface; None where it has none."""
    visual = part.visual
    if visual is None or not visual.defined:
        return None
    if visual.kind == "face":
        held = _unit(visual.face_colors)[at.face]
        return to_display(held) if _linear(path) else held
    if visual.kind == "vertex":
        held = _unit(visual.vertex_colors)
        return _interpolated(path, held, at)
    return _textured(path, part, at)


def _textured(path: Path, part: Surface, at: Shade) -> np.ndarray:
    """Texture, plain colour and vertex colours of a material multiplied, as glTF says; elsewhere a
    texture stands alone, since many an .mtl has black beside it."""
    visual, material = part.visual, part.visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    plain = getattr(material, "baseColorFactor", None)
    if plain is None and image is None:
        plain = getattr(material, "diffuse", None)
    linear = np.ones((len(at.face), 3))
    if plain is not None:
        one = _unit(np.asarray(plain).reshape(1, -1))
        linear = linear * (one if _linear(path) else to_linear(one))
    uv = getattr(visual, "uv", None)
    if image is not None and uv is not None and len(uv) == len(part.vertices):
        where = (at.weight[..., None] * np.asarray(uv, np.float64)[at.corners][..., :2]).sum(1)
        linear = linear * to_linear(sample(np.asarray(image.convert("RGB")), where))
    held = visual.vertex_attributes.data.get("color") if _linear(path) else None
    if held is not None and len(held) == len(part.vertices):
        linear = linear * to_linear(_interpolated(path, _unit(held), at))
    return to_display(linear)


def _interpolated(path: Path, held: np.ndarray, at: Shade) -> np.ndarray:
    mixed: np.ndarray = (at.weight[..., None] * held[at.corners]).sum(1)
    return to_display(mixed) if _linear(path) else mixed


def sample(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours [N, 3] in [0, 1] of a repeated picture [H, W, 3] at ``uv`` [N, 2], between its
    pixels; (0, 0) is its lower left corner."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1.0 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x), np.floor(y)
    right, low = (x - left)[:, None], (y - top)[:, None]

    def pixel(dx: int, dy: int) -> np.ndarray:
        row, column = (top + dy).astype(np.int64) % height, (left + dx).astype(np.int64) % width
        near: np.ndarray = image[row, column].astype(np.float64) / 255.0
        return near

    upper = pixel(0, 0) * (1 - right) + pixel(1, 0) * right
    lower = pixel(0, 1) * (1 - right) + pixel(1, 1) * right
    mixed: np.ndarray = upper * (1 - low) + lower * low
    return mixed


def _linear(path: Path) -> bool:
    return path.suffix.lower() in GLTF


def _unit(values: Any) -> np.ndarray:
    """Colours [N, 3] in [0, 1] of numbers of any kind."""
    held = np.asarray(values)
    most = float(np.iinfo(held.dtype).max) if held.dtype.kind in "iu" else 1.0
    colours: np.ndarray = held[:, :3].astype(np.float64) / most
    return colours


def to_linear(display: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] -> linear light (IEC 61966-2-1)."""
    low, high = display / 12.92, ((display + 0.055) / 1.055) ** 2.4
    out: np.ndarray = np.where(display <= 0.04045, low, high)
    return out


def to_display(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] -> sRGB values."""
    held = np.clip(linear, 0.0, 1.0)
    out: np.ndarray = np.where(held <= 0.0031308, 12.92 * held, 1.055 * held ** (1 / 2.4) - 0.055)
    return out


def _vertex_colours(path: Path, held: Any, count: int) -> np.ndarray | None:
    if held is None or len(held) != count or np.ndim(held) != 2:
        return None
    colours: np.ndarray = _unit(held)
    return to_display(colours) if _linear(path) else colours


def _of_clouds(
    parts: list[Cloud], count: int, grey: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    vertices = torch.from_numpy(np.concatenate([part.vertices for part in parts]))
    held = [
        np.full((len(part.vertices), 3), grey) if part.colours is None else part.colours
        for part in parts
    ]
    order = torch.randperm(len(vertices), generator=generator)
    pick = order.repeat(-(-count // len(order)))[:count]
    points = vertices[pick]
    repeated = torch.arange(count) >= len(vertices)
    if bool(repeated.any()):
        spread = neighbour_distance(vertices)[pick, None] * 0.3
        points = points + repeated[:, None] * spread * torch.randn(count, 3, generator=generator)
    return points, torch.from_numpy(np.concatenate(held))[pick]


def neighbour_distance(points: Tensor) -> Tensor:
    """Mean distance [N] of each point [N, 3] to its three nearest neighbours, never zero.

    Fewer than four points use what neighbours there are; a single point gets 0.1.
    """
    from scipy.spatial import cKDTree

    k = min(3, len(points) - 1)
    if k == 0:
        return points.new_full((len(points),), 0.1)
    array = points.detach().cpu().double().numpy()
    distance = cKDTree(array).query(array, k=k + 1)[0][:, 1:].mean(axis=1)
    # Coincident points would give log(0); a thousandth of the typical distance is small enough.
    floor = max(1e-7, 1e-3 * float(np.median(distance)))
    return torch.from_numpy(distance).clamp(min=floor).to(points)
