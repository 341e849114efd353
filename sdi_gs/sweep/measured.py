# SPDX-License-Identifier: Apache-2.0
"""What finished runs of a sweep measure, as a table of whole runs does, each looked at once.

A measure is kept in ``report/measured/<block>/<digest>.json`` beside the runs, with the summary
that it was taken of and the judge who gave it: a run that was made again is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from representations.files import write_bytes

from ..artefacts.run_folder import RunFolder
from ..errors import UserError, first_line
from ..evaluation.protocol import Judge, Judged
from ..experiments.compare import Cell, Row, judge_for, measure
from .manifest import Line, Sweep
from .plan import configuration

EVERY = 20  # measures between two words about how far they are


class Unmeasured(NamedTuple):
    """A finished run that could not be measured."""

    why: str


def path_of(sweep: Sweep, line: Line) -> Path:
    return sweep.path / "report" / "measured" / line.block / f"{line.digest}.json"


def known(sweep: Sweep, line: Line, judge: str | None) -> Row | None:
    """What was measured of a run by that judge; None where it was not, or of an earlier run."""
    try:
        tree = json.loads(path_of(sweep, line).read_text(encoding="utf-8"))
        if tree["of"] != _stamp(sweep, line) or tree["judge"] != judge:
            return None
        row = dict(tree["row"])
        if row.keys() != {one.name for one in fields(Row)}:
            return None  # an earlier sdi-gs measured less
        judged = row.pop("judged")
        return Row(**row, judged=None if judged is None else Judged(**judged))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(sweep: Sweep, line: Line, judge: str | None, row: Row) -> None:
    """Write down what was measured. OSError where that is refused."""
    path = path_of(sweep, line)
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {"of": _stamp(sweep, line), "judge": judge, "row": asdict(row) | {"curve": []}}
    write_bytes(path, json.dumps(tree).encode())


def _stamp(sweep: Sweep, line: Line) -> list[int]:
    found = RunFolder(sweep.run(line)).summary_file.stat()
    return [found.st_size, found.st_mtime_ns]


def all_of(
    sweep: Sweep, done: Sequence[Line], clip: str | None, say: Callable[[str], None]
) -> dict[str, Row | Unmeasured]:
    """Of every finished run, by the digest of its line. UserError where no judge can be loaded."""
    named = clip or "default"
    found: dict[str, Row | Unmeasured] = {}
    missing = []
    for line in done:
        row = known(sweep, line, named)
        if row is None:
            missing.append(line)
        else:
            found[line.digest] = row
    if missing:
        say(f"measuring {len(missing):,} runs; what is measured is kept")
        judge = _judge(missing, clip)
        for number, line in enumerate(missing, start=1):
            found[line.digest] = _one(sweep, line, judge, named)
            if number % EVERY == 0:
                say(f"  {number:,} of {len(missing):,}")
    return found


def _judge(lines: Sequence[Line], clip: str | None) -> Judge | None:
    kinds = {(line.family, line.representation, line.method, line.overrides): line
             for line in lines}  # fmt: skip
    configs = []
    for line in kinds.values():
        try:
            configs.append(configuration(line))
        except UserError:
            continue  # its own measure says so
    return judge_for(configs, clip) if configs else None


def _one(sweep: Sweep, line: Line, judge: Judge | None, named: str) -> Row | Unmeasured:
    """OSError where what was measured cannot be written down."""
    cell = Cell(line.representation, line.method, line.seed)
    try:
        row = measure(RunFolder(sweep.run(line)), cell, sweep.path, judge)
    except UserError as error:
        return Unmeasured(first_line(error))
    keep(sweep, line, named, row)
    return row


def plain(row: Row | Unmeasured | None) -> dict[str, Any]:
    """The measures of a run for a table with a line a run; None where there are none."""
    if not isinstance(row, Row):
        return dict.fromkeys(MEASURES)
    judged = row.judged
    return {
        "psnr_db": row.psnr_db,
        "blank_db": row.blank_db,
        "empty": row.empty,
        "faces": row.faces,
        "clip_score": judged.clip_score if judged else None,
        "iqa_quality": judged.iqa["quality"] if judged else None,
        "r_precision": judged.r_precision if judged else None,
        "seconds": row.seconds_total,
        "ms_per_step": 1e3 * sum(row.seconds_per_step.values()),
        "network_samples_per_step": row.evaluations_per_step,
        "peak_memory_mb": row.peak_memory_mb,
        "peak_cuda_memory_mb": row.peak_cuda_memory_mb,
        "parameters": row.parameters,
        "size": row.size,
        "unit": row.unit,
    }


MEASURES = (
    "psnr_db", "blank_db", "empty", "faces", "clip_score", "iqa_quality", "r_precision", "seconds",
    "ms_per_step", "network_samples_per_step", "peak_memory_mb", "peak_cuda_memory_mb",
    "parameters", "size", "unit",
)  # fmt: skip
