# SPDX-License-Identifier: Apache-2.0
"""What the settings of a representation say of a file that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .checks import one_of, require
from .cutting import Cut

FileUp = Literal["auto", "viewer", "y", "z"]


@dataclass(frozen=True, kw_only=True)
class StartFile:
    """A file of splats, or a mesh or point cloud file, and how it is understood."""

    kind: str = ""  # a start without a file, points (mesh or cloud) | splats (a file of them)
    path: str = ""  # the file of "points" and "splats"
    up: FileUp = "auto"  # axis up in the file; auto: as the file or its format says
    activated: bool = False  # "splats": a .ply of scales and opacities, not their logs and logits
    drop_bad: bool = False  # "splats": leave rows out that cannot be drawn
    linear_colours: bool = False  # "splats": colours are linear light
    crop: tuple[float, ...] | None = None  # "splats": a ball or a box; see representations.cutting
    drop_floaters: bool = False  # "splats": leave small groups out that touch no others
    max_splats: int | None = None  # "splats": only so many, the most important

    def require_file(self, fileless: str) -> None:
        """ValueError for what no file can be asked, or where one is missing; the kind ``fileless``
        needs none."""
        one_of("init.up", self.up, get_args(FileUp))
        if self.kind != fileless:
            require(
                bool(self.path), "init.path", self.path, f'a file for kind "{self.kind}"', "a.ply"
            )
        self.cut()

    def cut(self) -> Cut:
        """What of a file of splats is kept. ValueError for what cannot be."""
        return Cut(crop=self.crop, floaters=not self.drop_floaters, max_splats=self.max_splats)
