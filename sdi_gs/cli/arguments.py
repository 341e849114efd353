# SPDX-License-Identifier: Apache-2.0
"""What the words behind a verb mean: a sentence, settings, a file to start from."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, command

DEFAULT_PRESET = "mini"  # the one that works everywhere, without a download

ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*=")

Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. batch=2")
]


# What 'export' takes about splats.
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="splats: ply, ply-compressed, splat, spz, sog, ksplat, gltf-splats, usdz, usdc, usda, "
        "html (a page that shows them); triangles: glb, obj, mesh-ply",
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


ScaleOption = Annotated[
    float | None, typer.Option("--scale", help="splats: multiplies every length, e.g. 0.1")
]
RecentreOption = Annotated[
    bool, typer.Option("--recentre", help="splats: move the middle of the shape to the origin")
]


SpzOption = Annotated[
    int | None, typer.Option("--spz-version", help="spz: 3 (the default) or 4, which is smaller")
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
RefineShapeOption = Annotated[
    bool,
    typer.Option(
        "--refine-shape", help="with --refine: train the corners of the triangles as well"
    ),
]


# What studies of many runs take.
StudyOut = Annotated[
    Path | None, typer.Option(help="folder; one that holds part of the same study is gone on with")
]
WideOption = Annotated[
    bool, typer.Option("--wide", help="every column of the table, however narrow the terminal")
]
ClipOption = Annotated[
    str | None, typer.Option(help="CLIP folder or id that judges; default mini's own, for mini")
]


def _require_setting(first: list[str]) -> None:
    """UserError for a first word that is a sentence with an equals sign, and no setting nor near
    one."""
    from ..config import Config

    for word in first:
        section = word.partition("=")[0].partition(".")[0]
        known = list(Config.model_fields)
        if section not in known and not difflib.get_close_matches(section, known, n=1):
            raise UserError(
                f"{word!r} looks like a setting, and none is called {section!r}: if it is the "
                f"sentence, write {command('generate', f'prompt={word}')}"
            )


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The prompt (None when there is none) and the settings. Only a first word can be a prompt;
    one that looks like a setting is written as prompt='e=mc2'."""
    if not words or ASSIGNMENT.match(words[0]):
        _require_setting(words[:1])
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
