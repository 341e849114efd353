# SPDX-License-Identifier: Apache-2.0
"""Invert a sample to noise and draw it again: App. E, Fig. 18."""

from __future__ import annotations

from collections.abc import Callable

import torch

from representations.telling import each

from ..artefacts.media import psnr
from ..guidance.inversion import ddim_invert
from ..guidance.sampling import ddim_sample
from .base import Bench, Experiment, Result

STEPS = (10, 30, 100, 300)


@torch.no_grad()
def fig18(bench: Bench, say: Callable[[str], None]) -> Result:
    """PSNR between a DDIM sample and its copy by inversion and DDIM in the same number of steps."""
    s, rows = bench.cfg_scale, []
    total, count = len(bench.alpha_bar), len(bench.clean)
    original = bench.denoiser.decode(bench.clean).clamp(0, 1)
    for back, forth in each(((0.0, 0.0), (s, s), (0.0, s), (-s, s)), "pair"):
        name = f"inversion {back:g}, forward {forth:g}"
        say(name)
        for steps in STEPS:
            k = torch.arange(steps + 1, device=bench.clean.device)
            times = (k * (total - 1) / steps).round().long().expand(count, -1)
            noise = ddim_invert(bench.clean, times, bench.under(back), bench.alpha_bar)
            again = ddim_sample(bench.predictor(), noise, steps, forth)
            decoded = bench.denoiser.decode(again).clamp(0, 1)
            value = float(psnr(decoded, original).mean())
            rows.append({"guidance": name, "steps": steps, "psnr_db": value})
    return Result(rows, "guidance", "steps", "psnr_db")


FIG18 = Experiment("App. E, Fig. 18: the way from a picture to noise and back, by steps", fig18)
