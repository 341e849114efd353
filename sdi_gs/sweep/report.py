# SPDX-License-Identifier: Apache-2.0
"""A sweep on one page, report.html in its folder, and a file with a line a run for pandas.

The page names pictures and films beside it and nothing else, so it opens from the folder without a
network. Thumbnails, measures and the files for pandas lie in ``report/``.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from representations.files import write_bytes

from ..artefacts.run_folder import RunFolder
from ..errors import UserError, command, refused
from ..experiments import tables
from ..experiments.compare import Row
from ..experiments.study import Without
from ..pages import parts, render
from ..pages.text import drop_unmeasured, or_dash
from . import measured, states, stills
from .manifest import Line, Sweep
from .measured import Unmeasured
from .states import Ledger
from .status import Standing, standing

EVERY = 200  # thumbnails between two words about how far they are
COLUMNS = (
    "prompt", "method", "representation", "seed", "overrides", "family", "steps", "state", "why",
    "folder", "digest", *measured.MEASURES,
)  # fmt: skip
"""Of runs.csv and runs.parquet."""


class Seen(NamedTuple):
    """A line of the manifest, and what came of it."""

    line: Line
    word: str  # done, diverged, failed, running, waiting
    why: str  # of one that has no picture, or no measure
    row: Row | Unmeasured | None

    def quality(self) -> tuple[float, ...]:
        """The better, the larger: recognised by CLIP, its score, nearness to the true object."""
        row = self.row
        if not isinstance(row, Row) or row.empty:
            return (-math.inf,)
        judged, psnr = row.judged, row.psnr_db
        return (
            judged.r_precision if judged else 0.0,
            judged.clip_score if judged else 0.0,
            psnr if psnr is not None else 0.0,
        )


class Made(NamedTuple):
    """The files of a report, and what must be said about those that are not there."""

    page: Path
    files: list[Path]
    notes: list[str]


def write(sweep: Sweep, clip: str | None, say: Callable[[str], None]) -> Made:
    """Measure what was not measured yet, and write everything.

    Raises:
        UserError: there is no run to show, the judge does not load, or the folder cannot be
            written.
    """
    found = standing(sweep)
    if not found.manifest.lines:
        raise UserError(
            f"{sweep.path} has no runs; plan some: "
            + command("sweep", "plan", "prompts.txt", "--out", sweep.path)
        )
    folder = sweep.path / "report"
    try:
        folder.mkdir(exist_ok=True)
        seen = _seen(sweep, found, clip, say)
        pictures = _pictures(sweep, seen, say)
        files, notes = _files(seen, folder)
    except OSError as error:
        raise UserError(
            f"{refused(error, folder)}; what was measured is kept: once it can be written, the "
            "same command goes on from here"
        ) from error
    told = [found.manifest.lost()] if found.manifest.damage else []
    page = parts.write(sweep.path / "report.html", html(sweep, found, seen, pictures, files))
    return Made(page, files, [*notes, *(note for note in told if note)])


def _seen(
    sweep: Sweep, found: Standing, clip: str | None, say: Callable[[str], None]
) -> list[Seen]:
    ledger = Ledger(sweep)
    there = {line.digest for line, _ in found.of(states.DONE)
             if RunFolder(sweep.run(line)).summary_file.is_file()}  # fmt: skip
    done = [line for line in found.manifest.lines if line.digest in there]
    rows = measured.all_of(sweep, done, clip, say)
    seen = []
    for line in found.manifest.lines:
        state, row = found.state(line), rows.get(line.digest)
        why = ""
        if isinstance(row, Unmeasured):
            why = f"not measured: {row.why}"
        elif state.word == states.DONE and row is None:
            why = "its folder is gone"
        elif state.word in (states.FAILED, states.DIVERGED) or state.crashes:
            lines = str(ledger.told(line, state).get("why", "")).strip().splitlines()
            why = lines[0] if lines else "nothing was written down"
        seen.append(Seen(line, state.word, why, row))
    return seen


def _pictures(
    sweep: Sweep, seen: Sequence[Seen], say: Callable[[str], None]
) -> dict[str, tuple[str, str]]:
    """Of each run that has a film its thumbnail and the film, as addresses relative to the page."""
    found = {}
    for number, one in enumerate(seen, start=1):
        line = one.line
        thumb = Path("report") / "stills" / line.block / f"{line.name}.jpg"
        if stills.strip(sweep.run(line), sweep.path / thumb):
            run = RunFolder(Path(line.folder))
            film = next(
                kind for kind in ("mp4", "gif") if (sweep.path / run.turntable(kind)).is_file()
            )
            found[line.digest] = (_url(thumb), _url(run.turntable(film)))
        if number % EVERY == 0:
            say(f"  stills of {number:,} of {len(seen):,} runs")
    return found


def _url(path: Path) -> str:
    return quote(path.as_posix())


# -- for pandas


def records(seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """A line a run, with the columns :data:`COLUMNS`."""
    return [
        {
            **one.line._asdict(),
            "overrides": " ".join(one.line.overrides),
            "state": one.word,
            "why": one.why,
            **measured.plain(one.row),
        }
        for one in seen
    ]


def _files(seen: Sequence[Seen], folder: Path) -> tuple[list[Path], list[str]]:
    rows = records(seen)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    made = [folder / "runs.csv"]
    write_bytes(made[0], text.getvalue().encode())
    try:
        content = _parquet(rows)
    except ImportError:
        return made, [
            "there is no runs.parquet, for which pyarrow is needed: pip install 'sdi-gs[parquet]'; "
            "runs.csv has the same"
        ]
    made.append(folder / "runs.parquet")
    write_bytes(made[1], content)
    return made, []


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """ImportError where pyarrow is missing. A column has one type whatever it holds."""
    import pyarrow as pa
    from pyarrow import parquet

    types = dict.fromkeys(("seed", "steps", "faces", "parameters", "size"), pa.int64())
    types |= {"empty": pa.bool_(), "unit": pa.string()}
    numbers = set(measured.MEASURES)
    schema = pa.schema(
        [(key, types.get(key, pa.float64() if key in numbers else pa.string())) for key in COLUMNS]
    )
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([{key: row[key] for key in COLUMNS} for row in rows], schema)
    parquet.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


# -- the page


class Card(NamedTuple):
    """A run in the gallery."""

    name: str
    prompt: str
    method: str  # with the settings that it does not share with all
    representation: str
    seed: int
    thumb: str  # "" for none
    film: str
    page: str  # the report of the run alone
    facts: str
    word: str


def _variant(one: Seen, common: frozenset[str]) -> str:
    own = [word for word in one.line.overrides if word not in common]
    return " ".join([one.line.method, *own])


def _shape(one: Seen) -> str:
    return Path(one.line.representation).stem


def html(
    sweep: Sweep,
    found: Standing,
    seen: Sequence[Seen],
    pictures: dict[str, tuple[str, str]],
    files: Sequence[Path],
) -> str:
    """The page: the table, the best runs first, and everything that has no result by its name."""
    common = frozenset.intersection(*(frozenset(one.line.overrides) for one in seen))
    finished = [one for one in seen if one.word in (states.DONE, states.DIVERGED)]
    finished.sort(key=lambda one: one.quality(), reverse=True)
    cards = [_card(sweep, one, common, pictures.get(one.line.digest)) for one in finished]
    entries = _entries(seen, common)
    head, *body = drop_unmeasured(tables.COLUMNS, entries) if entries else [[]]
    others = [
        (word, [one for one in seen if one.word == word])
        for word in (states.FAILED, states.RUNNING, states.WAITING)
    ]
    return render.page(
        "sweep",
        {
            "title": f"{sweep.path.resolve().name}: {len(seen):,} runs",
            "counts": [(word, f"{found.counts[word]:,}") for word in WORDS if found.counts[word]],
            "common": sorted(common),
            "lost": found.manifest.lost() or "",
            "head": head,
            "body": body,
            "note": tables.NOTE,
            "cards": cards,
            "choices": _choices(cards),
            "others": [(word, *_named(some, common)) for word, some in others if some],
            "files": [path.relative_to(sweep.path).as_posix() for path in files],
        },
    )


def _named(some: Sequence[Seen], common: frozenset[str]) -> tuple[list[str], list[list[str]]]:
    """Runs that have no result as a table: its head and its lines, the reasons next to the names
    where there are any."""
    head, lines = ["run"], [[one.line.name] for one in some]
    if any(one.why for one in some):
        head.append("why")
        for one, cells in zip(some, lines, strict=True):
            cells.append(one.why or "-")
    for one, cells in zip(some, lines, strict=True):
        cells += [one.line.prompt, _variant(one, common), _shape(one), str(one.line.seed)]
    return [*head, "prompt", "method", "representation", "seed"], lines


WORDS = (states.DONE, states.DIVERGED, states.FAILED, states.RUNNING, states.WAITING)


def _entries(seen: Sequence[Seen], common: frozenset[str]) -> list[tables.Entry]:
    """Table 1: a line for each representation and method, the best first."""
    groups: dict[tuple[str, str], list[Row | Without]] = {}
    for one in seen:
        group = groups.setdefault((_shape(one), _variant(one, common)), [])
        if isinstance(one.row, Row):
            group.append(one.row)
        elif one.word == states.DIVERGED:
            group.append(Without(one.why, True))
        elif one.word in (states.DONE, states.FAILED):
            group.append(Without(one.why, False))
    made = [tables.summarise(*names, outcomes) for names, outcomes in groups.items() if outcomes]

    def quality(entry: tables.Entry) -> tuple[float, ...]:
        values = (entry.r_precision, entry.clip_score, entry.psnr_db)
        return tuple(-math.inf if value is None else value for value in values)

    return sorted(made, key=quality, reverse=True)


def _card(sweep: Sweep, one: Seen, common: frozenset[str], found: tuple[str, str] | None) -> Card:
    line, row = one.line, one.row
    facts = [one.why] if one.why else []
    if isinstance(row, Row):
        judged = row.judged
        facts += [f"{or_dash(row.psnr_db, '.1f')} dB"] if row.psnr_db is not None else []
        facts += [f"recognised in {100 * judged.r_precision:.0f} % of views"] if judged else []
        facts += [f"CLIP {judged.clip_score:.1f}"] if judged else []
        facts += [f"{row.seconds_total:,.0f} s"]
    report = RunFolder(Path(line.folder)).report_file
    return Card(
        name=line.name,
        prompt=line.prompt,
        method=_variant(one, common),
        representation=_shape(one),
        seed=line.seed,
        thumb=found[0] if found else "",
        film=found[1] if found else "",
        page=_url(report) if (sweep.path / report).is_file() else "",
        facts=", ".join(facts),
        word=one.word,
    )


def _choices(cards: Sequence[Card]) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """What the gallery can be filtered by: the attribute, its label, and each value with its
    runs."""
    made = []
    for key, label in (("method", "Method"), ("representation", "Representation"),
                       ("prompt", "Prompt")):  # fmt: skip
        counted = Counter(getattr(card, key) for card in cards)
        made.append((key, label, sorted(counted.items())))
    return made
