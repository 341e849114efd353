# SPDX-License-Identifier: Apache-2.0
"""What guidance loses of an inverted picture, and two ways not to lose it: null-text inversion
(arXiv 2211.09794) and negative-prompt inversion (arXiv 2305.16807)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from representations.telling import each

from ..artefacts.media import psnr
from ..errors import UserError
from ..guidance.inversion import ddim_invert
from ..guidance.null_text import NullText, retrace
from .base import Bench, Experiment, Result

SCALES = (1.0, 2.0, 4.0, 7.5)
STEPS = 50  # of both ways, as published


def measure(bench: Bench, say: Callable[[str], None], steps: int = STEPS) -> Result:
    """PSNR between a picture and its copy by inversion under its sentence and DDIM with guidance,
    by the scale of guidance."""
    total, uncond, sentence = len(bench.alpha_bar), *bench.conditions[:2]
    times = (torch.arange(steps + 1) * (total - 1) / steps).round().long()
    path = [bench.clean]

    def under_sentence(x: Tensor, t: Tensor) -> Tensor:
        return bench.denoiser.predict_noise(x, t, sentence)

    with torch.no_grad():
        for pair in pairwise(times.tolist()):
            both = torch.tensor(pair).expand(len(bench.clean), -1)
            path.append(ddim_invert(path[-1], both, under_sentence, bench.alpha_bar))
        original = bench.denoiser.decode(bench.clean).clamp(0, 1)
    rows = []
    ways = (
        ("DDIM", uncond, None),
        ("negative-prompt inversion", sentence, None),
        ("null-text inversion", uncond, NullText()),
    )
    for name, first, config in ways:
        say(name)
        for scale in each(SCALES, "scale"):
            try:
                back = retrace(bench.denoiser, (first, sentence), path, times, scale, config)
            except ValueError as error:
                raise UserError(str(error)) from error
            with torch.no_grad():
                again = bench.denoiser.decode(back.end).clamp(0, 1)
            rows.append(
                {
                    "method": name,
                    "cfg_scale": scale,
                    "psnr_db": float(psnr(again, original).mean()),
                    "samples_per_picture": back.evaluations / len(original),
                }
            )
    return Result(rows, "method", "cfg_scale", "psnr_db")


NULL_TEXT = Experiment(
    "Null-text and negative-prompt inversion: the way to noise and back, by guidance", measure
)
