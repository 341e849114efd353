# SPDX-License-Identifier: Apache-2.0
"""The verb that judges finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .arguments import WideOption

if TYPE_CHECKING:
    from ..evaluation.protocol import Evaluated, Evaluation, Judged
    from ..evaluation.together import Together


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="finished run folders")],
    clip: Annotated[
        str | None,
        typer.Option(help="CLIP folder or hub id; default mini's judge, else the paper's B/32"),
    ] = None,
    views: Annotated[int, typer.Option(help="pictures around each shape")] = 50,
    flat: Annotated[bool, typer.Option(help="judge DDIM samples too, for the gap to 2D")] = True,
    samples: Annotated[int, typer.Option(help="DDIM samples of each of 8 sides")] = 2,
    candidates: Annotated[
        Path | None, typer.Option(help="sentences of R-precision, one a line; default built in")
    ] = None,
    image_reward: Annotated[
        Path | None, typer.Option(help="local copy of THUDM/ImageReward, to score with it too")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="file for every figure; replaced if it is an evaluation")
    ] = Path("evaluation.json"),
    wide: WideOption = False,
) -> None:
    """Judge finished runs by the paper's protocol, and against truth where mini knows it."""
    from ..evaluation import protocol
    from ..pages.text import room

    options = protocol.EvaluationOptions(
        clip, views, flat, samples, _sentences(candidates), image_reward
    )
    _require_ours(out)
    done = protocol.evaluate(runs, options, typer.echo)
    typer.echo("\n" + text(done.runs, room(wide)) + "\n")
    for line in _together(done.together):
        typer.echo(line)
    _write(out, done)
    typer.echo(f"  {out}")


def _sentences(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--candidates {path} cannot be read as text: {error}") from None
    found = tuple(line for line in lines if line)
    if len(found) < 2:
        raise UserError(f"--candidates {path} holds {len(found)} sentences: 2 or more are needed")
    return found


def _require_ours(out: Path) -> None:
    """An evaluation may replace an evaluation, and nothing else."""
    from ..artefacts.records import parse, read_text

    if not out.exists():
        return
    try:
        ours = "evaluations" in parse(read_text(out))
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"--out {out} exists and is not an evaluation; name another file")


def _together(found: Together) -> list[str]:
    """What was measured of all runs."""
    lines = []
    if found.diversity is not None:
        lines.append(
            f"diversity {found.diversity:.1f} %: how much shapes of one sentence differ, 0 for "
            "equal ones"
        )
    if found.frechet is not None:
        lines.append(
            f"Frechet distance {found.frechet:.3f} of all views to the model's own pictures, in "
            "the judge's features"
        )
    return [*lines, ""] if lines else []


def _write(out: Path, done: Evaluated) -> None:
    from ..artefacts.records import write_json
    from ..artefacts.run_folder import environment

    report = {"evaluations": [e.plain() for e in done.runs],
              "together": done.together._asdict(), **environment()}  # fmt: skip
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, report)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error


def text(done: Sequence[Evaluation], width: int | None = None) -> str:
    """One column per run, one line per measure; what could not be measured is a dash."""
    from ..pages.text import text_table

    lines: list[list[str]] = [["run", *(Path(e.run).name for e in done)]]

    def add(name: str, values: list[object]) -> None:
        lines.append([name, *(_shown(value) for value in values)])

    add("prompt", [e.prompt for e in done])
    add("representation", [e.representation for e in done])
    add("noise / update", [e.guidance for e in done])
    add("diverged", [e.diverged for e in done])
    for title, judged in (("", [e.shape for e in done]), ("DDIM: ", [e.flat for e in done])):
        if any(j is not None for j in judged):
            for name, values in _judged(judged):
                add(title + name, values)
    if any(e.truth is not None for e in done):
        for name in ("psnr_db", "ssim", "silhouette_iou", "front_views", "right_views"):
            add(name, [None if e.truth is None else getattr(e.truth, name) for e in done])
        add("nearest_psnr_db", [e.nearest_psnr_db for e in done])
        add("DDIM: nearest_psnr_db", [e.flat_nearest_psnr_db for e in done])
    gaps = [e.gap() for e in done]
    for name in dict.fromkeys(name for gap in gaps if gap for name in gap):
        add(f"3D - 2D: {name}", [None if gap is None else gap.get(name) for gap in gaps])
    add("seconds", [e.seconds for e in done])
    add("peak MB", [e.peak_memory_mb for e in done])
    return text_table(lines, left=1, width=width, keep=2)


def _judged(judged: Sequence[Judged | None]) -> list[tuple[str, list[object]]]:
    """Lines of what a CLIP said."""
    one = next(j for j in judged if j is not None)
    rows: list[tuple[str, list[object]]] = [("CLIP score", [j and j.clip_score for j in judged])]
    rows += [(f"CLIP-IQA {name} %", [j and 100 * j.iqa[name] for j in judged]) for name in one.iqa]
    rows.append(("R-precision %", [j and 100 * j.r_precision for j in judged]))
    rows.append(("content drift %", [j and 100 * j.drift for j in judged]))
    if any(j is not None and j.image_reward is not None for j in judged):
        rows.append(("ImageReward", [j and j.image_reward for j in judged]))
    return rows


def _shown(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"
        case _:
            return str(value)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(evaluate)
