# SPDX-License-Identifier: Apache-2.0
"""From a trained shape to files for other programs: splats from splats, triangles from both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from representations.interface import HasSplats, Renderer, Say

from .build import below, device
from .config import Config
from .errors import UserError, command, nearest
from .meshes import MeshOptions as MeshOptions
from .meshes import look, make
from .views import ViewPolicy

if TYPE_CHECKING:
    from representations.cloud import SplatCloud
    from representations.cutting import Cut
    from representations.export import Layout

USD_FORMATS = ("usdz", "usdc", "usda")
SPLAT_FORMATS = (
    "ply", "ply-compressed", "splat", "spz", "sog", "ksplat", "gltf-splats", *USD_FORMATS, "html",
)  # fmt: skip
MESH_FORMATS = ("glb", "obj", "mesh-ply")
TEXTURE_FORMATS = ("glb", "obj")
FORMATS = (*SPLAT_FORMATS, *MESH_FORMATS)
UPS = ("viewer", "y", "z")
ENDINGS = {"mesh-ply": "ply", "ply-compressed": "compressed.ply", "gltf-splats": "splats.glb"}


@dataclass(frozen=True)
class SplatOptions:
    """What goes into a file of splats; None is the format's own choice."""

    up: str | None = None  # one of UPS; None: the format's own, viewer for most
    sh_degree: int | None = None  # 0 to 3; None: as trained
    min_opacity: float | None = None  # 0 to 1; None: 1/255, below which no viewer draws
    scale: float | None = None  # above 0: times every length
    recentre: bool = False  # the middle of the shape goes to the origin, before it is scaled
    spz_version: int | None = None  # 3 or 4; None: 3
    cut: Cut | None = None  # what is left out, before anything else; None: nothing
    cut_typed: tuple[str, ...] = ()  # and how that was asked for

    def __post_init__(self) -> None:
        if self.scale is not None and not 1e-12 <= self.scale <= 1e12:
            raise UserError(
                f"scale={self.scale}: a length is multiplied by 1e-12 to 1e12; write scale=0.1 for "
                "a tenth of the size"
            )
        if self.up is not None and self.up not in UPS:
            raise UserError(f"up={self.up}: {nearest(self.up, UPS)}")
        if self.sh_degree is not None and not 0 <= self.sh_degree <= 3:
            raise UserError(
                f"sh_degree={self.sh_degree}: allowed are 0 (one colour per splat) to 3; leave "
                "it out to keep what was trained"
            )
        if self.min_opacity is not None and not 0.0 <= self.min_opacity <= 1.0:
            raise UserError(
                f"min_opacity={self.min_opacity}: allowed are 0 (every splat) to 1; leave it "
                "out for 1/255"
            )

    def given(self) -> list[str]:
        """The options that were asked for, as they are typed."""
        asked = {"up": self.up, "sh_degree": self.sh_degree, "min_opacity": self.min_opacity,
                 "scale": self.scale, "spz_version": self.spz_version}  # fmt: skip
        given = [f"{name}={value}" for name, value in asked.items() if value is not None]
        cut = self.cut_typed or (() if self.cut is None else ("cut",))
        return [*given, *(["--recentre"] if self.recentre else []), *cut]

    def place(self, cloud: SplatCloud, say: Say) -> SplatCloud:
        """The splats that are wanted, where and as large as they are wanted; ``say`` is told how
        many are left out, and by how much they were moved."""
        if self.cut is not None:
            cloud = self.cut.apply(cloud, say)
        if self.scale is None and not self.recentre:
            return cloud
        from representations.framing import Frame, frame_of

        centre = frame_of(cloud).centre if self.recentre else torch.zeros(3, dtype=torch.float64)
        if self.recentre:
            say("moved by " + ", ".join(f"{-float(x):.9g}" for x in centre) + " (z up)")
        return Frame(centre, 1.0).bring(cloud, self.scale or 1.0)

    def check(self, kind: str) -> None:
        """Refuse what a file of that format cannot hold."""
        given = self.given()
        if kind in MESH_FORMATS and given:
            raise UserError(
                f"{', '.join(given)}: for splats, and kind={kind} writes triangles, y up and "
                f"front towards +z; leave it out, or choose one of {', '.join(SPLAT_FORMATS)}"
            )
        if kind == "splat" and self.sh_degree:
            raise UserError(
                f"sh_degree={self.sh_degree}: a .splat file holds one colour per splat; leave it "
                "out, or write kind=ply or spz"
            )
        if self.spz_version is not None and kind != "spz":
            raise UserError(
                f"spz_version={self.spz_version}: is of kind=spz, and kind={kind} is another "
                "format; leave it out"
            )
        if self.spz_version not in (None, 3, 4):
            raise UserError(
                f"spz_version={self.spz_version}: written are 3, which every reader knows, and 4, "
                "which is smaller; write spz_version=3"
            )
        if kind == "gltf-splats" and self.up not in (None, "y"):
            raise UserError(f"up={self.up}: a glTF file has y up by its standard; leave it out")
        if kind in USD_FORMATS and self.up == "viewer":
            raise UserError(
                "up=viewer: a USD stage has y or z up; write up=y, up=z, or leave it out"
            )
        if kind == "html" and self.up in ("y", "z"):
            raise UserError(
                f"up={self.up}: the html page stands its splats upright by itself; leave it out"
            )

    def layout(self) -> Layout:
        from representations.export import Layout

        chosen = Layout(up=self.up, sh_degree=self.sh_degree)
        if self.min_opacity is None:
            return chosen
        return replace(chosen, min_opacity=self.min_opacity)


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
            count = _export_splats(cloud, path, kind, splats, said.append)
            if count < len(cloud):
                said.insert(0, f"{len(cloud) - count:,} fainter or unusable ones are left out")
            return Exported(path, kind, count, "splats", "".join(f"; {note}" for note in said))
    return _export_mesh(shape, path, kind, views, options or MeshOptions())


def _export_splats(cloud: SplatCloud, path: Path, kind: str, splats: SplatOptions, say: Say) -> int:
    """Write the file; how many splats it holds. ``say`` is told what the format cuts, and which of
    two tools wrote it."""
    from representations.export import forge, packed, playcanvas, usd, write_ply, write_splat
    from representations.export.gltf_splats import write_gltf_splats

    layout = splats.layout()
    match kind:
        case "ply":
            return write_ply(path, cloud, layout)
        case "splat":
            return write_splat(path, cloud, layout, say)
        case "ply-compressed":
            return packed.write_compressed_ply(path, cloud, layout, say)
        case "spz":
            version = splats.spz_version or packed.SPZ_VERSION
            return packed.write_spz(path, cloud, layout, say, version)
        case "gltf-splats":
            return write_gltf_splats(path, cloud, layout, say)
        case "usda" | "usdc" | "usdz":
            return usd.write_usd(path, cloud, kind, layout)
        case "ksplat":
            return forge.write_by_gaussforge(path, cloud, kind, layout, say)
        case "sog" if not playcanvas.found() and forge.installed():
            return forge.write_by_gaussforge(path, cloud, kind, layout, say)
        case _:
            count = playcanvas.write_by_splat_transform(path, cloud, kind, layout)
            say("written by splat-transform")
            return count


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
