# SPDX-License-Identifier: Apache-2.0
"""Guidance in a loop of your own, over a plain picture: no renderer, no trainer.

    python examples/02_guidance_on_a_picture.py "a red mug" --noise inversion
    python examples/02_guidance_on_a_picture.py "a red mug" --noise random

The two commands differ in one thing only, which noise is put into the picture before the diffusion
model looks at it. That is the difference between SDI and SDS (eq. 10 of arXiv 2405.15891).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

try:
    import sdi_gs
except ImportError:
    raise SystemExit("sdi_gs is not installed: run 'make setup', then .venv/bin/python") from None

SIZE = 64  # pixels: what the small model was taught with


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt", nargs="?", default="a red mug")
    parser.add_argument("--noise", choices=("inversion", "random"), default="inversion")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    options = parser.parse_args()

    prior = sdi_gs.load_prior("mini")
    # The small model wants weaker guidance than the 7.5 of Stable Diffusion.
    noise = {"inversion": sdi_gs.DDIMInversion(cfg_scale=0.0), "random": sdi_gs.RandomNoise()}
    guide = sdi_gs.ScoreDistillation(
        prior,
        options.prompt,
        noise[options.noise],
        config=sdi_gs.GuidanceConfig(
            cfg_scale=sdi_gs.Ramp(2.0, 2.0),
            t=sdi_gs.TimeConfig(high=sdi_gs.Ramp(0.98, 0.02)),  # from noisy to clean over the run
        ),
        steps=options.steps,
        seed=0,
    )

    # What is optimised: a grey picture [1, 3, H, W], seen from the front.
    torch.manual_seed(0)
    picture = (0.5 + 0.02 * torch.randn(1, 3, SIZE, SIZE)).requires_grad_()
    front = sdi_gs.Viewpoints.orbit(torch.zeros(1), torch.full((1,), 15.0))
    optimizer = torch.optim.Adam([picture], lr=0.03)
    for step in range(options.steps):
        guided = guide(picture.clamp(0.0, 1.0), front, step)
        optimizer.zero_grad()
        guided.loss.backward()
        optimizer.step()
        if step % 25 == 0 or step + 1 == options.steps:
            print(
                f"step {step + 1:4}  t {int(guided.t[0]):4}  loss {float(guided.loss.detach()):.4f}"
            )

    pixels = (picture.detach()[0].clamp(0.0, 1.0) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).resize((256, 256)).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
