# SPDX-License-Identifier: Apache-2.0
"""Which splats go into a file, in which of the formats, and who writes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from representations.interface import Say

from .errors import UserError, nearest

if TYPE_CHECKING:
    from representations.cloud import SplatCloud
    from representations.cutting import Cut
    from representations.export import Layout

UPS = ("viewer", "y", "z")
USD_FORMATS = ("usdz", "usdc", "usda")
SPLAT_FORMATS = (
    "ply", "ply-compressed", "splat", "spz", "sog", "ksplat", "gltf-splats", *USD_FORMATS, "html",
)  # fmt: skip


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
        if kind not in SPLAT_FORMATS and given:
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


def write_splats(cloud: SplatCloud, path: Path, kind: str, splats: SplatOptions, say: Say) -> int:
    """Write the file; how many splats it holds. ``say`` is told what the format cuts, and which of
    two tools wrote it."""
    from representations.export import forge, packed, playcanvas, usd, write_ply, write_splat
    from representations.export.gltf_splats import write_gltf_splats
    from representations.export.ksplat import write_ksplat

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
            return write_ksplat(path, cloud, layout, say)
        case "sog" if not playcanvas.found() and forge.installed():
            return forge.write_by_gaussforge(path, cloud, layout, say)
        case _:
            count = playcanvas.write_by_splat_transform(path, cloud, kind, layout)
            say("written by splat-transform")
            return count
