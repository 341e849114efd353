# SPDX-License-Identifier: Apache-2.0
"""Tables of whole runs: each line is a variant (``chains.py``) on the same prompts, by quality,
divergence, time and memory."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from markupsafe import Markup

from representations.files import write_bytes
from representations.telling import level

from ..artefacts import run_folder
from ..artefacts.records import write_json
from ..artefacts.run_folder import slug
from ..config import Config
from ..errors import UserError
from ..evaluation.protocol import Judge
from ..evaluation.together import Looks, together
from ..look import stills
from ..pages import render
from ..pages.films import Room
from ..pages.plots import bars, standalone
from ..pages.text import Column, drop_unmeasured, or_dash, steps_made, text_table
from . import study
from .chains import Variant
from .compare import (
    VIEWS,
    Cell,
    Plan,
    Row,
    cells,
    check_prompts,
    configuration,
    judge_for,
    outcome,
)
from .price import samples_per_step, steps_for
from .study import Without

DIVERGED_DB = 5.0
"""Nearer than this to a white picture's PSNR there may be no object. A faithful one of the wrong
size or place can be that near as well, so CLIP has a say where it is asked."""


SHEET_WIDTH = 640  # pixels, of the views of a run on the page

LONG = 40
"""Letters of a sentence that fit into the name of a folder."""


@dataclass(frozen=True)
class Entry:
    """One variant on one representation, over all prompts and seeds."""

    representation: str
    variant: str
    runs: int  # that came to an end; all other figures are about these
    not_run: int  # that were killed or could not be made, and say nothing
    diverged_percent: float | None  # no numbers, empty, or far from any object
    psnr_db: float | None  # mean of the others, where mini knows the objects
    psnr_spread_db: float | None  # standard deviation over them
    faces: float | None  # mean of a shape, one being right, where mini knows the objects
    recognised: int | None  # runs that CLIP knows among all its sentences in most views
    clip_score: float | None  # 0 to 100, mean of those that did not diverge
    clip_spread: float | None  # standard deviation over them
    iqa_quality: float | None  # 0 to 1, the same
    r_precision: float | None  # 0 to 1, the same
    drift: float | None  # 0 to 1, mean over the shapes of how much what is seen changes around them
    diversity: float | None  # percent, of the shapes that several seeds made of one sentence
    seconds: float | None  # mean of a whole run
    ms_per_step: float | None
    network_samples_per_step: float | None
    network_samples: float | None  # mean of a whole run
    peak_memory_mb: float | None  # largest
    steps: int | None = None  # of each run; None where they differ


class Wanted(NamedTuple):
    """One run of a table."""

    cell: Cell
    variant: Variant
    config: Config

    @property
    def name(self) -> str:
        """Of its folder. Sentences that begin alike differ in their check sum."""
        prompt = self.config.prompt
        words = slug(prompt)
        if len(prompt) > LONG:
            words = f"{words[:LONG]}-{crc32(prompt.encode()):08x}"
        shape = Path(self.cell.representation).stem
        return f"{shape}-{slug(self.variant.label)}-{words}-{self.cell.seed}"


class Shown(NamedTuple):
    """A run and what came of it."""

    wanted: Wanted
    outcome: Row | Without


def wanted(variants: Sequence[Variant], plan: Plan, prompts: Sequence[str]) -> list[list[Wanted]]:
    """The runs of each line of the table. UserError for anything that no run could use."""
    lines = []
    for representation in plan.representations:
        for variant in variants:
            one = dataclasses.replace(
                plan, representations=(representation,), guidances=(variant.guidance,),
                settings=(*plan.settings, *variant.settings),
            )  # fmt: skip
            plans = [dataclasses.replace(one, prompt=prompt) for prompt in prompts]
            lines.append(
                [Wanted(cell, variant, configuration(p, cell)) for p in plans for cell in cells(p)]
            )
    return lines


def at_equal_calls(line: list[Wanted], nfe: int, say: Callable[[str], None]) -> list[Wanted]:
    """The runs of one line with the steps that ``nfe`` network samples pay for."""
    price = samples_per_step(line[0].config)
    steps = {"steps": steps_for(price, nfe)}
    say(f"{line[0].variant.label}: {steps['steps']} steps of {price:.1f} network samples")
    return [run._replace(config=run.config.model_copy(update=steps)) for run in line]


def measure(
    variants: Sequence[Variant],
    plan: Plan,
    prompts: Sequence[str],
    out: Path,
    say: Callable[[str], None],
) -> tuple[list[Entry], list[Shown]]:
    """Run everything below the folder ``out``; table.json grows with each line. What an earlier
    call left there is not done again.

    ``plan`` says on what; its prompt, guidances and settings are those of each variant and prompt.
    A run whose numbers stop being numbers has diverged. One that is killed or cannot be made is no
    result: it says so, and the same call tries it again.
    """
    if not prompts:
        raise UserError('no prompt: name at least one in quotes, such as "a red mug"')
    lines = wanted(variants, plan, prompts)
    configs = [run.config for line in lines for run in line]
    check_prompts(configs, say)
    with study.opened(out, "table"), level("run", len(configs)) as told:
        if plan.nfe is not None:
            lines = [at_equal_calls(line, plan.nfe, say) for line in lines]
        judge = judge_for(configs, plan.clip)
        entries: list[Entry] = []
        shown: list[Shown] = []
        for line in lines:
            outcomes: list[Row | Without] = []
            for run in line:
                say(f"run {len(shown) + 1} of {len(configs)}: {run.name}")
                outcomes.append(outcome(run.name, run.config, run.cell, out, judge, say))
                shown.append(Shown(run, outcomes[-1]))
                told.at(len(shown))
            label = line[0].variant.label
            apart = _diversity(outcomes, judge, out)
            entries.append(summarise(line[0].cell.representation, label, outcomes, apart))
            report = {"plan": asdict(plan), "prompts": list(prompts),
                      "variants": [asdict(v) for v in variants],
                      "entries": [asdict(entry) for entry in entries],
                      "runs": [_plain(s) for s in shown], **run_folder.environment()}  # fmt: skip
            write_json(out / "table.json", report)
    return entries, shown


def _plain(shown: Shown) -> dict[str, Any]:
    """A run in table.json."""
    if isinstance(shown.outcome, Row):
        return asdict(shown.outcome)
    return {"run": shown.wanted.name, shown.outcome.word.replace(" ", "_"): shown.outcome.why}


def missing(shown: Sequence[Shown]) -> str | None:
    """What a table that lacks runs must say besides; None for a whole one."""
    return study.lacking([(s.wanted.name, s.outcome) for s in shown], "table")


def _diverged(row: Row) -> bool:
    """Nothing to see; or hardly more than a white picture tells of the true object, and CLIP finds
    the sentence in none of the views."""
    if row.empty or row.psnr_db is None or row.blank_db is None:
        return row.empty
    seen = row.judged is not None and row.judged.r_precision > 0.0
    return row.psnr_db < row.blank_db + DIVERGED_DB and not seen


def _diversity(outcomes: Sequence[Row | Without], judge: Judge | None, out: Path) -> float | None:
    """How much the shapes of a sentence differ, by the sheets of views that their runs left; None
    where nobody judges or no sentence has two."""
    if judge is None:
        return None
    good = [row for row in outcomes if isinstance(row, Row) and not _diverged(row)]
    prompts = [row.prompt for row in good]
    looks = []
    for row in good:
        sheet = out / row.run / "preview.png"
        if prompts.count(row.prompt) > 1 and sheet.is_file():
            looks.append(Looks(row.prompt, judge.clip.pictures(stills(sheet)).cpu()))
    return together(looks).diversity


def summarise(
    representation: str,
    variant: str,
    outcomes: Sequence[Row | Without],
    apart: float | None = None,
) -> Entry:
    """One line of the table; ``apart`` is its diversity."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    good = [row for row in done if not _diverged(row)]
    runs = len(done) + sum(isinstance(o, Without) and o.diverged for o in outcomes)
    values = [row.psnr_db for row in good if row.psnr_db is not None]
    judged = [row.judged for row in good if row.judged is not None]
    scores = [j.clip_score for j in judged]
    lengths = {row.steps for row in done}
    memory = [m for row in done if (m := row.peak_cuda_memory_mb or row.peak_memory_mb)]

    def mean(numbers: Sequence[float]) -> float | None:
        return statistics.mean(numbers) if numbers else None

    return Entry(
        representation=representation,
        variant=variant,
        runs=runs,
        not_run=len(outcomes) - runs,
        diverged_percent=100.0 * (runs - len(good)) / runs if runs else None,
        psnr_db=mean(values),
        psnr_spread_db=statistics.pstdev(values) if len(values) > 1 else None,
        faces=mean([row.faces for row in good if row.faces is not None]),
        recognised=sum(j.r_precision > 0.5 for j in judged) if judged else None,
        clip_score=mean(scores),
        clip_spread=statistics.pstdev(scores) if len(scores) > 1 else None,
        iqa_quality=mean([j.iqa["quality"] for j in judged]),
        r_precision=mean([j.r_precision for j in judged]),
        drift=mean([j.drift for j in judged]),
        diversity=apart,
        seconds=mean([row.seconds_total for row in done]),
        ms_per_step=mean([1e3 * sum(row.seconds_per_step.values()) for row in done]),
        network_samples_per_step=mean([row.evaluations_per_step for row in done]),
        network_samples=mean([row.steps * row.evaluations_per_step for row in done]),
        peak_memory_mb=max(memory, default=None),
        steps=lengths.pop() if len(lengths) == 1 else None,
    )


