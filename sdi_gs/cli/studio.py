# SPDX-License-Identifier: Apache-2.0
"""The verb that serves the studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def studio(
    outputs: Annotated[
        Path, typer.Argument(metavar="OUTPUTS", help="folder of the runs, made where missing")
    ] = Path("outputs"),
    host: Annotated[
        str,
        typer.Option(help="address to serve; any but 127.0.0.1 lets other machines in, unasked"),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="default 7860, or the next that is free"),
    ] = None,
) -> None:
    """Make, watch and compare runs on a page in the browser (extra 'studio')."""
    from ..studio.server import serve

    serve(outputs, host, port, lambda text: typer.echo(text))


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(studio)
