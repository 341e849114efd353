# SPDX-License-Identifier: Apache-2.0
"""Score distillation of pictures: the representation is the picture itself (Fig. 1).

Without a renderer in between, what a method does can be seen: with the noise of the step before as
kappa and the target taken over as it is, it *is* DDIM (sec. 4); with random noise it blurs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn

from representations.telling import each

from .. import build, methods
from ..artefacts import media
from ..artefacts.claim import claimed
from ..artefacts.records import write_json
from ..config import Config, to_plain
from ..diffusion.base import Adaptable, Condition, Denoiser, NoiseLearner
from ..diffusion.schedule import alpha_bar_at, noise_between, unmix
from ..errors import UserError, nearest
from ..guidance.consistency import GradientConsistencyConfig
from ..guidance.image_space import ImageSpaceConfig
from ..guidance.noise import Noised, NoiseInput, NoiseStrategy
from ..guidance.paths import GuidedConsistency
from ..guidance.predict import GuidedPredictor
from ..guidance.prompts import PromptSet
from ..guidance.sampling import STREAM, ddim_sample, pure_noise
from ..guidance.stein import SteinConfig
from ..guidance.surface_noise import SurfaceNoise, WorldMapNoise
from ..guidance.viewpoints import Viewpoints
from ..run import require_ready
from .base import require_groups

Space = Literal["latents", "pixels"]
Move = Literal["adam", "assign"]
Method = Literal["distill", "cached", "ddim"]
KEPT = 8  # moments of a run in its picture of the evolution


@dataclass(frozen=True, kw_only=True)
class FlatOptions:
    """How a picture is moved."""

    method: Method = "distill"  # cached: kappa is the prediction before | ddim: no distillation
    space: Space = "latents"  # what is optimised
    move: Move = "adam"  # or assign: the target itself, latents only
    rate: float = 0.05  # of Adam
    samples: int = 4

    def __post_init__(self) -> None:
        for name, known in (("method", Method), ("space", Space), ("move", Move)):
            if getattr(self, name) not in get_args(known):
                raise UserError(f"{name}={getattr(self, name)}: "
                                f"{nearest(getattr(self, name), get_args(known))}")  # fmt: skip
        if self.move == "assign" and self.space == "pixels":
            raise UserError("move=assign: a target is latents; write space=latents")
        if self.method == "cached" and self.space == "pixels":
            raise UserError("guidance=cached needs space=latents")
        if self.rate <= 0.0:
            raise UserError(f"rate={self.rate}: a learning rate is positive; write rate=0.05")
        if self.samples < 1:
            raise UserError(f"samples={self.samples}: allowed is 1 or more")


class AsLatents:
    """A denoiser for which pictures are latents: nothing is encoded."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.alpha_bar = inner.alpha_bar
        self.views_together = inner.views_together

    def embed(self, prompts: Sequence[str]) -> Condition:
        return self.inner.embed(prompts)

    def encode(self, rgb: Tensor) -> Tensor:
        return rgb

    def encode_posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        return rgb, torch.zeros_like(rgb)

    def decode(self, latents: Tensor) -> Tensor:
        return self.inner.decode(latents)

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.inner.predict_noise(x_t, t, condition)

    def learner(self, prompt: str, rank: int, rate: float) -> NoiseLearner:
        if not isinstance(self.inner, Adaptable):
            raise UserError(f"{type(self.inner).__name__} has no second network to train")
        return self.inner.learner(prompt, rank, rate)


class CachedNoise:
    """kappa as somebody leaves it here: the prediction of the step before."""

    def __init__(self, kappa: Tensor) -> None:
        self.kappa = kappa

    def __call__(self, given: NoiseInput) -> Noised:
        return given.noised(self.kappa)


class Flat(NamedTuple):
    """What a 2D run leaves."""

    latents: Tensor  # [N, c, h, w]
    targets: list[Tensor]  # one-step denoised latents of the first sample, at falling times
    times: list[int]  # of the targets
    evaluations: int  # network samples, all samples together


@torch.no_grad()
def denoised_noise(
    predict: GuidedPredictor, noise: Tensor, cfg_scale: float
) -> tuple[Tensor, Tensor]:
    """Pure noise at the last time, denoised in one step, and the noise that was seen in it."""
    alpha_bar = predict.alpha_bar.to(noise)
    t = torch.full((len(noise),), len(alpha_bar) - 1, device=noise.device)
    eps = predict(noise, t, cfg_scale)
    return unmix(noise, eps, alpha_bar_at(alpha_bar, t)), eps


