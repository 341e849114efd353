# SPDX-License-Identifier: Apache-2.0
"""From a trained shape to files for other programs: splats from splats, triangles from both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from representations.interface import Renderer

from .build import below, device
from .config import Config
from .errors import UserError, nearest
from .views import ViewPolicy

if TYPE_CHECKING:
    from representations.export.surface import Extracted
    from representations.gaussians import GaussianRenderer
    from representations.instant_ngp import InstantNGPRenderer

SPLAT_FORMATS = ("ply", "splat")
MESH_FORMATS = ("glb", "obj", "mesh-ply")
FORMATS = (*SPLAT_FORMATS, *MESH_FORMATS)
MESHERS = ("default", "open3d")


@dataclass(frozen=True)
class MeshOptions:
    """How triangles are made."""

    resolution: int = 128  # lattice points along an axis of the cube
    threshold: float | None = None  # density of a field's surface, 1 / world unit; None: measured
    mesher: str = "default"  # marching cubes of a field, our fusion of splats; or open3d's of both

    def __post_init__(self) -> None:
        if not 8 <= self.resolution <= 1024:
            raise UserError(
                f"--resolution {self.resolution}: allowed are 8 to 1024 lattice points along an "
                "axis; write --resolution 128"
            )
        if self.threshold is not None and not self.threshold > 0.0:
            raise UserError(
                f"--threshold {self.threshold}: a density is above 0; leave it out to have it "
                "measured"
            )
        if self.mesher not in MESHERS:
            raise UserError(f"--mesher {self.mesher}: {nearest(self.mesher, MESHERS)}")
        if self.mesher == "open3d" and self.threshold is not None:
            raise UserError(
                "--threshold is the density of a field's surface, and --mesher open3d fuses depth "
                "pictures, which have none: leave one of the two out"
            )


def final_format(shape: Renderer) -> str:
    """What a finished run leaves: splats where there are splats, else a mesh."""
    from representations.gaussians import GaussianRenderer

    return "ply" if isinstance(shape, GaussianRenderer) else "glb"


def ending(kind: str) -> str:
    """Of a file in that format."""
    return "ply" if kind == "mesh-ply" else kind


def export(
    shape: Renderer, path: Path, kind: str, views: ViewPolicy, options: MeshOptions | None = None
) -> str:
    """Write the shape as ``kind``; what the file holds, in words. UserError when it cannot be."""
    from representations.export import write_ply, write_splat
    from representations.gaussians import GaussianRenderer

    if kind not in FORMATS:
        raise UserError(f"--format {kind}: {nearest(kind, FORMATS)}")
    if kind in SPLAT_FORMATS:
        if not isinstance(shape, GaussianRenderer):
            raise UserError(
                f"--format {kind}: a radiance field has no splats; write --format glb for a mesh, "
                "or make splats of it with 'sdi-gs convert RUN --to gaussians'"
            )
        with below("export"):
            write = write_ply if kind == "ply" else write_splat
            return f"{write(path, shape.cloud()):,} splats"
    return _export_mesh(shape, path, kind, views, options or MeshOptions())


def _export_mesh(
    shape: Renderer, path: Path, kind: str, views: ViewPolicy, options: MeshOptions
) -> str:
    from representations.export.mesh import write_mesh
    from representations.gaussians import GaussianRenderer
    from representations.instant_ngp import InstantNGPRenderer

    with below("export"):
        match shape:
            case GaussianRenderer() | InstantNGPRenderer() if options.mesher == "open3d":
                made = _fused(shape, views, options)
                how = "fused from depth pictures by open3d"
            case GaussianRenderer():
                made = _fused(shape, views, options)
                how = "fused from depth pictures"
            case InstantNGPRenderer():
                made = _extracted(shape, views, options)
                chosen = "measured" if options.threshold is None else "given"
                how = f"at density {made.level:.3g} ({chosen})"
            case _:
                raise UserError(f"{type(shape).__name__} cannot be turned into triangles")
        faces = write_mesh(path, made.mesh, "ply" if kind == "mesh-ply" else kind)
    return f"{faces:,} faces in {made.parts} connected part(s), {how}"


def _look(views: ViewPolicy, pixels: int) -> tuple[int, float, float]:
    """Resolution, distance and field of view of the pictures that a surface is found with."""
    return pixels, sum(views.distance) / 2, sum(views.fov_y_deg) / 2


def _extracted(shape: InstantNGPRenderer, views: ViewPolicy, options: MeshOptions) -> Extracted:
    from representations.export import surface

    level = options.threshold
    if level is None:
        cameras = surface.views_around(*_look(views, 64))
        renders = surface.pictures(shape, cameras, shape.device)
        level = surface.surface_level(_on(shape, shape.field.density), renders, cameras)
    return surface.from_density(
        _on(shape, shape.field.density),
        _on(shape, shape.field.albedo),
        level,
        radius=shape.config.radius,
        resolution=options.resolution,
    )


def _on(shape: InstantNGPRenderer, function):  # type: ignore[no-untyped-def]
    """``function`` of points on the CPU, asked where the field lives."""
    return lambda points: function(points.to(shape.device))


def _reach(shape: GaussianRenderer | InstantNGPRenderer) -> float:
    """Half the side of the cube that holds the shape, world units."""
    from representations.instant_ngp import InstantNGPRenderer

    if isinstance(shape, InstantNGPRenderer):
        return shape.config.radius
    distance = shape.cloud().means.norm(dim=-1).cpu()
    return 1.1 * float(distance.sort().values[int(0.99 * (len(distance) - 1))])


def _fused(
    shape: GaussianRenderer | InstantNGPRenderer, views: ViewPolicy, options: MeshOptions
) -> Extracted:
    from representations.export import fuse_open3d, surface

    # Two pixels per lattice cell: depth is looked up, not interpolated.
    cameras = surface.views_around(*_look(views, 2 * options.resolution))
    renders = surface.pictures(shape, cameras, shape.device)
    fuse = fuse_open3d.fuse if options.mesher == "open3d" else surface.fuse
    return fuse(renders, cameras, radius=_reach(shape), resolution=options.resolution)


def splats_on_surface(shape: Renderer, config: Config, count: int) -> Renderer:
    """A Gaussian field whose splats lie where pictures of ``shape`` see its surface."""
    from representations.export import surface
    from representations.gaussians import GaussianConfig, GaussianRenderer
    from representations.gaussians.initialise import from_points

    target = device(config)
    cameras = surface.views_around(*_look(config.views, 128))
    with below("convert"):
        seen = [
            surface.seen_points(render, cameras[i : i + 1])
            for i, render in enumerate(surface.pictures(shape, cameras, target))
        ]
        points, colours = (torch.cat(parts) for parts in zip(*seen, strict=True))
        if len(points) == 0:
            raise UserError(
                "convert: the field is empty: no picture shows anything that is more than half "
                "opaque; train longer, or look at the run's previews"
            )
        generator = torch.Generator().manual_seed(config.seed)
        pick = torch.randperm(len(points), generator=generator)[:count]
        cloud = from_points(
            points[pick],
            colours[pick],
            opacity=0.8,
            scale_factor=1.0,
            sh_degree=0,
            generator=generator,
        )
        settings = config.representation
        assert isinstance(settings, GaussianConfig)
        return GaussianRenderer(settings, target, cloud)
