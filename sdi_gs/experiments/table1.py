# SPDX-License-Identifier: Apache-2.0
"""Table 1 of the paper: every method on the same prompts: quality, divergence, time, memory."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import run_folder
from ..checkpoint import write_atomic
from ..compare import Plan, Row, compare
from ..errors import RunFailure, UserError

DIVERGED_DB = 14.0
"""Below this mean PSNR there is no object: a white picture has about 11 to 13 dB."""


@dataclass(frozen=True)
class Entry:
    """One method on one representation, over all prompts and seeds."""

    representation: str
    guidance: str
    runs: int
    diverged_percent: float  # failed, empty, or far from any object
    psnr_db: float | None  # mean of the others, where mini knows the objects
    psnr_spread_db: float | None  # standard deviation over them
    seconds: float | None  # mean of a whole run
    ms_per_step: float | None
    network_samples_per_step: float | None
    peak_memory_mb: float | None  # largest


def table1(
    plan: Plan, prompts: Sequence[str], out: Path, say: Callable[[str], None]
) -> list[Entry]:
    """Run everything below the new folder ``out``; table1.json grows with each method.

    ``plan`` says what is compared; its prompt is replaced by each of ``prompts``. A run that fails
    counts as diverged; its log is kept.
    """
    if not prompts:
        raise UserError('no prompt: name at least one in quotes, such as "a red mug"')
    run_folder.require_free(out)
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for representation in plan.representations:
        for guidance in plan.guidances:
            rows: list[Row | None] = []
            for number, prompt in enumerate(prompts):
                one = dataclasses.replace(
                    plan, prompt=prompt, representations=(representation,), guidances=(guidance,)
                )
                name = f"{Path(representation).stem}-{guidance}-{number}"
                rows += _rows(one, out / "runs" / name, say)
            entries.append(summarise(representation, guidance, rows))
            report = {"plan": asdict(plan), "prompts": list(prompts),
                      "entries": [asdict(entry) for entry in entries],
                      **run_folder.environment()}  # fmt: skip
            write_atomic(out / "table1.json", (json.dumps(report, indent=2) + "\n").encode())
    return entries


def _rows(plan: Plan, out: Path, say: Callable[[str], None]) -> list[Row | None]:
    """One per seed; None for a run that failed."""
    say(f"{plan.representations[0]}, {plan.guidances[0]}: {plan.prompt}")
    try:
        return list(compare(plan, out, lambda text: None))
    except RunFailure as error:
        say(f"  {error}")
        done = out / "compare.json"
        finished = json.loads(done.read_text())["rows"] if done.exists() else []
        return [*(Row(**row) for row in finished), *[None] * (plan.seeds - len(finished))]


def summarise(representation: str, guidance: str, rows: Sequence[Row | None]) -> Entry:
    """One line of the table."""
    done = [row for row in rows if row is not None]
    good = [row for row in done if row.psnr_db is None or row.psnr_db >= DIVERGED_DB]
    values = [row.psnr_db for row in good if row.psnr_db is not None]
    memory = [m for row in done if (m := row.peak_cuda_memory_mb or row.peak_memory_mb)]

    def mean(numbers: list[float]) -> float | None:
        return statistics.mean(numbers) if numbers else None

    return Entry(
        representation=representation,
        guidance=guidance,
        runs=len(rows),
        diverged_percent=100.0 * (len(rows) - len(good)) / len(rows),
        psnr_db=mean(values),
        psnr_spread_db=statistics.pstdev(values) if values else None,
        seconds=mean([row.seconds_total for row in done]),
        ms_per_step=mean([1e3 * sum(row.seconds_per_step.values()) for row in done]),
        network_samples_per_step=mean([row.evaluations_per_step for row in done]),
        peak_memory_mb=max(memory, default=None),
    )


def text(entries: Sequence[Entry]) -> str:
    """The table for a terminal."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [["representation", "guidance", "runs", "diverged %", "PSNR dB", "+-", "seconds",
              "ms/step", "network/step", "peak MB"]]  # fmt: skip
    lines += [
        [
            Path(e.representation).stem, e.guidance, str(e.runs), f"{e.diverged_percent:.0f}",
            number(e.psnr_db, ".2f"), number(e.psnr_spread_db, ".2f"), number(e.seconds, ".0f"),
            number(e.ms_per_step, ".0f"), number(e.network_samples_per_step, ".1f"),
            number(e.peak_memory_mb, ".0f"),
        ]
        for e in entries
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
