# SPDX-License-Identifier: Apache-2.0
"""Tables of whole runs: Table 1 (every method), Fig. 8, Fig. 11 and Fig. 14 (chains of changes).

Each line is a variant on the same prompts: quality, divergence, time and memory.
"""

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
class Variant:
    """A method with settings of its own."""

    label: str
    guidance: str
    settings: tuple[str, ...] = ()  # key=value


@dataclass(frozen=True)
class Entry:
    """One variant on one representation, over all prompts and seeds."""

    representation: str
    variant: str
    runs: int
    diverged_percent: float  # failed, empty, or far from any object
    psnr_db: float | None  # mean of the others, where mini knows the objects
    psnr_spread_db: float | None  # standard deviation over them
    seconds: float | None  # mean of a whole run
    ms_per_step: float | None
    network_samples_per_step: float | None
    peak_memory_mb: float | None  # largest


def methods(names: Sequence[str]) -> tuple[Variant, ...]:
    """Table 1: the methods as they are."""
    return tuple(Variant(name, name) for name in names)


def chain(name: str, family: str) -> tuple[Variant, ...]:
    """The variants of ``fig8``, ``fig11`` or ``fig14`` with the scales of a family of presets."""
    small = family == "mini"
    few = "resolution=32" if small else "resolution=64"
    random_t = (
        "guidance.t.high={start: 0.98, end: 0.98}",
        "guidance.t.low={start: 0.02, end: 0.02}",
    )
    negative = f"noise.cfg_scale={-2.0 if small else -7.5}"
    wide = ("guidance.t.high={start: 0.98, end: 0.98}", "guidance.t.low={start: 0.1, end: 0.1}")
    falling = ("guidance.t.high={start: 0.98, end: 0.25}", "guidance.t.low=null")
    return {
        "fig8": (
            Variant("sds, fewer pixels", "sds", (few,)),
            Variant("sds", "sds"),
            Variant("+ falling t", "sds_annealed"),
            Variant("+ inversion: sdi", "sdi"),
            Variant("sdi, fewer pixels", "sdi", (few,)),
            Variant("sdi, random t", "sdi", random_t),
        ),
        "fig11": tuple(
            Variant(f"{n} inversion steps", "sdi", (f"noise.steps_per_unit={n}",))
            for n in (3, 5, 10, 20, 30)
        ),
        "fig14": (
            Variant("ism", "ism"),
            Variant("+ larger t", "ism", wide),
            Variant("+ falling t", "ism", falling),
            Variant("+ negative inversion", "ism", (*falling, negative)),
            Variant("+ all of kappa: sdi", "sdi", (*falling, negative)),
        ),
    }[name]


CHAINS = {
    "fig8": "Fig. 8: from DreamFusion to SDI, change by change",
    "fig11": "Fig. 11: the number of inversion steps, by time and quality",
    "fig14": "Fig. 14: from interval score matching to SDI",
}


def measure(
    variants: Sequence[Variant],
    plan: Plan,
    prompts: Sequence[str],
    out: Path,
    say: Callable[[str], None],
) -> list[Entry]:
    """Run everything below the new folder ``out``; table.json grows with each line.

    ``plan`` says on what; its prompt, guidances and settings are those of each variant and prompt.
    A run that fails counts as diverged; its log is kept.
    """
    if not prompts:
        raise UserError('no prompt: name at least one in quotes, such as "a red mug"')
    run_folder.require_free(out)
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for representation in plan.representations:
        for line, variant in enumerate(variants):
            rows: list[Row | None] = []
            for number, prompt in enumerate(prompts):
                one = dataclasses.replace(
                    plan, prompt=prompt, representations=(representation,),
                    guidances=(variant.guidance,),
                    settings=(*plan.settings, *variant.settings),
                )  # fmt: skip
                name = f"{Path(representation).stem}-{line}-{number}"
                say(f"{Path(representation).stem}, {variant.label}: {prompt}")
                rows += _rows(one, out / "runs" / name, say)
            entries.append(summarise(representation, variant.label, rows))
            report = {"plan": asdict(plan), "prompts": list(prompts),
                      "variants": [asdict(v) for v in variants],
                      "entries": [asdict(entry) for entry in entries],
                      **run_folder.environment()}  # fmt: skip
            write_atomic(out / "table.json", (json.dumps(report, indent=2) + "\n").encode())
    return entries


def _rows(plan: Plan, out: Path, say: Callable[[str], None]) -> list[Row | None]:
    """One per seed; None for a run that failed."""
    try:
        return list(compare(plan, out, lambda text: None))
    except RunFailure as error:
        say(f"  {error}")
        done = out / "compare.json"
        finished = json.loads(done.read_text())["rows"] if done.exists() else []
        return [*(Row(**row) for row in finished), *[None] * (plan.seeds - len(finished))]


def summarise(representation: str, variant: str, rows: Sequence[Row | None]) -> Entry:
    """One line of the table."""
    done = [row for row in rows if row is not None]
    good = [row for row in done if row.psnr_db is None or row.psnr_db >= DIVERGED_DB]
    values = [row.psnr_db for row in good if row.psnr_db is not None]
    memory = [m for row in done if (m := row.peak_cuda_memory_mb or row.peak_memory_mb)]

    def mean(numbers: list[float]) -> float | None:
        return statistics.mean(numbers) if numbers else None

    return Entry(
        representation=representation,
        variant=variant,
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

    lines = [["representation", "variant", "runs", "diverged %", "PSNR dB", "+-", "seconds",
              "ms/step", "network/step", "peak MB"]]  # fmt: skip
    lines += [
        [
            Path(e.representation).stem, e.variant, str(e.runs), f"{e.diverged_percent:.0f}",
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