COLUMNS: tuple[Column[Entry], ...] = (
    ("representation", lambda e: Path(e.representation).stem),
    ("variant", lambda e: e.variant),
    ("PSNR dB", lambda e: or_dash(e.psnr_db, ".2f")),
    ("PSNR +-", lambda e: or_dash(e.psnr_spread_db, ".2f")),
    ("R-prec. %", lambda e: or_dash(e.r_precision, ".0f", 100)),
    ("recognised", lambda e: or_dash(e.recognised, ".0f")),
    ("CLIP", lambda e: or_dash(e.clip_score, ".1f")),
    ("CLIP +-", lambda e: or_dash(e.clip_spread, ".1f")),
    ("IQA %", lambda e: or_dash(e.iqa_quality, ".0f", 100)),
    ("faces", lambda e: or_dash(e.faces, ".2f")),
    ("drift %", lambda e: or_dash(e.drift, ".0f", 100)),
    ("diversity %", lambda e: or_dash(e.diversity, ".1f")),
    ("runs", lambda e: str(e.runs)),
    ("diverged %", lambda e: or_dash(e.diverged_percent, ".0f")),
    ("not run", lambda e: str(e.not_run) if e.not_run else "-"),
    ("steps", lambda e: or_dash(e.steps, ",.0f")),
    ("seconds", lambda e: or_dash(e.seconds, ".0f")),
    ("ms/step", lambda e: or_dash(e.ms_per_step, ".0f")),
    ("network/step", lambda e: or_dash(e.network_samples_per_step, ".1f")),
    ("NFE", lambda e: or_dash(e.network_samples, ",.0f")),
    ("peak MB", lambda e: or_dash(e.peak_memory_mb, ".0f")),
)

