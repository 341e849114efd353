# SPDX-License-Identifier: Apache-2.0
"""The verb that puts several shapes into one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError, command

if TYPE_CHECKING:
    from representations.cloud import SplatCloud


def compose(
    shapes: Annotated[
        list[Path], typer.Argument(metavar="SHAPE...", help="runs or splat files, from the left")
    ],
    out: Annotated[Path, typer.Option(help="file to write; its ending says the format")],
    gap: Annotated[float, typer.Option(help="air between neighbours, world units")] = 0.1,
    turn: Annotated[
        str | None,
        typer.Option(metavar="DEGREES", help="about the vertical; one number, or one a shape"),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="FACTORS", help="of the sizes; one, or one a shape")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing --out")] = False,
) -> None:
    """Put shapes of splats beside one another on one floor, into one file."""
    from representations.composing import Placed, side_by_side
    from representations.framing import frame_of

    from ..api import Asset
    from ..config import Config
    from ..splat_files import OpenedSplats

    if out.exists() and (out.is_dir() or not force):
        raise UserError(f"out={out} exists; name a new file, or replace a file with --force")
    turns = _each("turn", turn, 0.0, len(shapes))
    scales = _each("scale", scale, 1.0, len(shapes))
    clouds = [_splats_of(path) for path in shapes]
    try:
        placed = [Placed(*one) for one in zip(clouds, turns, scales, strict=True)]
        whole = side_by_side(placed, gap)
    except ValueError as error:
        raise UserError(str(error)) from None
    config = Config()
    scene = Asset(out, config, None, OpenedSplats(whole, config, (), frame_of(whole)))
    holds = scene.save(out)
    typer.echo(f"{out}  ({holds}, {out.stat().st_size:,} bytes)")
    typer.echo(f"  {command('view', out)}   turns it in the browser")


def _splats_of(path: Path) -> SplatCloud:
    from ..api import open_asset

    asset = open_asset(path)
    for note in asset.notes:
        typer.echo(f"note: {path}: {note}", err=True)
    return asset.cloud


def _each(name: str, given: str | None, usual: float, count: int) -> Sequence[float]:
    """A number for each of ``count`` shapes, from one or as many with commas between them."""
    if given is None:
        return [usual] * count
    try:
        numbers = [float(word) for word in given.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, count):
        example = ",".join(f"{usual + k * (90 if name == 'turn' else 0.5):g}" for k in range(count))
        raise UserError(
            f"{name}={given}: one number, or {count} with commas between them, one for each shape, "
            f"such as --{name} {example}"
        )
    return numbers * count if len(numbers) == 1 else numbers


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(compose)
