# SPDX-License-Identifier: Apache-2.0
"""Guidance in a loop of your own, over splats of your own.

    python examples/03_own_splats.py "a red mug"
    python examples/03_own_splats.py "a red mug" --rasteriser gsplat      on a CUDA card

Everything is here: the parameters, their activations, the cameras and the optimiser. The package
draws the splats (or gsplat does) and says what the pictures should have been.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Generator, Tensor

try:
    import sdi_gs
except ImportError:
    raise SystemExit("sdi_gs is not installed: run 'make setup', then .venv/bin/python") from None

SIZE, VIEWS = 64, 4  # pixels of a view, and views per step
SH_DC = 0.28209479177387814  # colour = 0.5 + SH_DC * the constant spherical harmonic


def new_splats(count: int, device: str) -> dict[str, Tensor]:
    """Grey splats in a ball of radius 0.45, before any activation."""
    rng = Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    radius = 0.45 * torch.rand(count, 1, generator=rng) ** (1 / 3)
    values = {
        "means": direction * radius,  # [N, 3]
        "log_scale": torch.full((count, 3), -3.2),
        "quat_wxyz": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        "opacity_logit": torch.full((count,), -2.0),
        "colour": 0.5 + 0.05 * torch.randn(count, 3, generator=rng),  # as displayed
    }
    return {name: value.to(device).requires_grad_() for name, value in values.items()}


def draw(splats: dict[str, Tensor], cameras: sdi_gs.Cameras, rasteriser: str) -> Tensor:
    """Pictures [B, 3, H, W] on white."""
    scale, opacity = splats["log_scale"].exp(), splats["opacity_logit"].sigmoid()
    colour = splats["colour"].clamp(0.0, 1.0)
    if rasteriser == "gsplat":
        # Its kernels are compiled now if they were not by "sdi-gs doctor --build".
        from gsplat import rasterization

        picture, alpha, _ = rasterization(
            splats["means"], splats["quat_wxyz"], scale, opacity, colour,
            cameras.world_to_cam, cameras.intrinsics, cameras.width, cameras.height,
        )  # fmt: skip
        picture, alpha = picture.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2)
    else:
        out = sdi_gs.rasterize(
            sdi_gs.Splats(splats["means"], splats["quat_wxyz"], scale, opacity),
            colour.expand(len(cameras), *colour.shape),
            cameras,
        )
        picture, alpha = out.features, out.alpha
    return (picture + (1.0 - alpha)).clamp(0.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt", nargs="?", default="a red mug")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--count", type=int, default=2000, help="splats")
    parser.add_argument("--rasteriser", choices=("package", "gsplat"), default="package")
    parser.add_argument("--out", type=Path, default=Path("own_splats.ply"))
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.rasteriser == "gsplat" and device == "cpu":
        raise SystemExit("gsplat draws on a CUDA card, and torch sees none here: leave it out")

    prior = sdi_gs.load_prior("mini")
    guide = sdi_gs.ScoreDistillation(
        prior,
        options.prompt,
        sdi_gs.DDIMInversion(cfg_scale=0.0),
        config=sdi_gs.GuidanceConfig(
            cfg_scale=sdi_gs.Ramp(1.5, 1.5),
            t=sdi_gs.TimeConfig(high=sdi_gs.Ramp(0.98, 0.3)),
        ),
        steps=options.steps,
    )
    # The small model has only seen whole objects, from a distance of 3.
    views = sdi_gs.ViewPolicy(
        distance=(3.0, 3.0), fov_y_deg=(30.0, 30.0),
        position_jitter=0.0, target_jitter=0.0, up_jitter=0.0,
    )  # fmt: skip
    rng = Generator().manual_seed(0)

    splats = new_splats(options.count, device)
    rates = {"means": 1e-2, "log_scale": 2e-2, "quat_wxyz": 2e-2, "opacity_logit": 5e-2}
    optimizer = torch.optim.Adam(
        [{"params": [value], "lr": rates.get(name, 1e-2)} for name, value in splats.items()]
    )
    for step in range(options.steps):
        cameras, viewpoints = views.sample(VIEWS, SIZE, rng)
        rgb = draw(splats, cameras.to(device), options.rasteriser)
        guided = guide(rgb, viewpoints, step, rng)
        optimizer.zero_grad()
        guided.loss.backward()
        optimizer.step()
        if step % 20 == 0 or step + 1 == options.steps:
            print(
                f"step {step + 1:4}/{options.steps}  loss {float(guided.loss.detach()):.4f}",
                flush=True,
            )

    plain = {name: value.detach().cpu() for name, value in splats.items()}
    colour = plain.pop("colour").clamp(0.0, 1.0)
    cloud = sdi_gs.SplatCloud(
        **plain,
        sh_dc=(colour - 0.5) / SH_DC,
        sh_rest=torch.zeros(len(colour), 0, 3),
    )
    print(options.out, "holds", sdi_gs.write_ply(options.out, cloud), "splats")


if __name__ == "__main__":
    main()
