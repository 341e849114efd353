# SPDX-License-Identifier: Apache-2.0
"""What runs have left in their folders, as one page: report.html. It asks for nothing from outside;
it links the files that lie beside it.

Only files are read: no model, no checkpoint and no device is needed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from ..artefacts import run_folder
from ..artefacts.run_folder import STAGES
from ..config import dump
from ..differences import Setting, between, differing
from ..errors import UserError, command
from . import parts
from .facts import Facts, File, read
from .films import film_of
from .plots import Line, bars, plot
from .render import page
from .shape import PAGE_BYTES, splats_of, turned
from .text import Column

POINTS = 200  # of a curve, at most
PREVIEWS = 8  # contact sheets from the time of training, at most
PREVIEW_WIDTH = 640  # pixels
DIGITS = 100  # bytes by which numbers of many splats are longer than of one
VIEWS_BYTES, VIEWS_WIDTH = 300_000, 1280  # a larger sheet of views is made that many pixels wide

NOTE = (
    "Seconds of a step are medians by stage without the first tenth of the steps, in which kernels "
    "compile; total seconds include everything. Peak memory is the most that a process of the run "
    "held."
)


def write_one(path: Path, out: Path | None = None) -> Path:
    """The report of one run, by default as report.html in its folder; the file."""
    facts = read(path)
    target = out if out is not None else facts.run.report_file
    return parts.write(target, one(facts, target.parent))


def write(paths: Sequence[Path], out: Path | None = None) -> Path:
    """The report of one run, or one page for several; the file. Several go by default into a new
    file beside the first run."""
    if len(paths) == 1:
        return write_one(paths[0], out)
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"{path} is named twice; name each run once")
        seen.add(path.resolve())
    found = [read(path) for path in paths]
    target = out if out is not None else _free_page(paths[0].resolve().parent)
    return parts.write(target, many(found, target.parent))


def _free_page(folder: Path) -> Path:
    number = 1
    while (folder / f"comparison-{number}.html").exists():
        number += 1
    return folder / f"comparison-{number}.html"


def one(facts: Facts, folder: Path) -> str:
    """The page of one run, which is to lie in ``folder``."""
    config, splats = facts.config, splats_of(facts.run)
    values: dict[str, object] = {
        "measures": [column for column in (*MADE, *MEASURES) if column[1](facts) != "-"],
        "note": NOTE,
        "title": f"{config.prompt or facts.name}: a run of sdi-gs",
        "prompt": config.prompt,
        "run": _shown(facts, facts.name, folder),
        "shape": None,
        "shape_note": splats.note,
        "next": _next(facts),
        "from_preset": _from_preset(facts),
        "settings": differing(config) or [("none", "-", "-")],
        "all_settings": dump(config),
        "plots": _plots([facts], [""]),
        "previews": _previews(facts),
        "environment": _environment(facts),
    }
    if splats.cloud is None:
        return page("run", values)
    # What the page takes with a shape of one splat says how many there is room for.
    bare = page("run", {**values, "shape": turned(splats.cloud, config, PAGE_BYTES, most=1)})
    room = PAGE_BYTES - len(bare.encode()) - DIGITS
    return page("run", {**values, "shape": turned(splats.cloud, config, room)})


class FromPreset(NamedTuple):
    """What a run has otherwise than what it was made of."""

    origin: str
    settings: list[Setting]


def _from_preset(facts: Facts) -> FromPreset | None:
    """None for a run that did not note its preset, or whose preset there is no more."""
    origin = facts.run.origin()
    base = None if origin is None else origin.config()
    return None if base is None else FromPreset(str(origin), differing(facts.config, base))


def _next(facts: Facts) -> list[tuple[str, str]]:
    """Commands that are worth typing now, and what for."""
    path, config = facts.run.path, facts.config
    if facts.summary is None:
        return [(command("resume", path), "goes on with it"), (command("view", path), VIEW)]
    again = command("generate", "--config", facts.run.config_file, "--seed", config.seed + 1)
    longer = command("resume", path, "--steps", 2 * config.steps)
    return [
        (command("view", path), VIEW),
        (command("export", path, "--format", "glb"), "a mesh for an engine or Blender"),
        *([(longer, "twice the steps")] if facts.summary.converted_from is None else []),
        (again, "the same with another seed"),
    ]


VIEW = "turn it, drawn by the program that trained it"


def many(found: Sequence[Facts], folder: Path) -> str:
    """One page for several runs, which is to lie in ``folder``."""
    labels = _labels(found)
    prompts = list(dict.fromkeys(facts.config.prompt for facts in found))
    environments = [_environment(facts) for facts in found]
    columns = (*NAMES, *MEASURES)
    measured = [(title, *(cell(facts) for facts in found)) for title, cell in columns]
    return page(
        "runs",
        {
            "note": NOTE,
            "measured": measured,
            "head": ("run", *labels),
            "title": prompts[0] if len(prompts) == 1 else f"{len(found)} runs compared",
            "runs": [
                _shown(facts, label, folder) for facts, label in zip(found, labels, strict=True)
            ],
            "settings": between([facts.config for facts in found])
            or [("none", *("-" for _ in found))],
            "labels": labels,
            "plots": _plots(found, labels),
            "environments": list(zip(labels, environments, strict=True)),
            "same_environment": all(one == environments[0] for one in environments),
        },
    )


@dataclass(frozen=True)
class Shown:
    """A run as its page shows it; pictures are text, "" where there is none."""

    label: str
    facts: Facts
    resume: str  # the command that continues a run which has not finished, else ""
    turntable: str  # the film, or its address
    still: str
    film_note: str
    views: str
    files: list[File]


def _shown(facts: Facts, label: str, folder: Path) -> Shown:
    film, views = film_of(facts.turntable(), folder), _views(facts)
    unfinished = facts.summary is None
    return Shown(
        label=label,
        facts=facts,
        resume=command("resume", facts.run.path) if unfinished else "",
        turntable=film.url,
        still=film.still,
        film_note=film.note,
        views="" if views is None else parts.embedded_within(views, VIEWS_BYTES, VIEWS_WIDTH),
        files=facts.exported(folder),
    )


def _labels(found: Sequence[Facts]) -> list[str]:
    """Names of folders; whole paths where two folders have the same name."""
    names = [facts.name for facts in found]
    if len(set(names)) == len(names):
        return names
    return [str(facts.run.path.resolve()) for facts in found]


def _views(facts: Facts) -> Path | None:
    """The contact sheet; before the end of a run the newest of its previews."""
    sheets = [*(path for _, path in facts.run.previews()), facts.run.preview_png]
    return next((path for path in reversed(sheets) if path.is_file()), None)


def _previews(facts: Facts) -> list[tuple[str, str]]:
    """Contact sheets from the time of training with their captions."""
    return [
        (parts.embedded_small(path, PREVIEW_WIDTH), f"after step {step}")
        for step, path in facts.run.previews(PREVIEWS)
    ]


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} MB"


def _step(facts: Facts) -> str:
    if not facts.lines:
        return "-"
    median = run_folder.median_seconds(facts.lines)
    stages = ", ".join(f"{stage} {1e3 * median[stage]:.1f}" for stage in STAGES)
    return f"{1e3 * sum(median.values()):.1f} ms ({stages})"


def _size(facts: Facts) -> str:
    if not facts.lines:
        return "-"
    last = facts.lines[-1]
    return f"{last.size:,} {last.unit}"


NAMES: tuple[Column[Facts], ...] = (
    ("prompt", lambda f: f.config.prompt),
    ("status", lambda f: f.status()),
)

MADE: tuple[Column[Facts], ...] = (("preset", lambda f: str(f.run.origin() or "-")),)

MEASURES: tuple[Column[Facts], ...] = (
    ("steps", lambda f: f"{f.steps_done:,}"),
    ("seconds", lambda f: "-" if f.seconds is None else f"{f.seconds:.1f}"),
    ("a step", _step),
    ("peak memory", lambda f: _mb(f.peaks.peak_memory_mb)),
    ("peak CUDA memory", lambda f: _mb(f.peaks.peak_cuda_memory_mb)),
    ("size", _size),
    ("last loss", lambda f: f"{f.lines[-1].loss:.4g}" if f.lines else "-"),
)


def _environment(facts: Facts) -> list[tuple[str, str]]:
    """Versions and hardware as the run recorded them, not those of this process."""
    summary = facts.summary
    told = [
        (name, "none" if value is None else str(value))
        for group in ((summary.hardware, summary.versions) if summary is not None else ())
        for name, value in group.items()
    ]
    return told or [("unknown", "a run writes this down when it finishes")]


def _plots(found: Sequence[Facts], labels: Sequence[str]) -> list[Markup]:
    """Loss, size, t and seconds over the steps, and where the seconds went."""
    ran = [(facts, label) for facts, label in zip(found, labels, strict=True) if facts.lines]
    if not ran:
        return []
    units = list(dict.fromkeys(facts.lines[-1].unit for facts, _ in ran))
    # A logarithm of a loss that is not positive would drop points in silence.
    log = all(line.loss > 0.0 for facts, _ in ran for line in facts.lines)
    medians = [(label, run_folder.median_seconds(facts.lines)) for facts, label in ran]
    milliseconds = [
        (label, {stage: 1e3 * value for stage, value in median.items()})
        for label, median in medians
    ]
    return [
        plot(_lines(ran, "loss"), "steps", "loss, logarithmic" if log else "loss", log),
        plot(_lines(ran, "size"), "steps", " or ".join(units)),
        plot(_lines(ran, "t"), "steps", "time index t"),
        plot(_seconds(ran), "steps", "seconds of a step, logarithmic", log=True),
        bars(milliseconds, "milliseconds of a step", "ms"),
    ]


def _lines(ran: Sequence[tuple[Facts, str]], key: str) -> list[Line]:
    return [
        Line(label, thin([(line.step + 1, getattr(line, key)) for line in facts.lines]))
        for facts, label in ran
    ]


def _seconds(ran: Sequence[tuple[Facts, str]]) -> list[Line]:
    """By stage for one run, in total for several."""
    if len(ran) > 1:
        return [
            Line(label, _timed(facts, lambda seconds: sum(seconds.values())))
            for facts, label in ran
        ]
    (facts, _), = ran  # fmt: skip
    return [
        Line(stage, _timed(facts, lambda seconds, stage=stage: seconds.get(stage, 0.0)))  # type: ignore[misc]
        for stage in STAGES
    ]


def _timed(facts: Facts, measure: Callable[[dict[str, float]], float]) -> list[tuple[float, float]]:
    counted = run_folder.settled(facts.lines)
    points = [(line.step + 1, measure(line.seconds)) for line in counted]
    return thin(points, statistics.median)


def thin(
    points: Sequence[tuple[float, float]],
    middle: Callable[[Sequence[float]], float] = statistics.fmean,
) -> list[tuple[float, float]]:
    """At most POINTS of (x, y): neighbours are one point, at their last x and the ``middle`` of
    their y. The last x stays the last."""
    count = min(POINTS, len(points))
    bounds = [round(i * len(points) / count) for i in range(count + 1)] if count else []
    groups = [points[a:b] for a, b in itertools.pairwise(bounds)]
    return [(group[-1][0], middle([y for _, y in group])) for group in groups]
