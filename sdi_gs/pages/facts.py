# SPDX-License-Identifier: Apache-2.0
"""A run as its folder has it, for pages. Only files are read: no model, no checkpoint and no device
is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..artefacts import run_folder
from ..artefacts.records import Peaks, StepLine, Summary, largest_memory, lost
from ..artefacts.run_folder import RunFolder
from ..config import Config
from ..errors import UserError, command
from . import parts

BOOKKEEPING = {"config.yaml", "stats.jsonl", "summary.json", "preview.png", "report.html"}


class File(NamedTuple):
    """A file of a run on a page."""

    name: str
    holds: str
    url: str  # "" where there is no such file


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

    def exported(self, folder: Path) -> list[File]:
        """What lies in the folder of the run to be used, on a page in ``folder``."""
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
        films = [path for path in (self.turntable(),) if path is not None]
        held |= {path.name: f"film, {path.stat().st_size:,} bytes" for path in films}
        there = [File(name, told, parts.link(self.run.path / name, folder))
                 for name, told in held.items()]  # fmt: skip
        return [*there, *(File(name, told, "") for name, told in missing.items())]


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
