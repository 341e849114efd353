# SPDX-License-Identifier: Apache-2.0
"""What the words behind a verb mean: a sentence, settings, a file to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError, command, nearest

if TYPE_CHECKING:
    from representations.reading import Reading

UPS = ("viewer", "y", "z")

DEFAULT_PRESET = "mini"  # the one that works everywhere, without a download

TEXTURED_WORDS = frozenset({"representation=textured", "representation.kind=textured"})

ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*=")

Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. batch=2")
]


# What 'export' takes about splats.
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="splats: ply, ply-compressed, splat, spz, sog, html (a page that shows them); "
        "triangles: glb, obj, mesh-ply",
    ),
]
DegreeOption = Annotated[
    int | None,
    typer.Option(help="splats: view-dependent colour of degree 0 to 3; default as trained"),
]
UpOption = Annotated[
    str | None,
    typer.Option(
        help="splats: viewer (y down, upright in splat viewers; the default), y (y up, front +z, "
        "like the .glb), z (z up, front +x)"
    ),
]
OpacityOption = Annotated[
    float | None, typer.Option(help="splats: leave out those below; 0 to 1, default 1/255")
]


# How a file is understood where it does not say so itself.
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


ScaleOption = Annotated[
    float | None, typer.Option("--scale", help="splats: multiplies every length, e.g. 0.1")
]
RecentreOption = Annotated[
    bool, typer.Option("--recentre", help="splats: move the middle of the shape to the origin")
]


# What 'export' takes about triangles.
ResolutionOption = Annotated[
    int, typer.Option(help="triangles: lattice points along an axis of the cube")
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="triangles of a field: density of the surface; default measured"),
]
MesherOption = Annotated[
    str, typer.Option(help="triangles: default, or open3d (extra 'open3d') for depth fusion")
]
TextureOption = Annotated[
    int | None,
    typer.Option(
        help="triangles: a texture of so many texels along a side, such as 1024, instead of "
        "colours at the vertices (extra 'mesh')"
    ),
]
FacesOption = Annotated[
    int | None,
    typer.Option(
        help="triangles: at most so many (extra 'mesh'); default all, with --texture 10000"
    ),
]
HeightOption = Annotated[
    float | None, typer.Option(help="triangles: metres from the lowest to the highest")
]
PivotOption = Annotated[
    str | None,
    typer.Option(help="triangles: origin at ground (y=0 below the lowest) or centre"),
]

RefineOption = Annotated[
    int | None,
    typer.Option(
        help="triangles: train the texture for so many steps with the run's own model and prompt"
    ),
]


# What studies of many runs take.
StudyOut = Annotated[
    Path | None, typer.Option(help="folder; one that holds part of the same study is gone on with")
]
ClipOption = Annotated[
    str | None, typer.Option(help="CLIP folder or id that judges; default mini's own, for mini")
]


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The prompt (None when there is none) and the settings. Only a first word can be a prompt;
    one that looks like a setting is written as prompt='e=mc2'."""
    if not words or ASSIGNMENT.match(words[0]):
        prompt, rest = None, words
    else:
        prompt, rest = words[0], words[1:]
    for word in rest:
        if not ASSIGNMENT.match(word):
            told = " ".join([prompt or "", *rest]).strip()
            raise UserError(
                f"{word!r} is neither the prompt nor a setting: put the whole sentence in quotes, "
                f"as in {command('generate', told)}, and write settings as key=value"
            )
    return prompt, list(rest)


def typed(in_up: str | None, activated: bool, drop_bad: bool) -> list[str]:
    """The options about reading that were given, as they are typed."""
    if in_up is not None and in_up not in UPS:
        raise UserError(f"--in-up {in_up}: {nearest(in_up, UPS)}")
    flags = {"--activated": activated, "--drop-bad": drop_bad}
    up = [] if in_up is None else [f"--in-up {in_up}"]
    return up + [flag for flag, given in flags.items() if given]


def reading(path: Path, in_up: str | None, activated: bool, drop_bad: bool) -> Reading | None:
    """How a file of splats is read; None for the folder of a run, which needs no telling."""
    given = typed(in_up, activated, drop_bad)
    if path.is_dir():
        if given:
            raise UserError(f"{given[0]} is for a file, and {path} is a folder: leave it out")
        return None
    from representations.reading import Reading

    return Reading(up=in_up, activated=activated, drop_bad=drop_bad)


def with_init(settings: list[str], init: list[str]) -> list[str]:
    """What --init stands for, ahead of the settings that were typed. Where it names the
    representation itself, the word for that is not given twice: the second would undo the first."""
    named = TEXTURED_WORDS.intersection(init)
    return [*init, *(word for word in settings if not (named and word in TEXTURED_WORDS))]


def init_settings(
    path: Path | None,
    in_up: str | None = None,
    activated: bool = False,
    drop_bad: bool = False,
    settings: list[str] | None = None,
) -> list[str]:
    """What --init FILE stands for, with the options about reading, ahead of ``settings``. The path
    is made absolute, so that the run's config replays from anywhere."""
    given = typed(in_up, activated, drop_bad)
    if path is None:
        if given:
            raise UserError(f"{given[0]} is for the file of --init: add --init FILE")
        return []
    if not path.exists():
        raise UserError(f"--init {path} does not exist")
    textured = TEXTURED_WORDS.intersection(settings or [])
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
    if textured:
        if splats or activated or drop_bad:
            raise UserError(
                f"--init {path} with representation=textured is read as a mesh: give "
                "one, without options about splats"
            )
        given_up = [] if in_up is None else [f"representation.init.up={in_up}"]
        return ["representation=textured", f"representation.init.path={path.resolve()}", *given_up]
    if not splats and (activated or drop_bad):
        raise UserError(
            f"{given[-1]} is for a file of splats, and --init {path} is read as a mesh or points"
        )
    settings = [
        f"representation.init.kind={'splats' if splats else 'points'}",
        f"representation.init.path={path.resolve()}",
    ]
    settings += [] if in_up is None else [f"representation.init.up={in_up}"]
    flags = {"activated": activated, "drop_bad": drop_bad}
    return settings + [f"representation.init.{n}=true" for n, given in flags.items() if given]
