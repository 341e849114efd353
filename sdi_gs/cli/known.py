# SPDX-License-Identifier: Apache-2.0
"""The verbs that say what there is: words, presets, settings."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from ..errors import UserError, command
from .arguments import ASSIGNMENT


def greeting() -> str:
    """What somebody sees who types the name of the program alone."""
    run = "outputs/a-red-mug-1"
    first = (
        (command("generate", "a red mug"), "splats, a film, a page: in minutes"),
        (command("view", run), "turn it in the browser"),
        (command("export", run, "--format", "glb"), "a mesh"),
    )
    more = (
        (command("words"), "what the model in the package knows"),
        (command("config", "list"), "other models and methods"),
        (command("doctor"), "what this machine can run"),
        (command("--help"), "every command"),
    )
    width = max(len(typed) for typed, _ in (*first, *more)) + 4
    lines = [[f"  {typed:<{width}}{what}" for typed, what in part] for part in (first, more)]
    return "\n".join(
        ["From a sentence to a 3D asset, on this machine, with nothing to download:", "",
         *lines[0], "", *lines[1]]
    )  # fmt: skip


def words() -> None:
    """What mini, the model that ships with the package, knows."""
    from ..mini import colors, kinds

    typer.echo(wrapped("objects", ", ".join(kinds()), 9))
    typer.echo(wrapped("colours", ", ".join(colors()), 9))
    typer.echo(
        '\nA sentence names one of each, as in "a red mug". Any sentence at all needs a larger'
    )
    typer.echo("model: sdi-gs config list")


def wrapped(name: str, text: str, width: int) -> str:
    """``name`` in a column of ``width``, and ``text`` beside it, as wide as the terminal."""
    columns = max(40, min(120, shutil.get_terminal_size().columns))
    return textwrap.fill(
        text, columns, initial_indent=f"{name:<{width}}", subsequent_indent=" " * width,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


config_app = typer.Typer(help="Presets and settings.", no_args_is_help=True, rich_markup_mode=None)


@config_app.command("list")
def config_list() -> None:
    """The presets and why each exists; then the methods that --guidance names."""
    from ..config import guidances, presets

    found = {"--config": presets(), "--guidance": guidances()}
    width = max(len(name) for entries in found.values() for name in entries) + 4
    for option, entries in found.items():
        typer.echo(f"{option} NAME")
        for name, reason in entries.items():
            typer.echo(wrapped(f"  {name}", reason, width))


@config_app.command("show")
def config_show(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME] [KEY=VALUE]...", help="preset or file, then settings"),
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="method instead of the preset's own; see 'config list'")
    ] = None,
) -> None:
    """Every setting with its value, as the YAML that --config reads."""
    from ..config import dump, load

    names = [word for word in words or [] if not ASSIGNMENT.match(word)]
    if len(names) > 1:
        raise UserError(f"one preset at a time, got: {', '.join(names)}")
    settings = [word for word in words or [] if ASSIGNMENT.match(word)]
    typer.echo(dump(load(names[0] if names else None, settings, guidance)), nl=False)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(words)
    app.add_typer(config_app, name="config")
