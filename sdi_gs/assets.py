# SPDX-License-Identifier: Apache-2.0
"""From a trained shape to files for other programs: splats from splats, triangles from both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from representations.interface import HasDensity, HasMesh, HasSplats, Renderer

from .build import below, device, splat_renderer
from .config import Config
from .errors import UserError, command, nearest
from .splat_export import SPLAT_FORMATS as SPLAT_FORMATS
from .splat_export import SplatOptions as SplatOptions
from .splat_export import write_splats
from .views import ViewPolicy

if TYPE_CHECKING:
    from representations.export.surface import Extracted

MESH_FORMATS = ("glb", "obj", "mesh-ply")
FORMATS = (*SPLAT_FORMATS, *MESH_FORMATS)
MESHERS = ("default", "open3d")
IN_VIEW = 0.85
"""Of what a camera sees whole: the ball of nearly all splats, when they become triangles."""

ENDINGS = {"mesh-ply": "ply", "ply-compressed": "compressed.ply", "gltf-splats": "splats.glb"}


@dataclass(frozen=True)
class MeshOptions:
    """How triangles are made."""

    resolution: int = 128  # lattice points along an axis of the cube
    threshold: float | None = None  # density of a field's surface, 1 / world unit; None: measured
    mesher: str = "default"  # marching cubes of a field, our fusion of splats; or open3d's of both
    name: str = ""  # of the object inside a .glb; default that of the file

    def __post_init__(self) -> None:
        if not 8 <= self.resolution <= 1024:
            raise UserError(
                f"resolution={self.resolution}: allowed are 8 to 1024 lattice points along an "
                "axis; write resolution=128"
            )
        if self.threshold is not None and not self.threshold > 0.0:
            raise UserError(
                f"threshold={self.threshold}: a density is above 0; leave it out to have it "
                "measured"
            )
        if self.mesher not in MESHERS:
            raise UserError(f"mesher={self.mesher}: {nearest(self.mesher, MESHERS)}")
        if self.mesher == "open3d" and self.threshold is not None:
            raise UserError(
                "threshold is the density of a field's surface, and mesher=open3d fuses depth "
                "pictures, which have none: leave one of the two out"
            )


@dataclass(frozen=True)
class Exported:
    """A file that was written; as text it says what the file holds."""

    path: Path
    kind: str  # one of FORMATS
    count: int  # of the unit
    unit: str  # "splats" or "faces"
    note: str = ""  # how triangles were found, or what of the splats the format cuts

    def __str__(self) -> str:
        return f"{self.count:,} {self.unit}{self.note}"


def final_format(shape: Renderer) -> str:
    """What a finished run leaves: splats where there are splats, else a mesh."""
    return "ply" if isinstance(shape, HasSplats) else "glb"


def kind_of(path: Path, shape: Renderer) -> str:
    """The format that the ending of ``path`` names. UserError for an unknown one."""
    name = path.name.lower()
    for kind in ("ply-compressed", "gltf-splats"):
        if name.endswith(f".{ENDINGS[kind]}"):
            return kind
    suffix = path.suffix.lower().lstrip(".")
    if suffix == "ply":
        return "ply" if isinstance(shape, HasSplats) else "mesh-ply"
    if suffix not in FORMATS:
        known = ", ".join(f".{ending(kind)}" for kind in FORMATS if kind != "mesh-ply")
        raise UserError(f"{path}: no format ends in '{path.suffix}'; known here: {known}")
    return suffix


def ending(kind: str) -> str:
    """Of a file in that format."""
    return ENDINGS.get(kind, kind)


def require_ending(path: Path, kind: str) -> None:
    """UserError for a name that says another format than ``kind``: a reader goes by the name."""
    name = path.name.lower()
    endings = sorted({ending(known) for known in FORMATS}, key=len, reverse=True)
    said = next((known for known in endings if name.endswith(f".{known}")), None)
    # A compressed PLY is a PLY to whoever reads its header, and glTF of splats is a .glb.
    fits = {ending(kind), {"ply-compressed": "ply", "gltf-splats": "glb"}.get(kind, ending(kind))}
    if said is not None and said not in fits:
        right = path.with_name(path.name[: -len(said)] + ending(kind))
        raise UserError(
            f"kind={kind}: {path} ends like another format; write --out {right}, or leave kind out "
            "for what the ending says"
        )


def default_path(source: Path, kind: str, splats: SplatOptions) -> Path:
    """Where an export of a run's folder or of a splat file goes when nothing else is said.

    The run's own final.ply is not replaced by another choice of it, and a file by nothing.
    """
    if source.is_file():
        path = source.with_suffix(f".{ending(kind)}")
        if path.exists():
            raise UserError(f"{path} exists; name the file to write with --out")
        return path
    if kind == "mesh-ply":
        return source / "mesh.ply"
    return source / f"{'export' if splats.given() else 'final'}.{ending(kind)}"


def export(
    shape: Renderer,
    path: Path,
    kind: str,
    views: ViewPolicy,
    options: MeshOptions | None = None,
    splats: SplatOptions | None = None,
) -> Exported:
    """Write the shape as ``kind``. UserError when it cannot be."""
    splats = splats or SplatOptions()
    if kind not in FORMATS:
        raise UserError(f"kind={kind}: {nearest(kind, FORMATS)}")
    splats.check(kind)
    require_ending(path, kind)
    if kind in SPLAT_FORMATS:
        if not isinstance(shape, HasSplats):
            raise UserError(
                f"kind={kind}: this shape has no splats; write kind=glb for a mesh, "
                f"or make splats of it with {command('convert', 'RUN', '--to', 'gaussians')}"
            )
        with below("export"):
            cloud, said = shape.cloud(), list[str]()
            cloud = splats.place(cloud, said.append)
            count = write_splats(cloud, path, kind, splats, said.append)
            if count < len(cloud):
                said.insert(0, f"{len(cloud) - count:,} fainter or unusable ones are left out")
            return Exported(path, kind, count, "splats", "".join(f"; {note}" for note in said))
    return _export_mesh(shape, path, kind, views, options or MeshOptions())


def _export_mesh(
    shape: Renderer, path: Path, kind: str, views: ViewPolicy, options: MeshOptions
) -> Exported:
    from representations.export.mesh import write_mesh

    with below("export"):
        if isinstance(shape, HasMesh):
            made, how = _own_mesh(shape), "as trained"
        elif isinstance(shape, HasDensity) and options.mesher != "open3d":
            made = _extracted(shape, views, options)
            chosen = "measured" if options.threshold is None else "given"
            how = f"at density {made.level:.3g} ({chosen})"
        else:
            made, how = _fused(shape, views, options), "fused from depth pictures"
            how += " by open3d" if options.mesher == "open3d" else ""
        faces = write_mesh(path, made.mesh, "ply" if kind == "mesh-ply" else kind, options.name)
    note = f" in {made.parts} connected part(s), {how}"
    return Exported(path, kind, faces, "faces", note)


def _own_mesh(shape: HasMesh) -> Extracted:
    """The triangles that a shape is made of already."""
    from representations.export.mesh import Mesh, keep_large_parts
    from representations.export.surface import Extracted

    surface = shape.mesh()
    mesh = Mesh(surface.vertices.numpy(), surface.faces.numpy(), surface.colours.numpy())
    return Extracted(mesh.check(), 0.0, keep_large_parts(mesh)[1])


def _look(views: ViewPolicy, pixels: int) -> tuple[int, float, float]:
    """Resolution, distance and field of view of the pictures that a surface is found with."""
    return pixels, sum(views.distance) / 2, sum(views.fov_y_deg) / 2


def _extracted(shape: Any, views: ViewPolicy, options: MeshOptions) -> Extracted:
    """The surface of a renderer that has a density."""
    from representations.export import surface

    level = options.threshold
    if level is None:
        cameras = surface.views_around(*_look(views, 64))
        renders = surface.pictures(shape, cameras, _device_of(shape))
        level = surface.surface_level(shape.density, renders, cameras)
    return surface.from_density(
        shape.density,
        shape.albedo,
        level,
        radius=shape.radius,
        resolution=options.resolution,
    )


def _device_of(shape: Renderer) -> torch.device:
    """Where a renderer's parameters live."""
    for optimizer in shape.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                return torch.device(parameter.device)
    return torch.device("cpu")


