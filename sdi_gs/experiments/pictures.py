# SPDX-License-Identifier: Apache-2.0
"""What methods draw in 2D: Fig. 1, Fig. 3, Fig. 4 and Fig. 6."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from representations.telling import each

from ..artefacts.media import psnr
from ..config import Config
from ..diffusion.schedule import alpha_bar_at, mix, unmix
from ..guidance.draws import normal_like
from ..guidance.noise import NoiseStrategy, RandomNoise
from ..guidance.prompts import PromptSet
from ..guidance.roots import FixedPoint, GradientDescent
from ..guidance.sampling import ddim_times
from ..ramp import Ramp
from .base import SAMPLING_STEPS, Bench, Experiment, Result
from .flat import CachedNoise, Flat, FlatOptions, denoised_noise, make
from .noise_error import inversion

SCALES = (1.0, 2.0, 4.0, 7.5, 15.0)
MOMENTS = (0.999, 0.8, 0.6, 0.4, 0.2)  # of the schedule


def detail(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, [N]: what a blurred picture lacks."""
    across, down = pictures.diff(dim=3).abs(), pictures.diff(dim=2).abs()
    return across.mean(dim=(1, 2, 3)) + down.mean(dim=(1, 2, 3))


def saturation(pictures: Tensor) -> Tensor:
    """Mean over pixels of the largest minus the smallest channel, [N]."""
    return (pictures.amax(dim=1) - pictures.amin(dim=1)).mean(dim=(1, 2))


def _draw(bench: Bench, config: Config, options: FlatOptions) -> tuple[Tensor, Flat]:
    """Pictures [N, 3, H, W] of one method, from the same noise as every other."""
    prompts = PromptSet(bench.denoiser, config.prompt, config.negative_prompt, config.prompts)
    made = make(config, bench.denoiser, prompts, options)
    with torch.no_grad():
        return bench.denoiser.decode(made.latents).clamp(0.0, 1.0), made


def _methods(bench: Bench, cfg_scale: float) -> dict[str, tuple[Config, FlatOptions]]:
    """DDIM, SDS at the same falling times, and inversion, at one guidance scale."""
    count = len(bench.clean)
    guidance = dataclasses.replace(bench.config.guidance, cfg_scale=Ramp(cfg_scale, cfg_scale))
    config = bench.config.model_copy(update={"guidance": guidance})
    sds = config.model_copy(update={"noise": RandomNoise()})
    sdi = config.model_copy(update={"noise": inversion(bench)})
    sampled = config.model_copy(update={"steps": SAMPLING_STEPS})
    return {
        "ddim": (sampled, FlatOptions(method="ddim", samples=count)),
        "sds": (sds, FlatOptions(samples=count)),
        "sdi": (sdi, FlatOptions(samples=count)),
    }


def fig1(bench: Bench, say: Callable[[str], None]) -> Result:
    """A row of pictures per method; the detail of each."""
    rows, drawn = [], []
    methods = _methods(bench, bench.cfg_scale)
    for name, (config, options) in each(list(methods.items()), "method"):
        say(name)
        pictures, made = _draw(bench, config, options)
        drawn.append(pictures.cpu())
        spent = made.evaluations // len(pictures)
        rows += [
            {"method": name, "sample": i, "detail": float(value), "network_samples": spent}
            for i, value in enumerate(detail(pictures))
        ]
    return Result(rows, "method", "sample", "detail", pictures=torch.cat(drawn),
                  columns=len(bench.clean))  # fmt: skip


def fig3(bench: Bench, say: Callable[[str], None]) -> Result:
    """The first sample at every scale of guidance, a row per method; mean saturation."""
    rows = []
    drawn: dict[str, list[Tensor]] = {}
    for scale in each(SCALES, "scale"):
        for name, (config, options) in _methods(bench, scale).items():
            say(f"{name}, guidance {scale:g}")
            pictures, _ = _draw(bench, config, options)
            drawn.setdefault(name, []).append(pictures[:1].cpu())
            rows.append({"method": name, "cfg_scale": scale,
                         "saturation": float(saturation(pictures).mean()),
                         "detail": float(detail(pictures).mean())})  # fmt: skip
    sheet = torch.cat([picture for row in drawn.values() for picture in row])
    return Result(rows, "method", "cfg_scale", "saturation", pictures=sheet, columns=len(SCALES))


def turned(kappa: Tensor, other: Tensor) -> Tensor:
    """1 - cos of the angle between two noises [N, c, h, w], [N]: 0 for the same direction, about 1
    for independent ones."""
    return 1.0 - torch.cosine_similarity(kappa.flatten(1), other.flatten(1), dim=1)


