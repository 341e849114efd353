# SPDX-License-Identifier: Apache-2.0
"""Every setting of the textured representation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..checks import one_of, require
from ..memory import COPIES_IN_TRAINING, PER_PIXEL_AND_VIEW
from ..start_file import FileUp

PER_SAMPLE = 90
"""Numbers of a ray that are kept for the backward pass: where it hits, eight texels; about."""


@dataclass(frozen=True, kw_only=True)
class MeshInit:
    """Where the surface comes from."""

    # A mesh: .glb, .obj, or anything that trimesh reads. None: a ball, where the shape is trained.
    path: str = ""
    up: FileUp = "auto"  # axis up in the file; auto: as the file or its format says
    radius: float = 0.0  # world units, that the mesh is scaled to; 0 = as it is, of a ball 0.4
    detail: int = 24  # of a ball: squares along each side of the six that it is made of

    def __post_init__(self) -> None:
        require(1 <= self.detail <= 512, "init.detail", self.detail, "1 to 512 squares", 24)
        one_of("init.up", self.up, get_args(FileUp))
        require(self.radius >= 0.0, "init.radius", self.radius, "a length, 0 or more", 0.6)


@dataclass(frozen=True, kw_only=True)
class TextureRates:
    """Adam's learning rates."""

    texture: float = 5e-3  # of a texel; falls exponentially ...
    texture_final: float = 5e-4  # ... to this at the last step
    environment: float = 1e-2  # constant; the learned background

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            lowest_ok = rate > 0.0 if name.startswith("texture") else rate >= 0.0
            require(lowest_ok, f"rates.{name}", rate, "a positive learning rate", 1e-3)


@dataclass(frozen=True, kw_only=True)
class ShapeMoves:
    """Whether and how the corners of the mesh are trained as well."""

    rate: float = 0.0  # world units that a corner may go in a step at first; 0 = the shape stays
    rate_final: float = 0.1  # of it, at the last step; between them it falls exponentially
    smooth: float = 5.0  # lambda of Nicolet et al. 2021: how far around a corner a step reaches

    def __post_init__(self) -> None:
        require(0.0 <= self.rate <= 1.0, "shape.rate", self.rate, "0 to 1", 2e-3)
        require(
            0.0 < self.rate_final <= 1.0, "shape.rate_final", self.rate_final, "above 0, to 1", 0.1
        )
        require(0.0 <= self.smooth <= 1e4, "shape.smooth", self.smooth, "0 to 10000", 5.0)


@dataclass(frozen=True, kw_only=True)
class TexturedConfig:
    """A mesh whose texture is trained, and its shape where :attr:`shape` says so."""

    kind: Literal["textured"] = "textured"
    init: MeshInit = field(default_factory=MeshInit)
    size: int = 1024  # texels along a side, where the file has no texture that can be kept
    samples: int = 2  # rays along each axis of a pixel
    # What pictures show: the texture, or the normals in the camera's frame as colours, by which
    # Fantasia3D and the second stage of ProlificDreamer train a shape without a texture.
    picture: Literal["texture", "normals"] = "texture"
    rates: TextureRates = field(default_factory=TextureRates)
    shape: ShapeMoves = field(default_factory=ShapeMoves)

    def __post_init__(self) -> None:
        require(16 <= self.size <= 8192, "size", self.size, "16 to 8192 texels", 1024)
        require(1 <= self.samples <= 8, "samples", self.samples, "1 to 8", 2)
        one_of("picture", self.picture, ("texture", "normals"))
        if self.picture == "normals" and self.shape.rate == 0.0:
            raise ValueError(
                "picture=normals shows the shape, and shape.rate=0 does not train it: write "
                "representation.shape.rate=0.01, or representation.picture=texture"
            )

    def smaller(self) -> list[str]:
        """Settings with which training takes less memory; see
        :class:`~representations.interface.Thrifty`."""
        fewer = ["samples=1"] if self.samples > 1 else []
        return [*fewer, f"size={self.size // 2}"] if self.size >= 512 else fewer

    def training_bytes(self, views: int, resolution: int) -> int:
        """About what training holds when ``views`` square pictures of ``resolution`` pixels are
        drawn at once."""
        # The coarser copies take a third more, once with and once without gradient.
        texels = self.size**2 * (3 * COPIES_IN_TRAINING + 2 * 4 * 4 // 3)
        rays = views * resolution**2 * (PER_SAMPLE * self.samples**2 + PER_PIXEL_AND_VIEW)
        return 4 * (texels + rays)