def _reach(shape: Renderer, views: ViewPolicy) -> float:
    """Half the side of the cube that holds the shape, world units: its own, that of its splats, or
    what the cameras of its policy can see whole."""
    if isinstance(shape, HasDensity):
        return shape.radius
    if isinstance(shape, HasSplats):
        distance = shape.cloud().means.norm(dim=-1).cpu()
        return 1.1 * float(distance.sort().values[int(0.99 * (len(distance) - 1))])
    return _look(views, 1)[1] * _half_sine(views)


def _fused(shape: Renderer, views: ViewPolicy, options: MeshOptions) -> Extracted:
    from representations.export import fuse_open3d, surface
    from representations.framing import frame_of

    seen, frame, size = shape, None, 1.0
    if isinstance(shape, HasSplats):
        # Whatever the size and place of the splats, they are looked at as a shape of ours is.
        cloud = shape.cloud()
        frame, size = frame_of(cloud), IN_VIEW * _look(views, 1)[1] * _half_sine(views)
        seen = splat_renderer(frame.bring(cloud, size), Config())
    # Two pixels per lattice cell: depth is looked up, not interpolated.
    cameras = surface.views_around(*_look(views, 2 * options.resolution))
    renders = surface.pictures(seen, cameras, _device_of(seen))
    fuse = fuse_open3d.fuse if options.mesher == "open3d" else surface.fuse
    made = fuse(renders, cameras, radius=_reach(seen, views), resolution=options.resolution)
    if frame is None:
        return made
    where = frame.back(torch.from_numpy(made.mesh.vertices), size).float().numpy()
    return made._replace(mesh=replace(made.mesh, vertices=where))


def _half_sine(views: ViewPolicy) -> float:
    """How large a ball a camera of the policy's middle sees whole, over its distance."""
    return math.sin(math.radians(_look(views, 1)[2] / 2))


def splats_on_surface(shape: Renderer, config: Config, count: int, steps: int) -> Renderer:
    """``count`` splats where pictures of ``shape`` see its surface, to be trained for ``steps``."""
    from representations.export import surface
    from representations.gaussians import GaussianConfig, GaussianRenderer
    from representations.gaussians.initialise import from_points

    target = device(config.device)
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
        return GaussianRenderer(settings, target, cloud, steps=steps, seed=config.seed)
