# SPDX-License-Identifier: Apache-2.0
"""The verbs for looking: the report of finished runs, and a page that shows a shape live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError, leading
from .files import (
    ActivatedOption,
    Asked,
    CropOption,
    DropBadOption,
    FloatersOption,
    InUpOption,
    LinearOption,
    MostOption,
)

if TYPE_CHECKING:
    from ..watch.progress import Terminal
    from ..watch.viewer import Audience

PORT = 8080

PortOption = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help=f"of the page; default {PORT}, or the next free"),
]


def check_port(view: bool, port: int | None) -> None:
    """A port without a page is a mistake."""
    if port is not None and not view:
        raise UserError(f"--port {port} is the port of the page in the browser: add --view")


def watcher(view: bool, port: int | None) -> Terminal | Audience:
    """What shows a run to a person: the terminal, and with ``view`` a page as well."""
    from ..watch.progress import watcher as terminal

    if not view or not leading():
        return terminal()
    from ..watch.viewer import Audience

    return Audience(terminal(), port or PORT)


@contextmanager
def told() -> Iterator[None]:
    """Whatever takes long inside says how far it is, in the process that talks to people."""
    from representations import telling

    from ..watch import line

    with telling.listening(line.standard() if leading() else None):
        yield


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="folders that 'generate' made")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="page to write; default report.html in the run, comparison-<n>.html beside several"
        ),
    ] = None,
) -> None:
    """Write the report of a run again, or one page that compares several."""
    from ..pages.run import write

    path = write(runs, out)
    typer.echo(f"{path}  ({path.stat().st_size:,} bytes)")


def view(
    shown: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="folder of a run, or a file of splats")
    ],
    port: PortOption = None,
    in_up: InUpOption = None,
    activated: ActivatedOption = False,
    drop_bad: DropBadOption = False,
    linear_colours: LinearOption = False,
    crop: CropOption = None,
    drop_floaters: FloatersOption = False,
    max_splats: MostOption = None,
) -> None:
    """Show a shape on a page in the browser, from wherever you stand (extra 'viewer')."""
    from ..watch.viewer import view as show

    asked = Asked(in_up, activated, drop_bad, linear_colours, crop, drop_floaters, max_splats)
    show(shown, port or PORT, typer.echo, asked.reading(shown))


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (report, view):
        app.command()(verb)
