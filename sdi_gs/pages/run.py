# SPDX-License-Identifier: Apache-2.0
"""What runs have left in their folders, as one page that needs nothing else: report.html.

Only files are read: no model, no checkpoint and no device is needed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ..artefacts import run_folder
from ..artefacts.records import Peaks, StepLine, Summary, largest_memory, lost
from ..artefacts.run_folder import STAGES, RunFolder
from ..config import Config, dump
from ..differences import between, differing
from ..errors import UserError, command
from . import parts
from .plots import Line, bars, plot
from .render import page
from .text import Column

POINTS = 200  # of a curve, at most
PREVIEWS = 8  # contact sheets from the time of training, at most
PREVIEW_WIDTH = 640  # pixels
BOOKKEEPING = {"config.yaml", "stats.jsonl", "summary.json", "preview.png", "report.html"}

NOTE = (
    "Seconds of a step are medians by stage without the first tenth of the steps, in which kernels "
    "compile; total seconds include everything. Peak memory is the most that a process of the run "
    "held."
)


@dataclass(frozen=True)
class Facts:
    """A run as its folder has it."""

    run: RunFolder
    config: Config
    lines: list[StepLine]  # of stats.jsonl, one per step
    summary: Summary | None  # None: the run has not finished
    damage: str = ""  # what is said about lines of stats.jsonl that were left out

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def steps_done(self) -> int:
        return self.lines[-1].step + 1 if self.lines else 0

    @property
    def seconds(self) -> float | None:
        """Of the whole run; for an unfinished one those of its steps alone."""
        if self.summary is not None:
            return self.summary.seconds
        return sum(sum(line.seconds.values()) for line in self.lines)

    @property
    def peaks(self) -> Peaks:
        """Of all processes of the run."""
        return largest_memory([*self.lines, *([self.summary] if self.summary else [])])

    def status(self) -> str:
        damage = f"; {self.damage}" if self.damage else ""
        if self.summary is None:
            return f"not finished: {self.steps_done} of {self.config.steps} steps{damage}"
        if self.summary.converted_from is not None:
            return f"converted from {self.summary.converted_from}{damage}"
        return f"finished: {self.config.steps} steps{damage}"

    def turntable(self) -> Path | None:
        known = [self.run.turntable(kind) for kind in ("mp4", "gif")]
        known.sort(key=lambda path: path.suffix[1:] != self.config.output.turntable.format)
        return next((path for path in known if path.is_file()), None)

    def exported(self) -> list[tuple[str, str]]:
        """Name of each asset, and what it holds."""
        told = self.summary.asset if self.summary is not None else {}
        found = [
            path
            for path in sorted(self.run.path.iterdir())
            if path.is_file()
            and path.name not in BOOKKEEPING
            and not path.name.startswith((".", "turntable."))
        ]
        sizes = {path.name: f"{path.stat().st_size:,} bytes" for path in found}
        missing = {name: text for name, text in told.items() if name not in sizes}
        held = {name: f"{told[name]}, {size}" if name in told else size
                for name, size in sizes.items()}  # fmt: skip
        return [*held.items(), *missing.items()]


def read(path: Path) -> Facts:
    """The run in the folder ``path``. UserError for any other folder, and for a run that has
    nothing to show yet."""
    run = run_folder.open_existing(path)
    lines, _, damage = run.read_stats()
    summary = run.summary() if run.summary_file.exists() else None
    if not lines and summary is None:
        raise UserError(
            f"{path} has no finished step yet, so there is nothing to report; wait for the first, "
            "or start the run again: " + command("generate", "--config", run.config_file)
        )
    return Facts(run, run.config(), lines, summary, lost(damage))


def write_one(path: Path, out: Path | None = None) -> Path:
    """The report of one run, by default as report.html in its folder; the file."""
    facts = read(path)
    return parts.write(out if out is not None else facts.run.report_file, one(facts))


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
    return parts.write(
        out if out is not None else _free_page(paths[0].resolve().parent), many(found)
    )


def _free_page(folder: Path) -> Path:
    number = 1
    while (folder / f"comparison-{number}.html").exists():
        number += 1
    return folder / f"comparison-{number}.html"


def one(facts: Facts) -> str:
    """The page of one run."""
    config = facts.config
    return page(
        "run",
        {
            "measures": MEASURES,
            "note": NOTE,
            "title": config.prompt or facts.name,
            "prompt": config.prompt,
            "run": _shown(facts, facts.name),
            "settings": differing(config) or [("none", "-", "-")],
            "all_settings": dump(config),
            "plots": _plots([facts], [""]),
            "previews": _previews(facts),
            "environment": _environment(facts),
        },
    )


def many(found: Sequence[Facts]) -> str:
    """One page for several runs."""
    labels = _labels(found)
    prompts = list(dict.fromkeys(facts.config.prompt for facts in found))
    environments = [_environment(facts) for facts in found]
    columns = (*NAMES, *MEASURES)
    measured = [(title, *(cell(facts) for facts in found)) for title, cell in columns]
    return page(
        "runs",
        {
            "note": NOTE,
            "measured": [("run", *labels), *measured],
            "title": prompts[0] if len(prompts) == 1 else f"{len(found)} runs compared",
            "runs": [_shown(facts, label) for facts, label in zip(found, labels, strict=True)],
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
    turntable: str
    views: str
    files: list[tuple[str, str]]


def _shown(facts: Facts, label: str) -> Shown:
    table, views = facts.turntable(), _views(facts)
    unfinished = facts.summary is None
    return Shown(
        label=label,
        facts=facts,
        resume=command("resume", facts.run.path) if unfinished else "",
        turntable="" if table is None else parts.embedded(table),
        views="" if views is None else parts.embedded(views),
        files=facts.exported(),
    )


def _labels(found: Sequence[Facts]) -> list[str]:
    """Names of folders; whole paths where two folders have the same name."""
    names = [facts.name for facts in found]
    if len(set(names)) == len(names):
        return names
    return [str(facts.run.path.resolve()) for facts in found]


def _views(facts: Facts) -> Path | None:
    """The contact sheet; before the end of a run the newest of its previews."""
    sheets = [*_sheets(facts), facts.run.preview_png]
    return next((path for path in reversed(sheets) if path.is_file()), None)


def _sheets(facts: Facts) -> list[Path]:
    found = (facts.run.path / "previews").glob("step_*.png")
    return sorted(path for path in found if path.stem.removeprefix("step_").isdecimal())


def _previews(facts: Facts) -> list[tuple[str, str]]:
    """Contact sheets from the time of training with their captions, evenly chosen, the last one
    included."""
    paths = _sheets(facts)
    every = (len(paths) - 1) / max(1, PREVIEWS - 1)
    chosen = [paths[round(i * every)] for i in range(PREVIEWS)] if every > 1 else paths
    return [
        (
            parts.embedded_small(path, PREVIEW_WIDTH),
            f"after step {int(path.stem.removeprefix('step_'))}",
        )
        for path in chosen
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