NOTE = (
    "A run has diverged if its numbers stopped being numbers (NaN or infinity), if most of its "
    f"views are empty, or if it is less than {DIVERGED_DB:g} dB better than white pictures and "
    "recognised in no view; the measures of quality leave it out. not run: killed or never made, "
    "and in no figure. R-prec.: the share of views whose sentence CLIP finds among all it may "
    f"choose from; recognised: runs of which it does so in most of {VIEWS} views. faces: how often "
    "the front is seen around a shape, 1 being right and 2 a Janus. drift: the share of views that "
    "CLIP takes for something else than most of a shape's views. network/step: samples that the "
    "denoiser was asked about in a step, of all views together; NFE: in a whole run. seconds and "
    "memory are of whole runs."
)


def text(entries: Sequence[Entry], width: int | None = None) -> str:
    """The table for a terminal of ``width`` characters; a column of dashes only is left out."""
    return text_table(drop_unmeasured(COLUMNS, entries), width=width, keep=2)


def page(
    title: str, entries: Sequence[Entry], shown: Sequence[Shown], machine: str, out: Path
) -> str:
    """The HTML page, which is to lie in the folder ``out`` of the table: the table, and below it a
    picture of every run, a line per variant and a column per sentence and seed."""
    room = Room(out)
    head, *body = drop_unmeasured(COLUMNS, entries)
    steps = [one.outcome.steps for one in shown if isinstance(one.outcome, Row)]
    gallery: dict[str, list[Picture]] = {}
    for one in shown:
        run = one.wanted
        line = f"{Path(run.cell.representation).stem} / {run.variant.label}"
        gallery.setdefault(line, []).append(_picture(one, room, out))
    return render.page(
        "table",
        {
            "title": title,
            "made": f"{steps_made(steps)}{machine}",
            "head": head,
            "body": body,
            "note": NOTE,
            "plots": plots(entries),
            "gallery": gallery,
        },
    )


