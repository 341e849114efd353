# SPDX-License-Identifier: Apache-2.0
"""From the name of an experiment to its files. A new experiment is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .. import build
from ..artefacts.claim import claimed
from ..config import Config, to_plain
from ..errors import UserError, nearest
from ..run import require_ready
from .bad_pictures import HIDDEN
from .base import Experiment, Result, bench, write
from .chains import CHAINS
from .noise_error import FIG9, FIG10
from .null_text import NULL_TEXT
from .pictures import FIG1, FIG3, FIG4, FIG6
from .root_finders import INVERSIONS, ROOTS
from .round_trip import FIG18

EXPERIMENTS: dict[str, Experiment] = {
    "fig1": FIG1,
    "fig3": FIG3,
    "fig4": FIG4,
    "fig6": FIG6,
    "fig9": FIG9,
    "fig10": FIG10,
    "fig18": FIG18,
    "null_text": NULL_TEXT,
    "hidden": HIDDEN,
    "roots": ROOTS,
    "inversions": INVERSIONS,
}


def require(name: str) -> Experiment:
    """UserError for a name that is no experiment."""
    if name not in EXPERIMENTS:
        raise UserError(f"experiment {name}: {nearest(name, (*EXPERIMENTS, *CHAINS))}")
    return EXPERIMENTS[name]


def run(
    name: str, config: Config, samples: int, out: Path | None, say: Callable[[str], None]
) -> tuple[Result, list[Path]]:
    """Measure and write into the new folder ``out``; the result and the files."""
    chosen = require(name)
    config = build.with_threads(config, say)
    require_ready(config, say)
    with claimed(out, name, f"experiment {name}", all_or_none=(f"{name}.*",)) as claim:
        say(f"loading {config.model.source}")
        build.use_threads(config.threads)
        denoiser = build.denoiser(config.model, build.device(config.device))
        say(f"drawing {samples} samples of {config.prompt!r}")
        on = bench(denoiser, config, samples)
        result = chosen.measure(on, say)
        context = {"prompt": config.prompt, "samples": samples, "torch": torch.__version__,
                   "config": to_plain(config)}  # fmt: skip
        return result, write(result, name, chosen.shows, claim.path, context)
