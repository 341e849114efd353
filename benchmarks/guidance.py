# SPDX-License-Identifier: Apache-2.0
"""A step of guidance beside a plain re-statement of the published loop: same weights, same steps.

    python benchmarks/guidance.py [--batches 1,2,4,8] [--repeats 5] [--threads 2]

The published code of SDI takes one view at a time and predicts twice each time it asks, with and
without words, whatever the scale. Here that is written down in a few lines, on the networks as
diffusers publishes them; our step is the package's, at its defaults and with the settings of the
preset mini. Both encode their pictures and differentiate the encoder. They take turns, and the
least and the median of each are compared. Times t and kappa differ only in their random numbers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

if __name__ == "__main__" and "--threads" in sys.argv:
    os.environ["OMP_NUM_THREADS"] = sys.argv[sys.argv.index("--threads") + 1]

import torch
from torch import Tensor

from sdi_gs import Viewpoints, build, methods
from sdi_gs.config import Config, load
from sdi_gs.diffusion.schedule import alpha_bar_at, mix, noise_between, unmix
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.guidance import PromptSet
from sdi_gs.mini import MINI_DIR

SETTINGS = {
    # what is measured: settings over those of the preset mini
    "mini's settings": [],
    "the paper's settings": ["noise.cfg_scale=-7.5", "guidance.cfg_scale=7.5"],
}
SCALES = {"mini's settings": (0.0, 1.5), "the paper's settings": (-7.5, 7.5)}
T = 640  # the middle of mini's times: six steps of inversion


def published(model: StableDiffusion, scales: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """(rgb [B, 3, H, W]) -> loss, view by view."""
    words, nothing = (model.embed([text])["hidden"] for text in ("a red mug", ""))

    def ask(x: Tensor, t: int, scale: float) -> Tensor:
        at = torch.tensor([t])
        cond = model.unet(x, at, encoder_hidden_states=words).sample
        uncond = model.unet(x, at, encoder_hidden_states=nothing).sample
        return uncond + scale * (cond - uncond)

    def one(rgb: Tensor) -> Tensor:
        z = model.encode(rgb)
        with torch.no_grad():
            last = T + int(torch.randint(33, ()))
            grid = [round(k * last / 6) for k in range(7)]
            x = z.detach()
            for t_from, t_to in pairwise(grid):
                levels = alpha_bar_at(model.alpha_bar, torch.tensor([t_from, t_to])).split(1)
                noise = ask(x, t_from, scales[0])
                x = mix(unmix(x, noise, levels[0]), noise, levels[1])
            level = model.alpha_bar[T : T + 1]
            kappa = noise_between(x, z.detach(), model.alpha_bar[last : last + 1])
            kappa = kappa + 0.3 * (1 - level).sqrt() * torch.randn_like(kappa)
            x_t = mix(z.detach(), kappa, level)
            target = unmix(x_t, ask(x_t, T, scales[1]), level)
        return 0.5 * (z - target).square().sum()

    return lambda rgb: torch.stack([one(view[None]) for view in rgb]).sum() / len(rgb)


def ours(config: Config, batch: int) -> Callable[[Tensor], Tensor]:
    model = build.denoiser(config.model, torch.device("cpu"))
    prompts = PromptSet(model, config.prompt, config.negative_prompt, config.prompts)
    method = methods.guidance(config, model, prompts, config.noise)
    around = Viewpoints.orbit(torch.linspace(-150.0, 150.0, batch), torch.full((batch,), 20.0))
    return lambda rgb: method(rgb, around, 0).loss


def seconds(step: Callable[[Tensor], Tensor], rgb: Tensor) -> float:
    picture = rgb.clone().requires_grad_()
    began = time.perf_counter()
    step(picture).backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    at_t = f"guidance.t.high={T / 1000 + 1e-4}"
    theirs = StableDiffusion.load(MINI_DIR, engine="diffusers")
    theirs.unet.to(memory_format=torch.channels_last)
    theirs.vae.to(memory_format=torch.channels_last)
    print(f"{args.threads} threads, t = {T}; milliseconds of a step, least and median")
    print(f"{'settings':22} {'B':>2} {'published loop':>18} {'ours':>16} {'times as fast':>14}")
    for words, overrides in SETTINGS.items():
        for batch in map(int, args.batches.split(",")):
            config = load("mini", ["prompt=a red mug", at_t, *overrides])
            steps = {"theirs": published(theirs, SCALES[words]), "ours": ours(config, batch)}
            rgb = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            found: dict[str, list[float]] = {name: [] for name in steps}
            for step in steps.values():
                seconds(step, rgb)
            for _ in range(args.repeats):
                for name, step in steps.items():
                    found[name].append(1e3 * seconds(step, rgb))
            low = {name: min(values) for name, values in found.items()}
            mid = {name: statistics.median(values) for name, values in found.items()}
            print(f"{words:22} {batch:>2} {low['theirs']:>9.0f} {mid['theirs']:>8.0f} "
                  f"{low['ours']:>8.0f} {mid['ours']:>7.0f} {mid['theirs'] / mid['ours']:>14.2f}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