def distill(
    config: Config, denoiser: Denoiser, prompts: PromptSet, noise: Tensor, options: FlatOptions
) -> Flat:
    """Optimise one picture per row of ``noise`` [N, c, h, w] along the times of ``config``.

    A picture starts as pure noise that was denoised in one step; in pixels, decoded.
    """
    count, rng = len(noise), Generator().manual_seed(config.seed + STREAM)
    views = Viewpoints.front(count, denoiser.views_together)
    predict = GuidedPredictor(denoiser, prompts.conditions(views))
    start, eps = denoised_noise(predict, noise, config.guidance.cfg_scale.start)
    evaluations = predict.evaluations
    strategy: NoiseStrategy = CachedNoise(eps) if options.method == "cached" else config.noise
    pixels = options.space == "pixels"
    if pixels:
        with torch.no_grad():
            start = denoiser.decode(start).clamp(0.0, 1.0)
    seen: Denoiser = denoiser if pixels else AsLatents(denoiser)
    method = methods.guidance(config, seen, prompts, strategy)
    picture = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([picture], lr=options.rate, betas=(0.9, 0.99))
    keep = {round(i * (config.steps - 1) / (KEPT - 1)) for i in range(KEPT)}
    targets, times = [], []
    for step in each(range(config.steps), "step"):
        guided = method(picture, views, step, rng)
        evaluations += guided.evaluations
        if isinstance(strategy, CachedNoise):
            level = alpha_bar_at(denoiser.alpha_bar.to(guided.x_t), guided.t)
            strategy.kappa = noise_between(guided.x_t, guided.target, level)
        if options.move == "assign":
            picture.data.copy_(guided.target)
        else:
            optimizer.zero_grad(set_to_none=True)
            guided.loss.backward()
            optimizer.step()
            if pixels:
                picture.data.clamp_(0.0, 1.0)
        if step in keep:
            targets.append(guided.target[:1].detach())
            times.append(int(guided.t[0]))
    with torch.no_grad():
        latents = denoiser.encode(picture) if pixels else picture.detach()
    return Flat(latents, targets, times, evaluations)


def require_flat(config: Config, options: FlatOptions) -> None:
    """UserError where a method needs more than a picture, or another one than is optimised."""
    if isinstance(config.noise, SurfaceNoise | WorldMapNoise):
        raise UserError(
            f"noise.kind={config.noise.kind} paints noise on a shape, and a picture has none: "
            "write --guidance fixed_noise, which is the same for one picture"
        )
    update = config.update
    if isinstance(update, GradientConsistencyConfig):
        raise UserError(
            f"update.kind={update.kind} compares neighbouring views of a shape, and a picture has "
            "none: write --guidance sds"
        )
    phi = update.baseline if isinstance(update, SteinConfig) else "constant"
    if phi != "constant":
        raise UserError(
            f"update.baseline={phi} compares an estimate with the {phi} of a shape, and a picture "
            "has none: write --guidance stein, whose baseline is the constant"
        )
    in_pixels = isinstance(update, ImageSpaceConfig) or (
        isinstance(update, GuidedConsistency) and update.pixels > 0.0
    )
    if in_pixels and options.space == "latents":
        without = ", or update.pixels=0" if isinstance(update, GuidedConsistency) else ""
        raise UserError(
            f"update.kind={update.kind} compares pictures, and what is optimised here are latents: "
            f"write --space pixels{without}"
        )


def generate(
    config: Config, options: FlatOptions, out: Path | None, say: Callable[[str], None]
) -> list[Path]:
    """Pictures of ``config.prompt`` in the new folder ``out``; the files."""
    if options.method == "distill":
        require_flat(config, options)
    config = build.with_threads(config, say)
    require_ready(config, say)
    files = ("pictures.png", "evolution.png", "summary.json")
    with claimed(out, f"2d {config.prompt}", "generate2d", all_or_none=files) as claim:
        say(f"loading {config.model.source}")
        return _generate(config, options, claim.path)


def _generate(config: Config, options: FlatOptions, out: Path) -> list[Path]:
    build.use_threads(config.threads)
    denoiser = build.denoiser(config.model, build.device(config.device))
    require_groups(denoiser, options.samples)
    with build.below("prompts"):
        prompts = PromptSet(denoiser, config.prompt, config.negative_prompt, config.prompts)
    began = time.perf_counter()
    made = make(config, denoiser, prompts, options)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        pictures = denoiser.decode(made.latents).clamp(0.0, 1.0).cpu()
        steps = [denoiser.decode(target).clamp(0.0, 1.0).cpu() for target in made.targets]
    files = [media.save_png(media.contact_sheet(pictures), out / "pictures.png")]
    if steps:
        strip = media.contact_sheet(torch.cat(steps), columns=len(steps))
        files.append(media.save_png(strip, out / "evolution.png"))
    summary = {
        "prompt": config.prompt, "method": options.method, "space": options.space,
        "move": options.move, "samples": options.samples, "steps": config.steps,
        "seconds": round(seconds, 2),
        "network_samples_per_picture": made.evaluations / options.samples,
        "evolution_times": made.times, "config": to_plain(config),
    }  # fmt: skip
    path = write_json(out / "summary.json", summary)
    return [*files, path]


def make(config: Config, denoiser: Denoiser, prompts: PromptSet, options: FlatOptions) -> Flat:
    """The latents of ``options.samples`` pictures by the method that is asked for."""
    noise = pure_noise(
        denoiser, options.samples, config.resolution, config.seed, build.device(config.device)
    )
    if options.method != "ddim":
        return distill(config, denoiser, prompts, noise, options)
    views = Viewpoints.front(options.samples, denoiser.views_together)
    predict = GuidedPredictor(denoiser, prompts.conditions(views))
    latents = ddim_sample(predict, noise, config.steps, config.guidance.cfg_scale.start)
    return Flat(latents, [], [], predict.evaluations)
