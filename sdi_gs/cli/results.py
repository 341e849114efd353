# SPDX-License-Identifier: Apache-2.0
"""What is said around a run: that it will be short, and where everything lies afterwards."""

from __future__ import annotations

import shutil
import time

import typer

from ..artefacts.run_folder import RunFolder
from ..config import Config, load
from ..errors import command

FEW = 0.25
"""Share of a preset's steps below which a run is no more than a trial."""


def note_few_steps(chosen: Config, preset: str, guidance: str | None) -> None:
    """Say so where a run has far fewer steps than what it is made of was tuned for."""
    usual = load(preset, guidance=guidance).steps
    if chosen.steps < FEW * usual:
        typer.echo(
            f"note: {chosen.steps} steps, where {preset} takes {usual}: the shape will be a rough "
            "one; leave the steps out for a finished one",
            err=True,
        )


def print_results(run: RunFolder, config: Config, began: float) -> None:
    """The files of a finished run, how long it took since ``began`` (time.perf_counter), and what
    to type next."""
    typer.echo("")
    for path in run.finals():
        typer.echo(f"  asset      {path}")
    typer.echo(f"  turntable  {run.turntable(config.output.turntable.format)}")
    typer.echo(f"  preview    {run.preview_png}")
    if run.report_file.exists():
        typer.echo(f"  report     {run.report_file}")
    typer.echo(f"  replay     {command('generate', '--config', run.config_file)}")
    whole, training = time.perf_counter() - began, run.summary().seconds
    typer.echo(f"  took       {spoken(whole)}; training in all {spoken(training)}")
    typer.echo("")
    following = (
        (command("view", run.path), "turn it in the browser"),
        (command("export", run.path, "--format", "glb"), "a mesh"),
    )
    width = max(len(typed) for typed, _ in following) + 4
    room = shutil.get_terminal_size().columns
    fits = all(2 + width + len(what) <= room for _, what in following)
    for typed, what in following:
        typer.echo(f"  {typed:<{width}}{what}" if fits else f"  {typed}")


def spoken(seconds: float) -> str:
    """As one says a time: "45 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
