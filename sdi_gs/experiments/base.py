# SPDX-License-Identifier: Apache-2.0
"""What every experiment is given and leaves."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Generator, Tensor

from representations.files import write_bytes

from .. import build
from ..artefacts import media
from ..artefacts.records import to_json
from ..config import Config
from ..diffusion.base import Denoiser
from ..errors import UserError
from ..guidance.inversion import Eps
from ..guidance.noise import Noised, NoiseInput, NoiseStrategy
from ..guidance.predict import GuidedPredictor
from ..guidance.prompts import Conditions, PromptSet
from ..guidance.sampling import STREAM, ddim_sample, pure_noise
from ..guidance.times import Times
from ..guidance.viewpoints import Viewpoints
from ..pages.plots import Line, plot, standalone
from ..pages.text import text_table
from ..ramp import Progress

SAMPLING_STEPS = 30  # of DDIM, where an experiment needs pictures of the model itself


@dataclass(frozen=True)
class Bench:
    """A model, a prompt and clean latents to measure on."""

    denoiser: Denoiser
    conditions: Conditions  # of every sample
    clean: Tensor  # [N, c, h, w] the model's own DDIM samples
    cfg_scale: float  # forward, of the configuration
    config: Config
    seed: int

    def predictor(self) -> GuidedPredictor:
        return GuidedPredictor(self.denoiser, self.conditions)

    def under(self, cfg_scale: float) -> Eps:
        """The noise that the model sees, at that scale of guidance."""
        predict = self.predictor()
        return lambda x_t, t: predict(x_t, t, cfg_scale)

    def rng(self) -> Generator:
        """Not the stream that the samples were drawn from."""
        return Generator().manual_seed(self.seed + STREAM)

    def noised(
        self, noise: NoiseStrategy, z: Tensor, t: Tensor, predict: GuidedPredictor, rng: Generator
    ) -> Noised:
        """``noise`` for ``z`` [N, c, h, w] at ``t`` [N], as it is at the first step of a run."""
        start = Progress(0, self.config.steps)
        return noise(NoiseInput(z, Times.of(t, z.device), predict, self.alpha_bar, rng, start))

    @property
    def alpha_bar(self) -> Tensor:
        return self.denoiser.alpha_bar.to(device=self.clean.device, dtype=self.clean.dtype)


@dataclass(frozen=True)
class Result:
    """Rows of plain numbers and words, and how to draw them."""

    rows: list[dict[str, Any]]
    series: str  # the column that tells lines apart
    x: str
    y: str
    log: bool = False
    pictures: Tensor | None = None  # [M, 3, H, W], row by row
    columns: int = 1  # of the sheet that they make

    def lines(self) -> list[Line]:
        names = dict.fromkeys(str(row[self.series]) for row in self.rows)
        return [
            Line(
                name,
                [(row[self.x], row[self.y]) for row in self.rows if str(row[self.series]) == name],
            )
            for name in names
        ]


class Experiment(NamedTuple):
    """One figure of the paper."""

    shows: str  # which figure, and what it says
    measure: Callable[[Bench, Callable[[str], None]], Result]


def require_groups(denoiser: Denoiser, samples: int) -> None:
    """UserError where ``samples`` pictures make no whole groups of views of one shape."""
    together = denoiser.views_together
    if samples % together:
        raise UserError(
            f"samples={samples}: this model sees {together} views of a shape together; write "
            f"--samples {together * max(1, samples // together)}"
        )


def bench(denoiser: Denoiser, config: Config, samples: int) -> Bench:
    """Draw ``samples`` front views of the prompt with DDIM; they are what is measured on."""
    if samples < 1:
        raise UserError(f"samples={samples}: allowed is 1 or more")
    require_groups(denoiser, samples)
    prompts = PromptSet(denoiser, config.prompt, config.negative_prompt, config.prompts)
    conditions = prompts.conditions(Viewpoints.front(samples, denoiser.views_together))
    noise = pure_noise(
        denoiser, samples, config.resolution, config.seed, build.device(config.device)
    )
    scale = config.guidance.cfg_scale.start
    predict = GuidedPredictor(denoiser, conditions)
    clean = ddim_sample(predict, noise, SAMPLING_STEPS, scale)
    return Bench(denoiser, conditions, clean, scale, config, config.seed)


def write(
    result: Result, name: str, shows: str, folder: Path, context: dict[str, Any]
) -> list[Path]:
    """``name``.json, .csv, .svg and, where there are pictures, .png in ``folder``; the files."""
    columns = list(dict.fromkeys(key for row in result.rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(result.rows)
    report = {"experiment": name, "shows": shows, **context, "rows": result.rows}
    drawn = standalone(plot(result.lines(), result.x, result.y, result.log))
    contents = {
        "json": to_json(report, indent=2) + "\n",
        "csv": text.getvalue(),
        "svg": drawn + "\n",
    }
    paths = []
    for ending, content in contents.items():
        path = folder / f"{name}.{ending}"
        write_bytes(path, content.encode())
        paths.append(path)
    if result.pictures is not None:
        sheet = media.contact_sheet(result.pictures, result.columns)
        paths.append(media.save_png(sheet, folder / f"{name}.png"))
    return paths


def table(result: Result, width: int | None = None) -> str:
    """One line per x, one column per line of the plot; in ``width`` characters."""
    lines = result.lines()
    xs = sorted({x for line in lines for x, _ in line.points})
    by_x: list[dict[float, float]] = [dict(line.points) for line in lines]
    rows = [
        [result.x, *(line.label for line in lines)],
        *([f"{x:g}", *(f"{values[x]:.4g}" if x in values else "-" for values in by_x)] for x in xs),
    ]
    return text_table(rows, width=width)
