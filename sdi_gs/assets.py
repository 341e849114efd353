# SPDX-License-Identifier: Apache-2.0
"""From a trained shape to files for other programs: splats from splats, triangles from both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from representations.interface import HasSplats, Renderer

from .build import below, device
from .config import Config
from .errors import UserError, command, nearest
from .meshes import MeshOptions as MeshOptions
from .meshes import look, make
from .splat_export import SPLAT_FORMATS as SPLAT_FORMATS
from .splat_export import SplatOptions as SplatOptions
from .splat_export import write_splats
from .views import ViewPolicy

MESH_FORMATS = ("glb", "obj", "mesh-ply")
TEXTURE_FORMATS = ("glb", "obj")
FORMATS = (*SPLAT_FORMATS, *MESH_FORMATS)
ENDINGS = {"mesh-ply": "ply", "ply-compressed": "compressed.ply", "gltf-splats": "splats.glb"}


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


def require_room(path: Path, kind: str, textured: bool) -> None:
    """UserError where a textured .obj would replace a file beside it that nobody named."""
    from representations.export.mesh import companions

    taken = [other for other in companions(path) if other.exists()]
    if kind == "obj" and textured and taken:
        raise UserError(
            f"{taken[0]} exists, and an .obj with a texture has a file of that name beside it; "
            "name another --out, or replace both with --force"
        )


def check_refine(refine: int, kind: str) -> None:
    """UserError for a format that holds no texture."""
    if kind not in TEXTURE_FORMATS:
        raise UserError(
            f"refine={refine}: trains a texture, and kind={kind} holds none; write kind="
            + " or ".join(TEXTURE_FORMATS)
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
    given = options.given() if options is not None else []
    if kind in SPLAT_FORMATS and given:
        raise UserError(
            f"{', '.join(given)}: for triangles, and kind={kind} writes splats; leave it out, or "
            f"choose one of {', '.join(MESH_FORMATS)}"
        )
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

    plain = kind == "mesh-ply"
    if plain and options.texture is not None:
        raise UserError(
            f"texture={options.texture}: a .ply holds no texture; write kind=glb or obj"
        )
    with below("export"):
        made = make(shape, views, options)
        # Of a shape with a texture of its own a .ply has the colours at the vertices.
        mesh = replace(made.mesh, skin=None) if plain else made.mesh
        faces = write_mesh(path, mesh, "ply" if plain else kind, options.name)
    return Exported(path, kind, faces, "faces", made.note)


def splats_on_surface(shape: Renderer, config: Config, count: int, steps: int) -> Renderer:
    """``count`` splats where pictures of ``shape`` see its surface, to be trained for ``steps``."""
    from representations.export import surface
    from representations.gaussians import GaussianConfig, GaussianRenderer
    from representations.gaussians.initialise import from_points

    target = device(config.device)
    cameras = surface.views_around(*look(config.views, 128))
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
