# SPDX-License-Identifier: Apache-2.0
"""Triangles of a trained shape: found, thinned out, laid flat, painted and put in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from representations.interface import HasDensity, HasMesh, HasSplats, HasTexture, Renderer

from .build import splat_renderer
from .config import Config
from .errors import UserError, nearest
from .views import ViewPolicy

if TYPE_CHECKING:
    from representations.export.bake import Baked
    from representations.export.mesh import Mesh
    from representations.export.surface import Extracted

MESHERS = ("default", "open3d")
PIVOTS = ("ground", "centre")
FACES_OF_TEXTURED = 10_000
"""Of a textured mesh where no number is given: detail is in the picture, and more would only make
more charts."""

LARGEST_PICTURE = 768
"""Pixels: the 50 pictures that a surface is fused from are held together, in 1.5 GB at most."""

IN_VIEW = 0.85
"""Of what a camera sees whole: the ball of nearly all splats, when they become triangles."""


@dataclass(frozen=True)
class MeshOptions:
    """How triangles are made."""

    resolution: int = 128  # lattice points along an axis of the cube
    threshold: float | None = None  # density of a field's surface, 1 / world unit; None: measured
    mesher: str = "default"  # marching cubes of a field, our fusion of splats; or open3d's of both
    name: str = ""  # of the object inside a .glb; default that of the file
    texture: int | None = None  # texels along a side; None: colours at the vertices
    faces: int | None = None  # at most; None: all, with a texture FACES_OF_TEXTURED
    height: float | None = None  # metres; None: as trained
    pivot: str | None = None  # where the origin is, one of PIVOTS; None: as trained

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
        if self.texture is not None and not 16 <= self.texture <= 8192:
            raise UserError(
                f"texture={self.texture}: allowed are 16 to 8192 texels along a side; write "
                "texture=1024"
            )
        if self.faces is not None and not 4 <= self.faces <= 50_000_000:
            raise UserError(
                f"faces={self.faces}: allowed are 4 or more triangles; write faces="
                f"{FACES_OF_TEXTURED}"
            )
        if self.height is not None and not 1e-12 <= self.height <= 1e12:
            raise UserError(
                f"height={self.height}: allowed are 1e-12 to 1e12 metres; write height=0.1 for ten "
                "centimetres"
            )
        if self.pivot is not None and self.pivot not in PIVOTS:
            raise UserError(f"pivot={self.pivot}: {nearest(self.pivot, PIVOTS)}")

    def given(self) -> list[str]:
        """The options that only triangles have and that were asked for, as they are typed."""
        asked = {"texture": self.texture, "faces": self.faces, "height": self.height,
                 "pivot": self.pivot}  # fmt: skip
        return [f"{name}={value}" for name, value in asked.items() if value is not None]


class Made(NamedTuple):
    """Triangles for a file, and how they came about."""

    mesh: Mesh
    note: str


def make(shape: Renderer, views: ViewPolicy, options: MeshOptions) -> Made:
    """The triangles of ``shape`` as the options want them. ValueError where they cannot be made."""
    from representations.export.mesh import placed
    from representations.export.simplify import simplify

    if isinstance(shape, HasTexture) and options.texture is not None:
        raise UserError(
            f"texture={options.texture}: this shape is a mesh with a texture of its own; leave it "
            "out to have that"
        )
    made, how, seen = _found(shape, views, options)
    mesh, parts = made.mesh, made.parts
    most = options.faces
    if most is None and options.texture is not None and not isinstance(shape, HasMesh):
        most = FACES_OF_TEXTURED
    if most is not None and most < len(mesh.faces):
        if mesh.skin is not None:
            raise UserError(
                f"faces={most}: this mesh has {len(mesh.faces):,}, to which its texture belongs; "
                "leave it out, or choose the number when the mesh is made"
            )
        how += f", {len(mesh.faces):,} before simplification"
        mesh = simplify(mesh, most)
    if options.texture is not None:
        baked = _painted(mesh, seen.renderer, views, options.texture)
        mesh = baked.mesh
        how += f", a texture of {options.texture} x {options.texture} texels"
        if baked.unseen:
            share = 100.0 * baked.unseen / baked.texels
            how += f" ({share:.1f} % of the surface is in no picture and filled from beside it)"
    mesh = placed(seen.back(mesh), options.height, options.pivot)
    return Made(mesh, f" in {parts} connected part(s), {how}")


class _Seen(NamedTuple):
    """A shape as it is looked at for its triangles, and the way back."""

    renderer: Renderer
    back: Callable[[Mesh], Mesh]


def _found(
    shape: Renderer, views: ViewPolicy, options: MeshOptions
) -> tuple[Extracted, str, _Seen]:
    """Triangles where they are seen, a word on them, and what sees them."""
    seen = _Seen(shape, lambda mesh: mesh)
    if isinstance(shape, HasMesh):
        return _own_mesh(shape), "as trained", seen
    if isinstance(shape, HasDensity) and options.mesher != "open3d":
        made = _extracted(shape, views, options)
        chosen = "measured" if options.threshold is None else "given"
        return made, f"at density {made.level:.3g} ({chosen})", seen
    seen = _brought(shape, views)
    how = "fused from depth pictures" + (" by open3d" if options.mesher == "open3d" else "")
    return _fused(seen.renderer, views, options), how, seen


def _own_mesh(shape: HasMesh) -> Extracted:
    """The triangles that a shape is made of already, with its texture where it has one."""
    from representations.export.mesh import Mesh, Skin, keep_large_parts
    from representations.export.surface import Extracted

    surface = shape.mesh()
    mesh = Mesh(surface.vertices.numpy(), surface.faces.numpy(), surface.colours.numpy())
    if isinstance(shape, HasTexture):
        uv, texture = shape.texture_map()
        mesh = replace(mesh, skin=Skin(uv.double().numpy(), texture.numpy()))
    places, faces, _ = mesh.check().sewn()
    whole = Mesh(places, faces, np.zeros(places.shape, np.float32))
    return Extracted(mesh, 0.0, keep_large_parts(whole)[1])


def look(views: ViewPolicy, pixels: int) -> tuple[int, float, float]:
    """Resolution, distance and field of view of the pictures that a surface is found with."""
    return pixels, sum(views.distance) / 2, sum(views.fov_y_deg) / 2


def _extracted(shape: Any, views: ViewPolicy, options: MeshOptions) -> Extracted:
    """The surface of a renderer that has a density."""
    from representations.export import surface

    level = options.threshold
    if level is None:
        cameras = surface.views_around(*look(views, 64))
        renders = surface.pictures(shape, cameras, device_of(shape))
        level = surface.surface_level(shape.density, renders, cameras)
    return surface.from_density(
        shape.density,
        shape.albedo,
        level,
        radius=shape.radius,
        resolution=options.resolution,
    )


def device_of(shape: Renderer) -> torch.device:
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
    return look(views, 1)[1] * _half_sine(views)


def _brought(shape: Renderer, views: ViewPolicy) -> _Seen:
    """Whatever the size and place of splats, they are looked at as a shape of ours is."""
    if not isinstance(shape, HasSplats):
        return _Seen(shape, lambda mesh: mesh)
    from representations.framing import frame_of

    cloud = shape.cloud()
    frame, size = frame_of(cloud), IN_VIEW * look(views, 1)[1] * _half_sine(views)

    def back(mesh: Mesh) -> Mesh:
        where = frame.back(torch.from_numpy(mesh.vertices), size).float().numpy()
        return replace(mesh, vertices=where)

    return _Seen(splat_renderer(frame.bring(cloud, size), Config()), back)


def _fused(seen: Renderer, views: ViewPolicy, options: MeshOptions) -> Extracted:
    from representations.export import fuse_open3d, surface

    # Two pixels per lattice cell: depth is looked up, not interpolated.
    pixels = min(2 * options.resolution, LARGEST_PICTURE)
    cameras = surface.views_around(*look(views, pixels))
    renders = surface.pictures(seen, cameras, device_of(seen))
    fuse = fuse_open3d.fuse if options.mesher == "open3d" else surface.fuse
    return fuse(renders, cameras, radius=_reach(seen, views), resolution=options.resolution)


def _half_sine(views: ViewPolicy) -> float:
    """How large a ball a camera of the policy's middle sees whole, over its distance."""
    return math.sin(math.radians(look(views, 1)[2] / 2))


def _painted(mesh: Mesh, seen: Renderer, views: ViewPolicy, size: int) -> Baked:
    """The mesh with a texture from the pictures of ``seen``, a pixel about as large as a texel."""
    from representations.export import bake

    cameras = bake.views_for_texture(*look(views, int(np.clip(size // 2, 128, 1024))))
    renders = bake.one_by_one(seen, cameras, device_of(seen))
    albedo = seen.albedo if isinstance(seen, HasDensity) else None
    return bake.bake(bake.skinned(mesh, size), renders, cameras, albedo)
