# SPDX-License-Identifier: Apache-2.0
"""The same sentence, seeds, cameras and steps through several representations and guidances.

Every run is a program of its own, so that its peak memory is its own, and one after the other, so
that none disturbs another's seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from representations.telling import each

from .. import build
from ..artefacts import media, run_folder
from ..artefacts.records import StepLine, write_json
from ..artefacts.run_folder import RunFolder, median_seconds
from ..child import Diverged, NotRun
from ..config import Config, guidances, set_plugins
from ..errors import UserError, first_line, nearest
from ..evaluation.protocol import MINI_JUDGE, Judge, Judged, default_clip, mostly_empty
from ..evaluation.truth import RING, truth_of
from ..evaluation.truth import faces as count_faces
from ..families import configure, made_of, require_family
from ..look import Reopened, reopen
from . import study

VIEWS = 8
"""Sides that a finished shape is looked at from."""


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
    clip: str | None = None  # folder or id of a CLIP that judges; None: mini's own, for mini
    nfe: int | None = None  # network samples of each run, which its steps follow from

    def __post_init__(self) -> None:
        require_family(self.family)
        set_plugins({}, self.settings)
        for name in self.guidances:
            if name not in guidances():
                raise UserError(f"guidances={name}: {nearest(name, guidances())}")
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds}: allowed is 1 or more")
        if not self.representations or not self.guidances:
            raise UserError("nothing to compare: name a representation and a guidance")
        if self.nfe is not None and self.names_steps:
            raise UserError("nfe says how many steps each method has: leave steps out, or nfe")

    @property
    def names_steps(self) -> bool:
        """Whether it says how many steps a run has."""
        return self.steps is not None or any(s.startswith("steps=") for s in self.settings)


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
    prompt: str
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
    blank_db: float | None = None  # what no shape at all would have there
    empty: bool = False  # nothing in most views
    judged: Judged | None = None  # what CLIP says of its views
    faces: int | None = None  # where mini knows the object
    curve: list[dict[str, float]] = field(default_factory=list)  # step, seconds, psnr_db


def cells(plan: Plan) -> Iterator[Cell]:
    for seed in range(plan.seeds):
        for representation in plan.representations:
            for guidance in plan.guidances:
                yield Cell(representation, guidance, seed)


def configuration(plan: Plan, cell: Cell) -> Config:
    """The settings of one run. UserError for anything that no run could use."""
    upper: dict[str, Any] = {"prompt": plan.prompt, "seed": cell.seed}
    if plan.steps is not None:
        upper["steps"] = plan.steps
    return configure(plan.family, cell.representation, cell.guidance, plan.settings, upper)


class Missing(NamedTuple):
    """A cell whose run measured nothing."""

    cell: Cell
    outcome: study.Without

    def __str__(self) -> str:
        return f"{self.cell.name}: {self.outcome}"


class Comparison(NamedTuple):
    """Every run of a plan, measured or not."""

    rows: list[Row]
    missing: list[Missing]

    def lacking(self) -> str | None:
        """What must be said besides where runs came to no end; None where all did."""
        named = [*((row.run, row) for row in self.rows),
                 *((one.cell.name, one.outcome) for one in self.missing)]  # fmt: skip
        return study.lacking(named, "comparison")

    def plain(self) -> dict[str, Any]:
        lost = [{**one.cell._asdict(), **one.outcome._asdict()} for one in self.missing]
        return {"rows": [asdict(row) for row in self.rows], "missing": lost}


def compare(plan: Plan, out: Path, say: Callable[[str], None]) -> Comparison:
    """Run everything in ``plan`` below the folder ``out``; compare.json grows with each run. What
    an earlier call left there is not done again, and a run that came to no end is tried again."""
    wanted = {cell: configuration(plan, cell) for cell in cells(plan)}  # mistakes come first
    check_prompts(wanted.values(), say)
    made = Comparison([], [])
    with study.opened(out, "compare"):
        judge = judge_for(list(wanted.values()), plan.clip)
        for number, (cell, config) in enumerate(each(list(wanted.items()), "run"), start=1):
            say(f"run {number} of {len(wanted)}: {cell.name}, {config.steps} steps")
            found = outcome(cell.name, config, cell, out, judge, say)
            if isinstance(found, Row):
                made.rows.append(found)
            else:
                made.missing.append(Missing(cell, found))
            report = {"plan": asdict(plan), **made.plain(), **run_folder.environment()}
            write_json(out / "compare.json", report)
    return made


def outcome(
    name: str,
    config: Config,
    cell: Cell,
    out: Path,
    judge: Judge | None,
    say: Callable[[str], None],
) -> Row | study.Without:
    """What the run of that name below ``out`` measured, made if need be, or why it did not."""
    try:
        family = "mini" if config.model.embedded else "sdi"
        origin = made_of(family, cell.representation, cell.guidance)
        return measure(study.obtain(name, config, out, say, origin), cell, out, judge)
    except (NotRun, Diverged) as error:
        without = study.Without(str(error), isinstance(error, Diverged))
        say(f"  {without}")
        return without


def check_prompts(configs: Iterable[Config], say: Callable[[str], None]) -> None:
    """Refuse sentences that cannot work before the first run, and say which work only in part."""
    for note in dict.fromkeys(build.check_prompt(config) for config in configs):
        if note is not None:
            say(note)


def judge_for(configs: Sequence[Config], clip: str | None) -> Judge | None:
    """Who looks at the pictures: the CLIP of that name, else mini's own where every run is mini's,
    else nobody."""
    source = clip or default_clip(configs)
    if clip is None and source != MINI_JUDGE:
        return None
    return Judge.open(source, build.device(configs[0].device))


def measure(run: RunFolder, cell: Cell, out: Path, judge: Judge | None) -> Row:
    """Read a finished run below ``out``, and look at its shape from all sides."""
    opened = reopen(run.path)
    config = opened.config
    lines, summary = run.measured_stats(config.steps), run.summary()
    psnr_db, blank_db, faces = _against_truth(opened) or (None, None, None)
    size = max(config.resolution, judge.clip.size if judge else 0)
    cameras = config.views.showcase(VIEWS, size, config.output.turntable.elevation_deg)
    pictures, alpha = opened.stage.look(cameras)
    owned = {
        id(p): p.numel()
        for o in opened.renderer.optimizers
        for g in o.param_groups
        for p in g["params"]
    }
    curve = list(_curve(run, config, lines))
    return Row(
        representation=cell.representation,
        guidance=cell.guidance,
        seed=cell.seed,
        prompt=config.prompt,
        run=str(run.path.relative_to(out)),
        steps=len(lines),
        seconds_per_step=median_seconds(lines),
        seconds_total=summary.seconds,
        evaluations_per_step=statistics.mean(line.evaluations for line in lines),
        peak_memory_mb=summary.peak_memory_mb,
        peak_cuda_memory_mb=summary.peak_cuda_memory_mb,
        parameters=sum(owned.values()),
        size=lines[-1].size,
        unit=lines[-1].unit,
        files={path.name: path.stat().st_size for path in run.finals()},
        psnr_db=psnr_db,
        blank_db=blank_db,
        empty=mostly_empty(pictures, alpha),
        judged=judge(pictures.nan_to_num().clamp(0, 1), config.prompt) if judge else None,
        faces=faces,
        curve=curve,
    )


def _against_truth(opened: Reopened) -> tuple[float, float, int] | None:
    """Mean PSNR in dB of the views, and of white pictures in their place, and the number of faces,
    where mini knows the object."""
    from ..mini.corpus import SIZE, render_truth

    config = opened.config
    known = truth_of(config)
    if known is None:
        return None
    cameras = config.views.showcase(VIEWS, SIZE, config.output.turntable.elevation_deg)
    truth = render_truth(*known, cameras)
    seen = media.psnr(opened.stage.draw(cameras), truth)
    blank = media.psnr(torch.ones_like(truth), truth)
    ring = config.views.showcase(RING, SIZE, config.output.turntable.elevation_deg)
    around = torch.arange(RING) * (360.0 / RING)
    found = count_faces(opened.stage.draw(ring), render_truth(*known, ring, samples=2), around)
    return float(seen.mean()), float(blank.mean()), found


def _curve(run: RunFolder, config: Config, lines: Sequence[StepLine]) -> Iterator[dict[str, float]]:
    """PSNR of the previews, by step and by seconds of training."""
    from ..mini.corpus import render_truth

    known = truth_of(config)
    if known is None:
        return
    seconds = np.cumsum([sum(line.seconds.values()) for line in lines])
    for path in sorted((run.path / "previews").glob("step_*.png")):
        step, pictures = _preview(path, config.resolution, len(lines))
        cameras = config.views.showcase(
            len(pictures), config.resolution, config.output.turntable.elevation_deg
        )
        psnr = float(media.psnr(pictures, render_truth(*known, cameras)).mean())
        yield {"step": step, "seconds": float(seconds[step - 1]), "psnr_db": psnr}


def _preview(path: Path, size: int, steps: int) -> tuple[int, torch.Tensor]:
    """How many steps were done, and the views [V, 3, size, size] in [0, 1]. UserError for a file
    that is no sheet of this run."""
    from PIL import Image

    digits = path.stem.removeprefix("step_")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if not digits.isdecimal() or not 1 <= int(digits) <= steps:
                raise ValueError(f"the run has {steps} steps")
            if height != size or width % size or width > 100 * size:
                raise ValueError(f"it is {width} x {height} pixels, views are {size} x {size}")
            views = media.tiles(image, width // size, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is no sheet of views of this run ({first_line(error)}): delete it to compare "
            "without it"
        ) from None
    return int(digits), views
