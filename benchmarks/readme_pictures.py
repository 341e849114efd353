# SPDX-License-Identifier: Apache-2.0
"""The moving turntable and the picture of one step at the top of the README.

    python benchmarks/readme_pictures.py RUN [RUN ...] --step RUN --out docs/pictures

Every RUN is a folder that ``sdi-gs generate "..." --config mini --seed 3`` made: of a red mug, a
yellow duck, a blue chair and a green turtle. The step is drawn on the duck.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import sdi_gs

SIZE, FRAMES, FPS = 160, 36, 15  # pixels of a view, pictures of a turn, pictures per second
SHARE = 0.8  # of the schedule: the noise level of the step that is shown


def film(runs: list[Path], path: Path) -> Path:
    """All shapes side by side, one turn."""
    turns = [sdi_gs.open_asset(run).stage.turntable(FRAMES, SIZE, 15.0) for run in runs]
    strip = (torch.cat(turns, dim=3).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    # One palette for all frames and no dithering: small, and nothing flickers.
    palette = Image.fromarray(strip[:: FRAMES // 6].reshape(-1, strip.shape[2], 3)).quantize(
        128, dither=Image.Dither.NONE
    )
    frames = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in strip
    ]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0, optimize=True
    )
    return path


@torch.no_grad()
def one_step(run: Path, path: Path) -> Path:
    """A rendering, then for a random and for an inverted noise: what the model is shown, and what
    it sees in it."""
    asset = sdi_gs.open_asset(run)
    prior = sdi_gs.load_prior("mini")
    prompt = asset.config.prompt
    one = torch.ones(1)
    cameras = sdi_gs.orbit(30.0 * one, 15.0 * one, 3.0 * one, 30.0 * one, (64, 64))
    viewpoints = sdi_gs.Viewpoints.of(cameras)
    rgb = asset.draw(cameras)
    pictures = [("rendering", rgb)]
    for name, noise in (
        ("SDS", sdi_gs.RandomNoise()),
        ("SDI", sdi_gs.DDIMInversion(cfg_scale=0.0)),
    ):
        guide = sdi_gs.ScoreDistillation(
            prior,
            prompt,
            noise,
            config=sdi_gs.GuidanceConfig(
                cfg_scale=sdi_gs.Ramp(1.5, 1.5),
                t=sdi_gs.TimeConfig(high=sdi_gs.Ramp(SHARE, SHARE)),
            ),
            steps=1,
        )
        guided = guide(rgb, viewpoints, 0)
        pictures += [
            (f"{name}: noisy", prior.decode(guided.x_t)),
            (f"{name}: what the model sees", prior.decode(guided.target)),
        ]
    sheet = Image.new("RGB", (len(pictures) * (SIZE + 8), SIZE + 18), "white")
    for column, (title, picture) in enumerate(pictures):
        pixels = (picture[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels).resize((SIZE, SIZE)), (column * (SIZE + 8), 18))
        ImageDraw.Draw(sheet).text((column * (SIZE + 8) + 4, 3), title, fill="black")
    sheet.save(path, optimize=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--step", type=Path, help="run whose step is drawn; default the first")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for made in (
        film(options.runs, options.out / "turntable.gif"),
        one_step(options.step or options.runs[0], options.out / "one_step.png"),
    ):
        print(made, f"{made.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
