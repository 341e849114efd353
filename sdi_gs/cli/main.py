# SPDX-License-Identifier: Apache-2.0
"""The verbs. Everything heavy is imported inside the verb that needs it, so help is instant."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RunFailure, UserError, command, leading
from ..stopping import stopping
from . import evaluate, known, studies, sweep, watch
from .arguments import (
    DEFAULT_PRESET,
    ActivatedOption,
    DegreeOption,
    DropBadOption,
    FacesOption,
    FormatOption,
    HeightOption,
    InUpOption,
    MesherOption,
    OpacityOption,
    PivotOption,
    RecentreOption,
    RefineOption,
    ResolutionOption,
    ScaleOption,
    TextureOption,
    ThresholdOption,
    UpOption,
    init_settings,
    reading,
    split_words,
    with_init,
)
from .codes import STOPPED, for_parent, unexpected

if TYPE_CHECKING:
    from ..api import Asset
    from ..artefacts.run_folder import RunFolder
    from ..config import Config
    from ..meshes import MeshOptions

app = typer.Typer(
    name="sdi-gs",
    help="From a sentence to a 3D asset by Score Distillation via Inversion.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="folder that 'generate' made")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sdi-gs {version('sdi-gs')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print and exit")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="show tracebacks; may stand anywhere")
    ] = False,
) -> None:
    """From a sentence to a 3D asset by Score Distillation via Inversion."""
    if context.invoked_subcommand is None:
        typer.echo(known.greeting())


@app.command()
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT [KEY=VALUE]...",
            help="a sentence in quotes, then settings such as batch=2 noise.kind=random",
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(help="preset name or YAML file; a run's config.yaml replays that run"),
    ] = DEFAULT_PRESET,
    guidance: Annotated[
        str | None,
        typer.Option(help="method instead of the preset's own, such as sds, ism, csd"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything random")] = None,
    steps: Annotated[int | None, typer.Option(help="optimisation steps")] = None,
    out: Annotated[
        Path | None, typer.Option(help="new folder for the run; default outputs/<prompt>-<n>")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="start from a file of splats, or from a mesh (.obj .glb .stl .off); with "
            "representation=textured train the texture of that mesh"
        ),
    ] = None,
    in_up: InUpOption = None,
    activated: ActivatedOption = False,
    drop_bad: DropBadOption = False,
    view: Annotated[
        bool, typer.Option("--view", help="show the run on a page in the browser (extra 'viewer')")
    ] = False,
    port: watch.PortOption = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="log the curves for it too (extra 'tensorboard')")
    ] = False,
) -> None:
    """Make a 3D asset from a sentence."""
    prompt, settings = split_words(words or [])
    if tensorboard:
        settings.append("output.tensorboard=true")
    settings = with_init(settings, init_settings(init, in_up, activated, drop_bad, settings))
    watch.check_port(view, port)

    from ..api import configure

    chosen = configure(prompt, config, guidance=guidance, seed=seed, steps=steps, settings=settings)

    from .. import run

    watching = watch.watcher(view, port)
    try:
        finished = run.generate(chosen, out, watching)
        if finished is not None:
            _print_results(finished, chosen)
            watching.linger()
    finally:
        watching.end()


@app.command()
def resume(run: RunArgument) -> None:
    """Continue a run that was stopped, to the same result as without the stop."""
    from .. import run as runs

    view = watch.watcher(False, None)
    try:
        finished = runs.resume(run, view)
    finally:
        view.end()
    if finished is not None:
        _print_results(finished, finished.config())


@app.command()
def render(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="folder of a run, or a file of splats")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="folder for the pictures; default the run, or beside a file"),
    ] = None,
    film: Annotated[str | None, typer.Option("--format", help="mp4 or gif")] = None,
    frames: Annotated[int | None, typer.Option(help="of the turntable")] = None,
    size: Annotated[int | None, typer.Option(help="pixels, square")] = None,
    elevation: Annotated[float | None, typer.Option(help="degrees above the horizon")] = None,
    stills: Annotated[int, typer.Option(help="single pictures all around, as .png")] = 0,
    in_up: InUpOption = None,
    activated: ActivatedOption = False,
    drop_bad: DropBadOption = False,
) -> None:
    """Draw the shape of a run or of a file: a turntable film, a contact sheet, stills."""
    given = {"format": film, "frames": frames, "size": size, "elevation_deg": elevation}

    from ..look import redraw

    asset = _opened(run, in_up, activated, drop_bad)
    target = out or (run if run.is_dir() else run.with_name(f"{run.stem}-pictures"))
    asked: dict[str, object] = {n: value for n, value in given.items() if value is not None}
    for path in redraw(asset.config, asset.stage, target, asked, stills):
        typer.echo(path)


def _opened(path: Path, in_up: str | None, activated: bool, drop_bad: bool) -> Asset:
    """A run or a file of splats; what is noticed while reading is said."""
    how = reading(path, in_up, activated, drop_bad)
    from ..api import open_asset

    asset = open_asset(path, how)
    for note in asset.notes:
        typer.echo(f"note: {path}: {note}", err=True)
    return asset


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="folder that 'generate' made, or a splat file")
    ],
    kind: FormatOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="file to write; default final.<format> in the run, export.<format> with "
            "an option about splats; of a file its neighbour"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing --out")] = False,
    sh_degree: DegreeOption = None,
    up: UpOption = None,
    min_opacity: OpacityOption = None,
    scale: ScaleOption = None,
    recentre: RecentreOption = False,
    resolution: ResolutionOption = 128,
    threshold: ThresholdOption = None,
    mesher: MesherOption = "default",
    texture: TextureOption = None,
    faces: FacesOption = None,
    height: HeightOption = None,
    pivot: PivotOption = None,
    refine: RefineOption = None,
    in_up: InUpOption = None,
    activated: ActivatedOption = False,
    drop_bad: DropBadOption = False,
) -> None:
    """Write the shape of a run, or the splats of a file, for other programs."""
    from .. import assets
    from ..errors import nearest

    if kind is not None and kind not in assets.FORMATS:
        raise UserError(f"kind={kind}: {nearest(kind, assets.FORMATS)}")
    options = assets.MeshOptions(resolution, threshold, mesher, "", texture, faces, height, pivot)
    splats = assets.SplatOptions(up, sh_degree, min_opacity, scale, recentre)
    if kind is not None:
        splats.check(kind)
    if out is not None and out.exists() and (out.is_dir() or not force):
        raise UserError(f"--out {out} exists; name a new file, or replace a file with --force")
    if run.is_file() and kind is None:
        raise UserError(f"{run} is a file: say what to make of it, for example --format spz")
    if kind is not None and out is not None:
        assets.require_ending(out, kind)
    asset = _opened(run, in_up, activated, drop_bad)
    kind = kind or assets.final_format(asset.renderer)
    splats.check(kind)
    path = out if out is not None else assets.default_path(run, kind, splats)
    if not force and (out is not None or run.is_file()):
        assets.require_room(path, kind, texture is not None or refine is not None)
    if refine is not None:
        assets.check_refine(refine, kind)
        asset, options = _refined(run, refine, options)
    holds = asset.save(path, kind, mesh=options, splats=splats)
    typer.echo(f"{path}  ({holds}, {path.stat().st_size:,} bytes)")


def _refined(run: Path, steps: int, options: MeshOptions) -> tuple[Asset, MeshOptions]:
    """The shape of ``run`` as a mesh with a trained texture, and how it is written."""
    from dataclasses import replace

    from ..api import open_asset
    from ..texture_stage import refine

    view = watch.watcher(False, None)
    try:
        made = refine(run, steps, options, view)
    finally:
        view.end()
    if made is None:
        raise typer.Exit()  # another process has the run
    return open_asset(made.path), replace(options, texture=None, faces=None)


@app.command()
def convert(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="what to make of it: gaussians")] = "gaussians",
    out: Annotated[
        Path | None, typer.Option(help="new folder; default 'gaussians' inside the run")
    ] = None,
    splats: Annotated[int, typer.Option(help="how many")] = 8000,
    steps: Annotated[int, typer.Option(help="of the fit to the run's own pictures")] = 400,
) -> None:
    """Make splats of a radiance field, for splat viewers."""
    from ..convert import TARGETS, ConvertOptions
    from ..convert import convert as make
    from ..errors import nearest

    if to not in TARGETS:
        raise UserError(f"--to {to}: {nearest(to, TARGETS)}")
    made, psnr = make(run, out, ConvertOptions(splats=splats, steps=steps), typer.echo)
    for path in made.finals():
        typer.echo(f"{path}  ({path.stat().st_size:,} bytes)")
    typer.echo(f"PSNR between the two, 8 views: {psnr:.2f} dB; see {made.preview_png}")


@app.command()
def doctor(
    build: Annotated[
        bool,
        typer.Option(
            "--build", help="Compile CUDA kernels (gsplat, nerfacc if installed) now; minutes."
        ),
    ] = False,
) -> None:
    """What this machine can run, and why not the rest."""
    from ..doctor import compile_kernels, examine

    if build:
        compile_kernels(typer.echo)
        return
    if not examine(typer.echo):
        raise typer.Exit(1)


for room in (studies, watch, evaluate, sweep, known):
    room.register(app)


def _print_results(run: RunFolder, config: Config) -> None:
    typer.echo("")
    for path in run.finals():
        typer.echo(f"  asset      {path}")
    typer.echo(f"  turntable  {run.turntable(config.output.turntable.format)}")
    typer.echo(f"  preview    {run.preview_png}")
    if run.report_file.exists():
        typer.echo(f"  report     {run.report_file}")
    typer.echo(f"  replay     {command('generate', '--config', run.config_file)}")


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit code. One message on stderr for whatever goes wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Wanted after a failure, when the command is at hand in the shell's history: anywhere will do.
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        with stopping() as stop:
            code = app(arguments, standalone_mode=False)
        if not stop.asked():  # typer makes an exit code of a stop
            return code if isinstance(code, int) else 0
        code, message = 128 + stop.why, STOPPED
    except KeyboardInterrupt:
        code, message = 128 + stop.why, STOPPED
    except BrokenPipeError:
        # The reader of our output has left, as 'head' does; nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, RunFailure) as error:
        code, message = for_parent(error, error.exit_code), str(error)
        if debug:
            raise
    except Exception as error:
        code, message = unexpected(error)
        code = for_parent(error, code)
        if debug and code == 1:
            raise
    if leading():
        with contextlib.suppress(OSError):  # the terminal is gone, and the code still counts
            typer.echo(f"sdi-gs: {as_flags(message, arguments)}", err=True)
    return code


def as_flags(message: str, arguments: list[str]) -> str:
    """A message that names options as Python does (``sh_degree=9``), as the command line writes
    them (``--sh-degree 9``): those of the verb that was typed."""
    command: Any = typer.main.get_command(app)
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    for parameter in command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        if flags:
            name = re.escape(parameter.name)
            message = re.sub(rf"(?<![\w.'\"-]){name}=(?=[^\s;,])", f"{flags[0]} ", message)
    return message


if __name__ == "__main__":
    sys.exit(main())
