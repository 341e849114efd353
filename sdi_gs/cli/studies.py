# SPDX-License-Identifier: Apache-2.0
"""The verbs for questions: comparisons, figures of the paper, pictures instead of shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RunFailure
from .arguments import ASSIGNMENT, ClipOption, Settings, StudyOut, WideOption, split_words

if TYPE_CHECKING:
    from ..experiments.base import Result
    from ..experiments.chains import Variant
    from ..experiments.compare import Plan


def compare(
    prompt: Annotated[str, typer.Argument(help="a sentence in quotes")],
    settings: Settings = None,
    representations: Annotated[
        str, typer.Option(help="comma-separated: gaussians, instant_ngp, or presets")
    ] = "gaussians,instant_ngp",
    guidances: Annotated[str, typer.Option(help="comma-separated: sdi, sds, ism, ...")] = "sdi",
    family: Annotated[str, typer.Option(help="presets of mini, or of sdi for a card")] = "mini",
    seeds: Annotated[int, typer.Option(help="runs of each, with seeds 0, 1, ...")] = 1,
    steps: Annotated[int | None, typer.Option(help="optimisation steps")] = None,
    clip: ClipOption = None,
    out: StudyOut = None,
    wide: WideOption = False,
) -> None:
    """One sentence through several representations and guidances: table and HTML page."""
    from representations.files import write_bytes

    from ..artefacts.claim import free_name
    from ..experiments.compare import Plan
    from ..experiments.compare import compare as run_all
    from ..experiments.compare_page import page, table
    from ..pages.text import room

    plan = Plan(
        prompt, family, _names(representations), _names(guidances), seeds, steps,
        tuple(settings or ()), clip,
    )  # fmt: skip
    folder = out if out is not None else free_name(f"compare {prompt}")
    made = run_all(plan, folder, typer.echo)
    if made.rows:
        typer.echo("\n" + table(made.rows, room(wide)) + "\n")
    for one in made.missing:
        typer.echo(str(one))
    write_bytes(folder / "compare.html", page(plan, made, _machine(), folder).encode())
    for name in ("compare.html", "compare.json"):
        typer.echo(f"  {folder / name}")
    _require_whole(made.lacking())


def _require_whole(lacking: str | None) -> None:
    """A table that lacks runs is shown, and is a failure."""
    if lacking is not None:
        raise RunFailure(lacking)


def _machine() -> str:
    from ..artefacts.run_folder import environment

    hardware = environment()["hardware"]
    return f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores"


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def generate2d(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT [KEY=VALUE]...", help="a sentence, then settings"),
    ] = None,
    config: Annotated[str, typer.Option(help="preset name or YAML file")] = "mini_2d",
    guidance: Annotated[
        str | None, typer.Option(help="ddim, cached, or a method such as sds; default inversion")
    ] = None,
    space: Annotated[str, typer.Option(help="what is optimised: latents or pixels")] = "latents",
    move: Annotated[str, typer.Option(help="adam, or assign: take the target over")] = "adam",
    rate: Annotated[float, typer.Option(help="Adam's learning rate")] = 0.05,
    samples: Annotated[int, typer.Option(help="how many pictures")] = 4,
    steps: Annotated[int | None, typer.Option(help="optimisation steps")] = None,
    out: Annotated[Path | None, typer.Option(help="new folder")] = None,
) -> None:
    """Make pictures by score distillation, or by DDIM to compare."""
    from ..config import load
    from ..experiments.flat import FlatOptions
    from ..experiments.flat import generate as make

    prompt, settings = split_words(words or [])
    if steps is not None:
        settings.append(f"steps={steps}")
    settings.append(f"prompt={prompt or ''}")
    special = guidance in ("ddim", "cached")
    options = FlatOptions(
        method=guidance if special else "distill",  # type: ignore[arg-type]
        space=space, move=move, rate=rate, samples=samples,  # type: ignore[arg-type]
    )  # fmt: skip
    chosen = load(config, settings, None if special else guidance)
    for path in make(chosen, options, out, typer.echo):
        typer.echo(f"  {path}")


def experiment(
    name: Annotated[
        str, typer.Argument(help="such as fig9; 'list' says what each shows, 'all' makes all")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT] [KEY=VALUE]...", help="a sentence, then settings"),
    ] = None,
    config: Annotated[str, typer.Option(help="preset name or YAML file")] = "mini_2d",
    samples: Annotated[int, typer.Option(help="pictures to measure on")] = 8,
    family: Annotated[str, typer.Option(help="of whole runs: mini, or sdi for a card")] = "mini",
    representation: Annotated[
        str | None,
        typer.Option(
            help="of whole runs: gaussians, instant_ngp, or a preset; default the figure's"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="of whole runs: seeds 0, 1, ...")] = 1,
    out: Annotated[Path | None, typer.Option(help="new folder")] = None,
    wide: WideOption = False,
) -> None:
    """Repeat a figure of the paper: data, plot and table. fig1_3d, fig4_3d, fig8, fig9_3d,
    fig10_3d, fig11, fig14, table2, since, aids and janus are whole runs on the presets of a
    family, 'mini' (150 steps if you do not say steps=N) or 'sdi'."""
    from ..config import load
    from ..experiments import run as experiments
    from ..experiments.base import table
    from ..experiments.chains import CHAINS, EXAMPLES, REPRESENTATION, chain
    from ..experiments.compare import Plan
    from ..pages.text import room

    if name == "list":
        entries = {known: entry.shows for known, entry in experiments.EXPERIMENTS.items()}
        for known, shows in {**entries, **CHAINS}.items():
            typer.echo(f"{known:<10} {shows}")
        return
    prompt, settings = split_words(words or [])

    def figure(name: str, out: Path | None) -> tuple[Result, list[Path]]:
        chosen = load(config, [*settings, f"prompt={prompt or 'a red mug'}"])
        return experiments.run(name, chosen, samples, out, typer.echo)

    def runs(name: str, out: Path | None) -> None:
        drawn_on = representation or REPRESENTATION.get(name, "gaussians")
        plan = Plan("", family, (drawn_on,), seeds=seeds, settings=tuple(settings))
        prompts = [prompt] if prompt else EXAMPLES.get(name, [])
        _print_table(name, CHAINS[name], chain(name, family), plan, prompts, out, wide)

    if name == "all":
        _everything(figure, runs, out)
        return
    if name in CHAINS:
        runs(name, out)
        return
    entry = experiments.require(name)
    result, paths = figure(name, out)
    typer.echo(f"\n{entry.shows}\n{result.y}\n{table(result, room(wide))}\n")
    for path in paths:
        typer.echo(f"  {path}")


def _everything(
    figure: Callable[[str, Path | None], object],
    runs: Callable[[str, Path | None], object],
    out: Path | None,
) -> None:
    """Every experiment into a folder of its own below ``out``, where it is not there yet, and the
    page that leads to them, which grows. One that fails is told on it, and the others are made."""
    from representations.telling import each

    from ..artefacts.claim import free_name
    from ..errors import UserError, command
    from ..experiments import everything
    from ..experiments.chains import CHAINS
    from ..experiments.run import EXPERIMENTS
    from ..stopping import Interrupted

    folder = out if out is not None else free_name("experiments")
    again = command("experiment", "all", "--out", folder)
    typer.echo(f"may be stopped at any time; {again} goes on")
    made, lost = [], []
    known = [(name, entry.shows, False) for name, entry in EXPERIMENTS.items()]
    for name, shows, whole in each([*known, *((n, s, True) for n, s in CHAINS.items())],
                                   "experiment"):  # fmt: skip
        typer.echo(f"\n{name}: {shows}")
        said = ""
        try:
            if whole:
                runs(name, folder / name)
            elif (folder / name / f"{name}.json").is_file():
                typer.echo("  finished before")
            else:
                figure(name, folder / name)
        except Interrupted:
            raise
        except (UserError, RunFailure) as error:
            said = str(error)
            lost.append(name)
            typer.echo(f"  {said}", err=True)
        made.append(everything.found(name, shows, folder, said))
        page = everything.write(made, _machine(), folder)
    typer.echo(f"\n  {page}")
    if lost:
        raise RunFailure(f"not whole: {', '.join(lost)}; the page says why")


def table1(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]... [KEY=VALUE]...", help="sentences, then settings"),
    ] = None,
    representations: Annotated[
        str, typer.Option(help="comma-separated: gaussians, instant_ngp, or presets")
    ] = "gaussians",
    guidances: Annotated[
        str | None, typer.Option(help="comma-separated; default every method")
    ] = None,
    family: Annotated[str, typer.Option(help="presets of mini, or of sdi for a card")] = "mini",
    seeds: Annotated[int, typer.Option(help="runs of each, with seeds 0, 1, ...")] = 1,
    steps: Annotated[int | None, typer.Option(help="optimisation steps")] = None,
    nfe: Annotated[
        int | None,
        typer.Option(help="equal calls: as many steps as so many network samples pay for"),
    ] = None,
    clip: ClipOption = None,
    out: StudyOut = None,
    wide: WideOption = False,
) -> None:
    """The paper's Table 1: every method by quality, divergence, seconds and memory. A run of mini
    has 150 steps where you say neither --steps nor --nfe; its presets have 400."""
    from .. import config
    from ..experiments.chains import methods
    from ..experiments.compare import Plan

    names = _names(guidances) if guidances is not None else tuple(config.guidances())
    settings = tuple(word for word in words or [] if ASSIGNMENT.match(word))
    prompts = [word for word in words or [] if not ASSIGNMENT.match(word)]
    plan = Plan("", family, _names(representations), names, seeds, steps, settings, clip, nfe)
    _print_table("table1", TABLE1, methods(names), plan, prompts, out, wide)


TABLE1 = "Table 1: every method by quality, divergence, seconds and memory"


def _print_table(
    name: str,
    shows: str,
    variants: Sequence[Variant],
    plan: Plan,
    prompts: list[str],
    out: Path | None,
    wide: bool,
) -> None:
    from dataclasses import replace

    from ..artefacts.claim import free_name
    from ..experiments import sheet, tables
    from ..experiments.chains import EXAMPLE, SHORT
    from ..pages.text import room

    typer.echo(shows)
    if plan.family == "mini" and plan.nfe is None and not plan.names_steps:
        plan = replace(plan, steps=SHORT)
        typer.echo(f"{plan.steps} steps a run, to take minutes; the presets' own are more")
    folder = out if out is not None else free_name(name)
    entries, shown = tables.measure(variants, plan, prompts or [EXAMPLE], folder, typer.echo)
    paths = tables.write(shows, entries, shown, _machine(), folder)
    paths += sheet.write(shown, folder)
    typer.echo("\n" + tables.text(entries, room(wide)) + "\n")
    for path in paths:
        typer.echo(f"  {path}")
    _require_whole(tables.missing(shown))


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (compare, experiment, generate2d, table1):
        app.command()(verb)
