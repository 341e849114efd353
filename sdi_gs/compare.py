# SPDX-License-Identifier: Apache-2.0
"""The same sentence, seeds, cameras and steps through several representations and guidances.

Every run is a program of its own, so that its peak memory is its own, and one after the other, so
that none disturbs another's seconds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from . import build, media, run_folder
from .checkpoint import write_atomic
from .config import (
    Config,
    find,
    from_plain,
    guidances,
    read_with_base,
    to_plain,
    with_guidance,
)
from .errors import RunFailure, UserError, nearest
from .run import draw, reopen
from .run_folder import RunFolder, median_seconds
from .strict import set_by_path

PRESETS = {
    "mini": {"gaussians": "mini", "instant_ngp": "mini_nerf"},
    "sdi": {"gaussians": "sdi_gaussians", "instant_ngp": "sdi_nerf"},
}
"""Which preset holds a representation, by family; any other preset or file goes by its name."""


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    prompt: str
    family: str = "mini"
    representations: tuple[str, ...] = ("gaussians", "instant_ngp")
    guidances: tuple[str, ...] = ("sdi",)
    seeds: int = 1
    steps: int | None = None  # None: what each preset says
    settings: tuple[str, ...] = ()  # key=value, for every run

    def __post_init__(self) -> None:
        if self.family not in PRESETS:
            raise UserError(f"--family {self.family}: {nearest(self.family, PRESETS)}")
        for name in self.guidances:
            if name not in guidances():
                raise UserError(f"--guidances {name}: {nearest(name, guidances())}")
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: allowed is 1 or more")
        if not self.representations or not self.guidances:
            raise UserError("nothing to compare: name a representation and a guidance")


class Cell(NamedTuple):
    """One run of a comparison."""

    representation: str
    guidance: str
    seed: int

    @property
    def name(self) -> str:
        return f"{Path(self.representation).stem}-{self.guidance}-{self.seed}"


@dataclass
class Row:
    """What one run measured."""

    representation: str
    guidance: str
    seed: int
    run: str  # its folder, relative to the comparison's
    steps: int
    seconds_per_step: dict[str, float]  # by stage, medians after the warm-up
    seconds_total: float  # loading and drawing included
    evaluations_per_step: float
    peak_memory_mb: float | None
    peak_cuda_memory_mb: float | None
    parameters: int
    size: int  # splats, or occupied cells
    unit: str
    files: dict[str, int]  # bytes
    psnr_db: float | None  # against the true object, where mini knows it
    curve: list[dict[str, float]] = field(default_factory=list)  # step, seconds, psnr_db


def cells(plan: Plan) -> Iterator[Cell]:
    for seed in range(plan.seeds):
        for representation in plan.representations:
            for guidance in plan.guidances:
                yield Cell(representation, guidance, seed)


def configuration(plan: Plan, cell: Cell) -> Config:
    """The settings of one run. UserError for anything that no run could use."""
    preset = PRESETS[plan.family].get(cell.representation, cell.representation)
    tree = with_guidance(read_with_base(find(preset)), cell.guidance)
    for assignment in plan.settings:
        set_by_path(Config, tree, assignment)
    tree |= {"prompt": plan.prompt, "seed": cell.seed}
    if plan.steps is not None:
        tree["steps"] = plan.steps
    return from_plain(tree)


def compare(plan: Plan, out: Path, say: Callable[[str], None]) -> list[Row]:
    """Run everything in ``plan`` below the new folder ``out``; compare.json grows with each run.

    Raises RunFailure when a run fails; what is done by then is kept.
    """
    wanted = {cell: configuration(plan, cell) for cell in cells(plan)}  # mistakes come first
    build.check_prompt(next(iter(wanted.values())))
    run_folder.require_free(out)
    (out / "runs").mkdir(parents=True)
    rows: list[Row] = []
    for number, (cell, config) in enumerate(wanted.items(), start=1):
        say(f"run {number} of {len(wanted)}: {cell.name}, {config.steps} steps")
        rows.append(_measure(_generate(cell, config, out), cell, out))
        report = {"plan": asdict(plan), "rows": [asdict(row) for row in rows]}
        report |= run_folder.environment()
        write_atomic(out / "compare.json", (json.dumps(report, indent=2) + "\n").encode())
    return rows


def _generate(cell: Cell, config: Config, out: Path) -> RunFolder:
    path, log = out / "runs" / cell.name, out / "runs" / f"{cell.name}.log"
    settings = out / "runs" / f"{cell.name}.yaml"
    settings.write_text(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-m", "sdi_gs", "generate", "--config", str(settings),
               "--out", str(path)]  # fmt: skip
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
        raise RunFailure(f"the run {cell.name} failed: {last} (all of it: {log})")
    return RunFolder(path)


def _measure(run: RunFolder, cell: Cell, out: Path) -> Row:
    lines = list(run.stats())
    summary = json.loads(run.summary_file.read_text(encoding="utf-8"))
    _, config, shape, _ = reopen(run.path)
    owned = {id(p): p.numel() for g in shape.optimizer.param_groups for p in g["params"]}
    curve = list(_curve(run, config, lines))
    return Row(
        representation=cell.representation,
        guidance=cell.guidance,
        seed=cell.seed,
        run=str(run.path.relative_to(out)),
        steps=len(lines),
        seconds_per_step=median_seconds(lines),
        seconds_total=summary["seconds"],
        evaluations_per_step=statistics.mean(line["evaluations"] for line in lines),
        peak_memory_mb=summary["peak_memory_mb"],
        peak_cuda_memory_mb=summary["peak_cuda_memory_mb"],
        parameters=sum(owned.values()),
        size=summary["size"],
        unit=lines[-1]["unit"],
        files={path.name: path.stat().st_size for path in run.finals()},
        psnr_db=_final_psnr(config, shape),
        curve=curve,
    )


def truth_of(config: Config) -> tuple[str, str] | None:
    """(kind, colour) where the prompt names one of each that mini was taught."""
    from .mini.corpus import COLORS, KINDS

    words = "".join(c if c.isalnum() else " " for c in config.prompt.lower()).split()
    kinds = [word for word in words if word in KINDS]
    colors = [word for word in words if word in COLORS]
    if config.model.source != build.MINI or len(kinds) != 1 or len(colors) != 1:
        return None
    return kinds[0], colors[0]


def _final_psnr(config: Config, shape: Any) -> float | None:
    from .mini.corpus import SIZE, render_truth

    known = truth_of(config)
    if known is None:
        return None
    cameras = config.views.showcase(8, SIZE, config.output.turntable.elevation_deg)
    return float(media.psnr(draw(config, shape, cameras), render_truth(*known, cameras)).mean())


def _curve(
    run: RunFolder, config: Config, lines: list[dict[str, Any]]
) -> Iterator[dict[str, float]]:
    """PSNR of the previews, by step and by seconds of training."""
    from PIL import Image

    from .mini.corpus import render_truth

    known = truth_of(config)
    if known is None:
        return
    size = config.resolution
    seconds = np.cumsum([sum(line["seconds"].values()) for line in lines])
    for path in sorted((run.path / "previews").glob("step_*.png")):
        step = int(path.stem.removeprefix("step_"))
        sheet = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255.0
        views = sheet.shape[1] // size
        pictures = sheet.reshape(size, views, size, 3).permute(1, 3, 0, 2)
        cameras = config.views.showcase(views, size, config.output.turntable.elevation_deg)
        psnr = float(media.psnr(pictures, render_truth(*known, cameras)).mean())
        yield {"step": step, "seconds": float(seconds[step - 1]), "psnr_db": psnr}
