# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: what is in it, and how it is opened without damaging another one.

::

    outputs/a-red-mug-1/
      config.yaml      every setting; 'sdi-gs generate --config' on it replays the run
      stats.jsonl      one line per step
      previews/        contact sheets while training
      checkpoints/     the two newest states
      final.ply (splats) or final.glb (mesh)  turntable.mp4  preview.png  summary.json
      report.html      all of it on one page
      particle_2.ply ... particles.png   the other shapes, and all of them, of a run with particles
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from representations.files import open_own, write_bytes

from ..config import Config, from_plain, read_tree
from ..errors import UserError, command
from ..origin import Origin, noted, read_origin
from ..trainer import StepReport
from . import records
from .records import Peaks, StepLine, Summary

OUTPUTS = Path("outputs")

STAGES = ("render", "encode", "guidance", "backward", "refine")
"""The parts of a step whose seconds stats.jsonl has."""

WARM_UP = 0.1
"""This share of the steps, at least three, is left out of the seconds: kernels compile there."""


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def stats_file(self) -> Path:
        return self.path / "stats.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def final(self, ending: str) -> Path:
        return self.path / f"final.{ending}"

    def particle(self, number: int, ending: str) -> Path:
        """The asset of the second or a later shape of a run that made several, from 2."""
        return self.path / f"particle_{number}.{ending}"

    @property
    def particles_png(self) -> Path:
        return self.path / "particles.png"

    def finals(self) -> list[Path]:
        """The assets that exist."""
        return sorted(self.path.glob("final.*"))

    @property
    def preview_png(self) -> Path:
        return self.path / "preview.png"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    def turntable(self, ending: str) -> Path:
        return self.path / f"turntable.{ending}"

    def preview(self, step: int) -> Path:
        return self.path / "previews" / f"step_{step:07d}.png"

    def previews(self, most: int | None = None) -> list[tuple[int, Path]]:
        """How many steps were done, and the contact sheet of then, in order; of more than ``most``
        (2 or more) that many, evenly chosen, the first and the last included."""
        found = (self.path / "previews").glob("step_*.png")
        named = [(path.stem.removeprefix("step_"), path) for path in found]
        sheets = sorted((int(step), path) for step, path in named if step.isdecimal())
        if most is None or len(sheets) <= most:
            return sheets
        return [sheets[round(k * (len(sheets) - 1) / (most - 1))] for k in range(most)]

    def config(self) -> Config:
        """The settings of the run. UserError names the file where they are none."""
        tree = read_tree(self.config_file)
        if not tree:
            raise UserError(
                f"{self.config_file} holds no settings any more: put the run's own config.yaml "
                "back, or start another run"
            )
        try:
            return from_plain(tree)
        except UserError as error:
            raise UserError(f"{self.config_file}: {error}") from None

    def origin(self) -> Origin | None:
        """What the run was made of; None for one that did not note it."""
        return read_origin(self.config_file)

    def append(self, report: StepReport) -> None:
        """One line of stats.jsonl."""
        line = records.to_json(records.line_of(report, peak_memory())) + "\n"
        with os.fdopen(open_own(self.stats_file), "a", encoding="utf-8") as file:
            file.write(line)

    def read_stats(self) -> records.Stats:
        """The lines of stats.jsonl, and a sentence for each damaged one."""
        return records.read_stats(self.stats_file)

    def stats(self) -> list[StepLine]:
        """The lines of stats.jsonl that are whole."""
        return self.read_stats().lines

    def measured_stats(self, steps: int) -> list[StepLine]:
        """The lines of a finished run of that many steps. UserError unless all of them are whole:
        what is measured on less would look like the run's."""
        again = "make the run again: " + command("generate", "--config", self.config_file)
        return records.require_complete(self.stats_file, steps, again)

    def summary(self) -> Summary:
        """What a finished run came to. UserError where its file is damaged."""
        again = f"to have it written again: {command('resume', self.path)}"
        return records.read_summary(self.summary_file, again)

    def truncate_stats(self, steps_done: int) -> list[str]:
        """Forget the steps after the checkpoint: a resumed run writes them again. What is said to
        the user about steps before it whose lines were damaged and are lost."""
        found = self.read_stats()
        kept = [
            text + "\n"
            for line, text in zip(found.lines, found.texts, strict=True)
            if line.step < steps_done
        ]
        write_bytes(self.stats_file, "".join(kept).encode())
        told = [records.lost(found.damage)] if found.damage else []
        if gaps := records.missing_steps(found.lines, steps_done):
            told.append(f"{self.stats_file} has no lines any more for the steps {gaps}")
        return told

    def seconds_per_stage(self) -> dict[str, float]:
        """Sums over all steps, resumed ones counted once."""
        totals: dict[str, float] = {}
        for line in self.stats():
            for stage, seconds in line.seconds.items():
                totals[stage] = totals.get(stage, 0.0) + seconds
        return {stage: round(seconds, 2) for stage, seconds in totals.items()}

    def last_size(self) -> int | None:
        """Primitives after the last step."""
        lines = self.stats()
        return lines[-1].size if lines else None

    def peak_memory(self) -> Peaks:
        """The most memory that any of the processes held that made this run, this one included."""
        return records.largest_memory([*self.stats(), peak_memory()])

    def write_summary(self, **measured: Any) -> None:
        records.write_json(
            self.summary_file, {**measured, **environment(), **self.peak_memory().plain()}
        )


def begin(run: RunFolder, config: Config, origin: Origin | None = None) -> RunFolder:
    """Write the settings into an empty folder, which makes it the folder of a run; ``origin``: what
    they were made of."""
    write_bytes(run.config_file, noted(config, origin).encode())
    run.checkpoints.mkdir(exist_ok=True)
    return run


def open_existing(path: Path) -> RunFolder:
    """A run folder that 'generate' made."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give the folder of a run, such as outputs/...")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the folder of a run, such as outputs/...")
    run = RunFolder(path)
    if not run.config_file.is_file():
        raise UserError(f"{path} has no config.yaml, so it is not the folder of a run")
    return run


def slug(prompt: str) -> str:
    """A short folder name: 'A red mug, 3D!' -> 'a-red-mug-3d'."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:48].strip("-") or "run"


def environment() -> dict[str, Any]:
    """Versions and hardware, so that a number in a table can be traced."""
    packages = ("sdi-gs", "torch", "diffusers", "transformers", "gsplat", "numba", "numpy")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    cuda = torch.cuda.is_available()
    return {
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
        },
    }


def peak_memory() -> Peaks:
    """The most memory this process has held."""
    here = cuda = None
    if sys.platform != "win32":
        import resource

        # Linux counts kilobytes, macOS bytes.
        unit = 2**20 if sys.platform == "darwin" else 2**10
        here = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit)
    if torch.cuda.is_available():
        cuda = float(torch.cuda.max_memory_allocated() // 2**20)
    return Peaks(peak_memory_mb=here, peak_cuda_memory_mb=cuda)


def settled(lines: Sequence[StepLine]) -> Sequence[StepLine]:
    """The steps whose seconds count: all but the first ones, and at least the last."""
    return lines[min(len(lines) - 1, max(3, int(WARM_UP * len(lines)))) :]


def median_seconds(lines: Sequence[StepLine]) -> dict[str, float]:
    """Seconds of a step by stage: medians over the settled steps of a non-empty stats.jsonl."""
    counted = settled(lines)
    return {
        stage: statistics.median(line.seconds.get(stage, 0.0) for line in counted)
        for stage in STAGES
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()
