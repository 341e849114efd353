# SPDX-License-Identifier: Apache-2.0
"""The verbs for many runs: plan, run, work, status, retry, stop, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RunFailure, command
from .arguments import ClipOption

app = typer.Typer(
    help="Many runs: plan them once, work through them anywhere.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CLEAR = "\033[H\033[J"
"""What empties a terminal."""

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="folder that 'sweep plan' made")]


@app.command()
def plan(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPTS [KEY=VALUE | KEY=A,B,C]...",
            help="a file with a sentence a line, a .yaml that says all, 'paper' for the paper's 43 "
            "sentences, or one sentence; then settings, several values of one to try all",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the sweep; an earlier plan's is added to")],
    methods: Annotated[str | None, typer.Option(help="comma-separated; default sdi")] = None,
    representations: Annotated[
        str | None, typer.Option(help="comma-separated: gaussians, instant_ngp, or presets")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="how many (3: 0, 1, 2), a list (4,8) or a range (10-19)")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="presets of mini, or of sdi for a card")
    ] = None,
    tries: Annotated[int | None, typer.Option(help="crashes until a run has failed")] = None,
    card_gib: Annotated[
        float | None, typer.Option(help="free memory of the cards, to refuse what does not fit")
    ] = None,
) -> None:
    """Write the manifest of a sweep: a line for each run. Nothing is started."""
    from ..sweep import estimate, plan
    from ..sweep import words as reading

    wanted = reading.read(
        words,
        reading.Given(methods, representations, seeds, family, tries, card_gib),
    )
    done = plan.write(wanted, out)
    for note in done.notes:
        typer.echo(f"note: {note}")
    typer.echo(estimate.text(done))
    typer.echo(f"  {command('sweep', 'run', out)}")


@app.command()
def run(
    folder: Folder,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="of the engine alone, as in partition=gpu time=4:00:00"
        ),
    ] = None,
    on: Annotated[
        str, typer.Option(help="engine that starts the workers: local, slurm, ray")
    ] = "local",
    jobs: Annotated[int | None, typer.Option(help="runs at once")] = None,
    cores: Annotated[int | None, typer.Option(help="of each run; default 1, or a share")] = None,
    cards: Annotated[bool, typer.Option(help="use cards where there are some")] = True,
) -> None:
    """Work through a sweep to its end. The same command goes on where it was stopped."""
    from ..sweep import status
    from ..sweep.engines import Options, engine, pairs
    from ..sweep.manifest import open_sweep

    sweep = open_sweep(folder)
    engine(on)(sweep, Options(jobs, cores, cards, pairs(settings or ())), typer.echo)
    seen = status.standing(sweep)
    typer.echo("\n" + status.text(sweep, seen))
    if not seen.whole:
        raise RunFailure(
            f"{len(seen.manifest.lines) - seen.results:,} of {len(seen.manifest.lines):,} runs "
            "have no result; the table above says why"
        )


@app.command()
def work(
    folder: Folder,
    index: Annotated[
        int | None,
        typer.Option(help="this line alone, from 0: $SLURM_ARRAY_TASK_ID, $JOB_COMPLETION_INDEX"),
    ] = None,
    of: Annotated[
        int | None, typer.Option(help="with --index: every so-many-th line from there")
    ] = None,
) -> None:
    """Be a worker: claim a run, make it, and the next, until none is left; one at a time."""
    from ..sweep.manifest import open_sweep
    from ..sweep.pool import serve

    serve(open_sweep(folder), index, of, typer.echo)


@app.command()
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="again and again, until all is done")] = (
        False
    ),
    every: Annotated[float, typer.Option(help="seconds, with --watch")] = 5.0,
) -> None:
    """What is done, what runs and how long it still takes, what failed and why."""
    from ..sweep import status
    from ..sweep.manifest import open_sweep

    sweep = open_sweep(folder)
    if not watch:
        typer.echo(status.text(sweep, status.standing(sweep)))
        return

    def show(told: str) -> None:
        typer.echo(f"{CLEAR}{told}" if sys.stdout.isatty() else f"{told}\n")

    status.watch(sweep, show, max(0.2, every))


@app.command()
def retry(
    folder: Folder,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="of runs; default all")
    ] = None,
) -> None:
    """Have what failed tried again, and finished runs whose folder is gone."""
    from ..sweep import status
    from ..sweep.manifest import open_sweep

    done = status.retry(open_sweep(folder), names or ())
    typer.echo(
        f"{done.failed:,} that failed and {done.gone:,} whose folder is gone are tried again by "
        f"the next worker: {command('sweep', 'run', folder)}"
    )


@app.command()
def stop(
    folder: Folder,
    lift: Annotated[bool, typer.Option("--lift", help="let workers go on again")] = False,
) -> None:
    """Have every worker of a sweep save its runs, put them back and leave, on all machines."""
    from ..sweep import status
    from ..sweep.manifest import open_sweep

    typer.echo(status.stop(open_sweep(folder), lift))


@app.command()
def report(folder: Folder, clip: ClipOption = None) -> None:
    """Everything on one page that opens without a network, and a file with a line a run."""
    from ..sweep import report
    from ..sweep.manifest import open_sweep

    made = report.write(open_sweep(folder), clip, typer.echo)
    for note in made.notes:
        typer.echo(f"note: {note}")
    for path in (made.page, *made.files):
        typer.echo(path)


def register(parent: typer.Typer) -> None:
    """Add the verbs to the command line."""
    parent.add_typer(app, name="sweep")
