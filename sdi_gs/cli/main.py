# SPDX-License-Identifier: Apache-2.0
"""The verbs. Everything heavy is imported inside the verb that needs it, so help is instant."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RunFailure, UserError, leading
from ..stopping import stopping
from . import evaluate, known, scenes, studies, studio, sweep, watch
from .arguments import (
    DEFAULT_PRESET,
    DegreeOption,
    FacesOption,
    FormatOption,
    HeightOption,
    MesherOption,
    OpacityOption,
    PivotOption,
    RecentreOption,
    RefineOption,
    RefineShapeOption,
    ResolutionOption,
    ScaleOption,
    SpzOption,
    TextureOption,
    ThresholdOption,
    UpOption,
    split_words,
)
from .codes import STOPPED, for_parent, unexpected
from .files import (
    ActivatedOption,
    Asked,
    CropOption,
    DropBadOption,
    FloatersOption,
    InUpOption,
    LinearOption,
    MostOption,
    with_init,
)

if TYPE_CHECKING:
    from representations.reading import Reading

    from ..api import Asset
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
    linear_colours: LinearOption = False,
    crop: CropOption = None,
    drop_floaters: FloatersOption = False,
    max_splats: MostOption = None,
    view: Annotated[
        bool, typer.Option("--view", help="show the run on a page in the browser (extra 'viewer')")
    ] = False,
    port: watch.PortOption = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="log the curves for it too (extra 'tensorboard')")
    ] = False,
) -> None:
    """Make a 3D asset from a sentence."""
    began = time.perf_counter()
    prompt, settings = split_words(words or [])
    if tensorboard:
        settings.append("output.tensorboard=true")
    asked = Asked(in_up, activated, drop_bad, linear_colours, crop, drop_floaters, max_splats)
    settings = with_init(settings, asked.init_settings(init, settings))
    watch.check_port(view, port)

    from ..api import configure

    chosen = configure(prompt, config, guidance=guidance, seed=seed, steps=steps, settings=settings)

    from .. import run
    from ..origin import origin_of
    from . import results

    results.note_few_steps(chosen, config, guidance)

    watching = watch.watcher(view, port)
    try:
        finished = run.generate(chosen, out, watching, origin_of(config, guidance))
        if finished is not None:
            watching.hush()
            results.print_results(finished, chosen, began)
            watching.linger()
    finally:
        watching.end()


@app.command()
def resume(
    run: RunArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="of output, device and threads"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="of the whole run, more than it has: go on beyond its end"),
    ] = None,
) -> None:
    """Continue a stopped run, to the same result as without the stop; or make one longer."""
    for word in settings or []:
        if "=" not in word:
            raise UserError(f"{word!r} is no setting: write key=value, such as device=cpu")
    from .. import run as runs
    from ..going_on import Change
    from . import results

    began, view = time.perf_counter(), watch.watcher(False, None)
    try:
        finished = runs.resume(run, view, Change(steps, settings or ()))
    finally:
        view.end()
    if finished is not None:
        results.print_results(finished, finished.config(), began)


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
    linear_colours: LinearOption = False,
    crop: CropOption = None,
    drop_floaters: FloatersOption = False,
    max_splats: MostOption = None,
) -> None:
    """Draw the shape of a run or of a file: a turntable film, a contact sheet, stills."""
    given = {"format": film, "frames": frames, "size": size, "elevation_deg": elevation}
    asked = Asked(in_up, activated, drop_bad, linear_colours, crop, drop_floaters, max_splats)

    from ..look import redraw

    asset = _opened(run, asked.reading(run))
    target = out or (run if run.is_dir() else run.with_name(f"{run.stem}-pictures"))
    chosen: dict[str, object] = {n: value for n, value in given.items() if value is not None}
    for path in redraw(asset.config, asset.stage, target, chosen, stills):
        typer.echo(path)


def _opened(path: Path, how: Reading | None) -> Asset:
    """A run or a file of splats; what is noticed while reading is said."""
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
    spz_version: SpzOption = None,
    resolution: ResolutionOption = 128,
    threshold: ThresholdOption = None,
    mesher: MesherOption = "default",
    texture: TextureOption = None,
    faces: FacesOption = None,
    height: HeightOption = None,
    pivot: PivotOption = None,
    refine: RefineOption = None,
    refine_shape: RefineShapeOption = False,
    in_up: InUpOption = None,
    activated: ActivatedOption = False,
    drop_bad: DropBadOption = False,
    linear_colours: LinearOption = False,
    crop: CropOption = None,
    drop_floaters: FloatersOption = False,
    max_splats: MostOption = None,
) -> None:
    """Write the shape of a run, or the splats of a file, for other programs."""
    from .. import assets
    from ..errors import nearest

    if kind is not None and kind not in assets.FORMATS:
        raise UserError(f"kind={kind}: {nearest(kind, assets.FORMATS)}")
    options = assets.MeshOptions(resolution, threshold, mesher, "", texture, faces, height, pivot)
    asked = Asked(in_up, activated, drop_bad, linear_colours, crop, drop_floaters, max_splats)
    how = asked.reading(run, cuts=True)
    cuts = asked.of_cutting() if how is None else []  # a file's splats are cut as they are read
    splats = assets.SplatOptions(
        up, sh_degree, min_opacity, scale, recentre, spz_version,
        asked.cut() if cuts else None, tuple(cuts),
    )  # fmt: skip
    if kind is not None:
        splats.check(kind)
    if out is not None and out.exists() and (out.is_dir() or not force):
        raise UserError(f"--out {out} exists; name a new file, or replace a file with --force")
    if run.is_file() and kind is None:
        raise UserError(f"{run} is a file: say what to make of it, for example --format spz")
    if kind is not None and out is not None:
        assets.require_ending(out, kind)
    asset = _opened(run, how)
    kind = kind or assets.final_format(asset.renderer)
    splats.check(kind)
    path = out if out is not None else assets.default_path(run, kind, splats)
    if not force and (out is not None or run.is_file()):
        assets.require_room(path, kind, texture is not None or refine is not None)
    if refine_shape and refine is None:
        raise UserError("--refine-shape trains with --refine: write --refine 100 --refine-shape")
    if refine is not None:
        assets.check_refine(refine, kind)
        asset, options = _refined(run, refine, refine_shape, options)
    if kind in assets.TEXTURE_FORMATS and options.texture is not None and refine is None:
        typer.echo("painting the texture from pictures all around: half a minute or more", err=True)
    holds = asset.save(path, kind, mesh=options, splats=splats)
    typer.echo(f"{path}  ({holds}, {path.stat().st_size:,} bytes)")


def _refined(run: Path, steps: int, shape: bool, options: MeshOptions) -> tuple[Asset, MeshOptions]:
    """The shape of ``run`` as a mesh that was trained on, and how it is written."""
    from dataclasses import replace

    from ..api import open_asset
    from ..texture_stage import refine

    view = watch.watcher(False, None)
    try:
        made = refine(run, steps, options, view, shape)
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


for room in (scenes, studies, watch, studio, evaluate, sweep, known):
    room.register(app)


@cache
def verbs() -> Any:
    """All verbs with their options, made once in a process."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit code. One message on stderr for whatever goes wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Wanted after a failure, when the command is at hand in the shell's history: anywhere will do.
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        with stopping() as stop, watch.told():
            code = verbs()(arguments, standalone_mode=False)
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
    command = verbs()
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