def plots(entries: Sequence[Entry]) -> list[Markup]:
    """Bars of quality and of time, as far as they were measured."""

    def drawn(title: str, unit: str, values: Sequence[float | None]) -> Markup | None:
        named = zip(entries, values, strict=True)
        rows = [(_label(entry), {title: value}) for entry, value in named if value is not None]
        return bars(rows, title, unit) if rows else None

    found = (
        drawn("PSNR", "dB", [e.psnr_db for e in entries]),
        drawn("R-precision", "%", [e.r_precision and 100 * e.r_precision for e in entries]),
        drawn("a step", "ms", [e.ms_per_step for e in entries]),
    )
    return [plot for plot in found if plot is not None]


def _label(entry: Entry) -> str:
    return f"{Path(entry.representation).stem} / {entry.variant}"


def write(
    title: str, entries: Sequence[Entry], shown: Sequence[Shown], machine: str, out: Path
) -> list[Path]:
    """table.html, table.csv and a plot beside table.json; the files."""
    rows = io.StringIO()
    writer = csv.DictWriter(rows, list(asdict(entries[0])))
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in entries)
    contents = {"html": page(title, entries, shown, machine, out), "csv": rows.getvalue()}
    if drawn := plots(entries):
        contents["svg"] = standalone(drawn[0]) + "\n"
    paths = [out / f"table.{ending}" for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_bytes(path, content.encode())
    return [*paths, out / "table.json"]


class Picture(NamedTuple):
    """A run on the page; ``url`` is "" where there is nothing to see."""

    url: str
    caption: tuple[str, ...]


def _picture(shown: Shown, room: Room, out: Path) -> Picture:
    run, row = shown.wanted, shown.outcome
    words = run.config.prompt + (f", seed {run.cell.seed}" if run.cell.seed else "")
    if isinstance(row, Without):
        return Picture("", (words, str(row)))
    said = [or_dash(row.psnr_db, ".1f") + " dB"] if row.psnr_db is not None else []
    if row.judged is not None:
        said.append(f"recognised in {100 * row.judged.r_precision:.0f} % of views")
    url = room.sheet(out / row.run / "preview.png", SHEET_WIDTH)
    return Picture(url, (words, ", ".join(said)))
