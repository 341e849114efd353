# SPDX-License-Identifier: Apache-2.0
"""The first splats: a ball, the surface of a mesh, a point cloud, or a splat file of ours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cloud import SH_COUNTS, SplatCloud
from ..ops.constants import SH_DC
from .claims import require_honest
from .config import GaussianConfig


def logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


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


def from_points(
    points: Tensor,
    colours: Tensor,
    *,
    opacity: float,
    scale_factor: float,
    sh_degree: int,
    generator: torch.Generator,
) -> SplatCloud:
    """Round splats of random orientation at ``points`` [N, 3] with ``colours`` [N, 3] in [0, 1]."""
    n = len(points)
    log_scale = (neighbour_distance(points) * scale_factor).log()
    quat = torch.randn(n, 4, generator=generator)
    return SplatCloud(
        means=points.float(),
        log_scale=log_scale.float()[:, None].repeat(1, 3),
        quat_wxyz=torch.nn.functional.normalize(quat, dim=-1),
        opacity_logit=torch.full((n,), logit(opacity)),
        sh_dc=((colours - 0.5) / SH_DC).float(),
        sh_rest=torch.zeros(n, SH_COUNTS[sh_degree] - 1, 3),
    ).check()


def ball_points(count: int, radius: float, generator: torch.Generator) -> Tensor:
    """Points [count, 3] uniform in the volume of a ball around the origin."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return direction * radius * torch.rand(count, 1, generator=generator).pow(1.0 / 3.0)


def file_points(
    path: str | Path, count: int, radius: float, grey: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``count`` points and colours [count, 3] from a mesh or point cloud file.

    Anything trimesh reads. A mesh is sampled uniformly by area; a point cloud is subsampled, or
    repeated with a small jitter. The result is centred and, for radius > 0, scaled to that radius
    (world units); the file's z is up. Raises ValueError for a file that holds no points.
    """
    import trimesh

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"init.path={str(path)!r} is not a file: give a mesh or a point cloud")
    require_honest(path)
    try:
        # Unprocessed: what is no number is refused below, and not left out in silence.
        scene = trimesh.load(path, process=False)
        parts = scene.dump() if isinstance(scene, trimesh.Scene) else [scene]
        meshes = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        clouds = [part for part in parts if len(getattr(part, "vertices", ()))]
        whole = trimesh.util.concatenate(meshes) if meshes else clouds[0] if clouds else None
        if whole is not None:
            _require_sound(whole)
            sample = _sample_surface if meshes else _sample_vertices
            points, colours = sample(whole, count, grey, generator)
    except Exception as error:  # trimesh raises a dozen unrelated types
        told = str(error).strip() or type(error).__name__
        raise ValueError(f"{path} cannot be read as a mesh or point cloud: {told}") from error
    if whole is None:
        raise ValueError(f"{path} holds no triangles and no points")
    if radius > 0:
        points = points - 0.5 * (points.amax(0) + points.amin(0))
        points = points * (radius / points.norm(dim=-1).max().clamp(min=1e-12))
    for found, what in ((points, "points"), (colours, "colours")):
        broken = ~torch.isfinite(found).all(-1)
        if bool(broken.any()):
            raise ValueError(f"{path} holds {int(broken.sum())} {what} that are not finite")
    return points, colours


def _require_sound(part) -> None:  # type: ignore[no-untyped-def]
    """ValueError with the row where a vertex is no number, or a face names one that is not there;
    float32 has to hold the square of a distance."""
    vertices = np.asarray(part.vertices, np.float64)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices of three numbers are needed, these have {vertices.shape[-1]}")
    broken = ~(np.abs(vertices) < 1e18).all(axis=-1)
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} of {len(vertices)} vertices are not finite or beyond 1e18, the "
            f"first is {int(broken.argmax())}"
        )
    faces = np.asarray(getattr(part, "faces", ()), np.int64)
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= len(vertices)):
        raise ValueError(f"a face names vertex {int(faces.max())} of {len(vertices)}")


def _sample_surface(mesh, count, grey, generator) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    corners = torch.from_numpy(np.array(mesh.triangles, np.float64))  # [F, 3, 3]
    area = torch.from_numpy(np.array(mesh.area_faces, np.float64))
    if not float(area.sum()) > 0.0:
        raise ValueError("the mesh has no area: every triangle is a line or a point")
    face = torch.multinomial(area, count, replacement=True, generator=generator)
    u = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    root = u[:, :1].sqrt()  # uniform barycentric coordinates
    weight = torch.cat([1 - root, root * (1 - u[:, 1:]), root * u[:, 1:]], dim=1)
    points = (weight[..., None] * corners[face]).sum(1)
    colours = torch.full((count, 3), grey)
    if mesh.visual.defined:
        visual = mesh.visual if mesh.visual.kind == "vertex" else mesh.visual.to_color()
        if hasattr(visual, "vertex_colors"):
            rgb = np.asarray(visual.vertex_colors)[:, :3].astype(np.float64) / 255.0
            faces = torch.from_numpy(np.array(mesh.faces, np.int64))[face]  # [count, 3]
            colours = (weight[..., None] * torch.from_numpy(rgb)[faces]).sum(1).float()
    return points.float(), colours


def _sample_vertices(cloud, count, grey, generator) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    vertices = torch.from_numpy(np.array(cloud.vertices, np.float64)).float()
    order = torch.randperm(len(vertices), generator=generator)
    pick = order.repeat(-(-count // len(order)))[:count]
    points = vertices[pick]
    repeated = torch.arange(count) >= len(vertices)
    if bool(repeated.any()):
        spread = neighbour_distance(vertices)[pick, None] * 0.3
        points = points + repeated[:, None] * spread * torch.randn(count, 3, generator=generator)
    colours = torch.full((count, 3), grey)
    rgb = getattr(cloud, "colors", None)
    if rgb is not None and len(rgb) == len(vertices):
        colours = torch.from_numpy(np.asarray(rgb)[:, :3].astype(np.float32) / 255.0)[pick]
    return points, colours


def initialise(config: GaussianConfig, seed: int = 0) -> SplatCloud:
    """The splats that ``config`` describes, on the CPU; the same for the same ``seed``."""
    init = config.init
    generator = torch.Generator().manual_seed(seed)
    if init.kind == "splats":
        raise ValueError("init.kind=splats: read the file and give its splats as ``cloud``")
    if init.kind == "points":
        points, colours = file_points(init.path, config.count, init.radius, init.colour, generator)
    else:
        points = ball_points(config.count, init.radius, generator)
        jitter = init.colour_jitter * torch.randn(config.count, 3, generator=generator)
        colours = (init.colour + jitter).clamp(0.0, 1.0)
    return from_points(
        points,
        colours,
        opacity=init.opacity,
        scale_factor=init.scale_factor,
        sh_degree=config.sh_degree,
        generator=generator,
    )