@torch.no_grad()
def fig4(bench: Bench, say: Callable[[str], None]) -> Result:
    """Along DDIM: the one-step denoised picture of each time, made noisy for the next by the noise
    that DDIM carries, by a random one and by an inverted one. Rows of x(t), of the x0(t) seen in it
    and of kappa(t) for each; how far that x0(t) is from DDIM's own (root mean square, latents), and
    how far kappa is turned from DDIM's."""
    total, alpha_bar, s = len(bench.alpha_bar), bench.alpha_bar, bench.cfg_scale
    times = ddim_times(SAMPLING_STEPS, total)[1:]
    shown = {min(times, key=lambda t: abs(t - share * total)) for share in MOMENTS}
    noise = normal_like(bench.clean, torch.Generator().manual_seed(bench.seed))
    z, carried = denoised_noise(bench.predictor(), noise, s)
    choices: dict[str, NoiseStrategy] = {
        "ddim": CachedNoise(carried),  # first, since the others are compared with it
        "random": RandomNoise(),
        "ddim inversion": inversion(bench),
    }
    rows: list[dict[str, Any]] = []
    lines: dict[tuple[str, int], list[Tensor]] = {}
    predict, rng = bench.predictor(), bench.rng()
    for step in each(times, "time"):
        say(f"t = {step / total:.2f}")
        t = torch.full((len(z),), step, device=z.device)
        level = alpha_bar_at(alpha_bar, t)
        choices["ddim"] = CachedNoise(carried)
        seen = {}
        for name, noise_of in choices.items():
            kappa = bench.noised(noise_of, z, t, predict, rng).kappa
            x_t = mix(z, kappa, level)
            eps = predict(x_t, t, s)
            seen[name] = (unmix(x_t, eps, level), eps)
            off = (seen[name][0] - seen["ddim"][0]).square().mean().sqrt()
            turn = float(turned(kappa, carried).mean())
            rows.append({"kappa": name, "t": step / total, "x0_off": float(off), "turn": turn})
            if step in shown:
                for row, latents in enumerate((x_t, seen[name][0], kappa)):
                    picture = bench.denoiser.decode(latents[:1]).clamp(0.0, 1.0).cpu()
                    lines.setdefault((name, row), []).append(picture)
        z, carried = seen["ddim"]
    sheet = [lines[name, row] for name in choices for row in range(3)]
    return Result(rows, "kappa", "t", "x0_off", columns=len(shown),
                  pictures=torch.cat([picture for line in sheet for picture in line]))  # fmt: skip


@torch.no_grad()
def fig6(bench: Bench, say: Callable[[str], None]) -> Result:
    """For each kappa, a row of noisy pictures and a row of what is seen in them, by falling t;
    PSNR of the second to the picture that the noise was put into."""
    s = bench.cfg_scale
    choices: dict[str, NoiseStrategy] = {
        "random": RandomNoise(),
        "fixed point": FixedPoint(cfg_scale=s),
        "gradient descent": GradientDescent(cfg_scale=s),
        "ddim inversion": inversion(bench),
    }
    alpha_bar, total = bench.alpha_bar, len(bench.alpha_bar)
    original = bench.denoiser.decode(bench.clean).clamp(0.0, 1.0)
    rows, sheet = [], []
    for name, noise in each(list(choices.items()), "kappa"):
        say(f"kappa: {name}")
        noisy, seen = [], []
        for share in each(MOMENTS, "time"):
            t = torch.full((len(bench.clean),), round(share * total), device=bench.clean.device)
            predict, level = bench.predictor(), alpha_bar_at(alpha_bar, t)
            kappa = bench.noised(noise, bench.clean, t, predict, bench.rng()).kappa
            x_t = mix(bench.clean, kappa, level)
            target = unmix(x_t, predict(x_t, t, s), level)
            decoded = bench.denoiser.decode(target).clamp(0.0, 1.0)
            noisy.append(bench.denoiser.decode(x_t[:1]).clamp(0.0, 1.0).cpu())
            seen.append(decoded[:1].cpu())
            value = float(psnr(decoded, original).mean())
            rows.append({"kappa": name, "t": share, "psnr_db": value})
        sheet += [*noisy, *seen]
    return Result(rows, "kappa", "t", "psnr_db", pictures=torch.cat(sheet), columns=len(MOMENTS))


FIG1 = Experiment("Fig. 1: the same noise drawn by DDIM, by SDS and by SDI in 2D", fig1)
FIG3 = Experiment("Fig. 3: the three at rising scales of guidance", fig3)
FIG4 = Experiment(
    "Fig. 4: x(t), x0(t) and kappa(t) along DDIM, under its own kappa and two others", fig4
)
FIG6 = Experiment("Fig. 6: noisy and denoised pictures under each choice of kappa, by t", fig6)
