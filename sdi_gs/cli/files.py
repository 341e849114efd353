# SPDX-License-Identifier: Apache-2.0
"""What is said of a file that is read: how it is understood, and what of it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError, command, nearest

if TYPE_CHECKING:
    from representations.cutting import Cut
    from representations.reading import Reading

UPS = ("viewer", "y", "z")

TEXTURED_WORDS = frozenset({"representation=textured", "representation.kind=textured"})

InUpOption = Annotated[
    str | None,
    typer.Option(
        "--in-up",
        help="a file's axis up: viewer (y down), y (y up, front +z) or z (z up, front +x); default "
        "what the file or its format says",
    ),
]
ActivatedOption = Annotated[
    bool,
    typer.Option("--activated", help="a .ply file holds scales and opacities, not logs and logits"),
]
DropBadOption = Annotated[
    bool,
    typer.Option("--drop-bad", help="leave out a file's splats with NaN, infinity, no rotation"),
]
LinearOption = Annotated[
    bool,
    typer.Option("--linear-colours", help="a file's colours are linear light, not a screen's"),
]
CropOption = Annotated[
    str | None,
    typer.Option(
        "--crop",
        metavar="NUMBERS",
        help="keep splats in a ball (R around the middle; X,Y,Z,R) or a box (two corners); z up",
    ),
]
FloatersOption = Annotated[
    bool,
    typer.Option("--drop-floaters", help="leave out small groups of splats that touch no others"),
]
MostOption = Annotated[
    int | None,
    typer.Option("--max-splats", help="keep so many, the most important by opacity times area"),
]


@dataclass(frozen=True)
class Asked:
    """The options, as they were given."""

    in_up: str | None = None
    activated: bool = False
    drop_bad: bool = False
    linear_colours: bool = False
    crop: str | None = None
    drop_floaters: bool = False
    max_splats: int | None = None

    def of_reading(self) -> list[str]:
        """What only a file can be asked, as it is typed."""
        if self.in_up is not None and self.in_up not in UPS:
            raise UserError(f"--in-up {self.in_up}: {nearest(self.in_up, UPS)}")
        flags = {
            "--activated": self.activated, "--drop-bad": self.drop_bad,
            "--linear-colours": self.linear_colours,
        }  # fmt: skip
        up = [] if self.in_up is None else [f"--in-up {self.in_up}"]
        return up + [flag for flag, given in flags.items() if given]

    def of_cutting(self) -> list[str]:
        """What any splats can be asked, as it is typed."""
        crop = [] if self.crop is None else [f"--crop={self.crop}"]
        most = [] if self.max_splats is None else [f"--max-splats {self.max_splats}"]
        return [*crop, *(["--drop-floaters"] if self.drop_floaters else []), *most]

    def typed(self) -> list[str]:
        return [*self.of_reading(), *self.of_cutting()]

    def numbers(self) -> tuple[float, ...] | None:
        """Of --crop."""
        if self.crop is None:
            return None
        try:
            return tuple(float(word) for word in self.crop.split(","))
        except ValueError:
            raise UserError(
                f"--crop={self.crop}: numbers with commas between them are needed, such as "
                "--crop=0.5 (a radius around the middle), --crop=0,0,1,0.5 (a point and a radius) "
                "or --crop=-1,-1,0,1,1,2 (two corners of a box)"
            ) from None

    def cut(self) -> Cut:
        """What of the splats is kept."""
        from representations.cutting import Cut

        try:
            return Cut(
                crop=self.numbers(), floaters=not self.drop_floaters, max_splats=self.max_splats
            )
        except ValueError as error:
            raise UserError(str(error)) from None

    def reading(self, path: Path, cuts: bool = False) -> Reading | None:
        """How a file of splats is read; None for the folder of a run, which needs no telling.
        ``cuts``: the verb leaves splats of a run out too."""
        given = self.of_reading() + ([] if cuts else self.of_cutting())
        cut = self.cut()
        if path.is_dir():
            if given:
                raise UserError(f"{given[0]} is for a file, and {path} is a folder: leave it out")
            return None
        from representations.reading import Reading

        return Reading(
            up=self.in_up, activated=self.activated, drop_bad=self.drop_bad,
            linear_colours=self.linear_colours, cut=cut,
        )  # fmt: skip

    def init_settings(self, path: Path | None, settings: Sequence[str] = ()) -> list[str]:
        """What --init FILE stands for ahead of ``settings``, with the options about it. The path is
        made absolute, so that the run's config replays from anywhere."""
        given, cut = self.typed(), self.cut()
        if path is None:
            if given:
                raise UserError(f"{given[0]} is for the file of --init: add --init FILE")
            return []
        if not path.exists():
            raise UserError(f"--init {path} does not exist")
        textured = bool(TEXTURED_WORDS.intersection(settings))
        if path.is_dir() and textured:
            mesh = command("export", path, "--format", "glb", "--texture", "1024")
            raise UserError(
                f"--init {path} is a folder, and a texture needs a mesh: make one with {mesh}, and "
                f"write --init {path / 'final.glb'}"
            )
        if not path.is_file():
            raise UserError(f"--init {path} is not a file")
        from representations.reading import holds_splats

        splats = holds_splats(path)
        of_splats = [word for word in given if not word.startswith("--in-up")]
        if textured:
            return self._of_mesh(path, splats or bool(of_splats))
        if not splats and of_splats:
            raise UserError(
                f"{of_splats[-1]} is for a file of splats, and --init {path} is read as a mesh or "
                "points"
            )
        init = "representation.init"
        found = [
            f"{init}.kind={'splats' if splats else 'points'}",
            f"{init}.path={path.resolve()}",
        ]
        found += [] if self.in_up is None else [f"{init}.up={self.in_up}"]
        flags = ("activated", "drop_bad", "linear_colours", "drop_floaters")
        found += [f"{init}.{name}=true" for name in flags if getattr(self, name)]
        found += [] if cut.crop is None else [f"{init}.crop={list(cut.crop)}"]
        most = self.max_splats
        return found + ([] if most is None else [f"{init}.max_splats={most}"])

    def _of_mesh(self, path: Path, about_splats: bool) -> list[str]:
        """What --init FILE stands for where its texture is trained."""
        if about_splats:
            raise UserError(
                f"--init {path} with representation=textured is read as a mesh: give one, without "
                "options about splats"
            )
        up = [] if self.in_up is None else [f"representation.init.up={self.in_up}"]
        return ["representation=textured", f"representation.init.path={path.resolve()}", *up]


def with_init(settings: list[str], init: list[str]) -> list[str]:
    """What --init stands for, ahead of the settings that were typed. Where it names the
    representation itself, the word for that is not given twice: the second would undo the first."""
    named = TEXTURED_WORDS.intersection(init)
    return [*init, *(word for word in settings if not (named and word in TEXTURED_WORDS))]
