# SPDX-License-Identifier: Apache-2.0
"""Four views of one sample: are they the object that was asked for, and the same one?

    python benchmarks/quality_views.py [--models mini,mini_mv] [--cfg 2] [--sheet sheet.png]

For each of the 32 kinds, in a colour that goes round, a group of four views at quarter turns is
drawn by DDIM. Two measures, both by a pyramid of smaller pictures:

- right: of random objects of all kinds and colours, seen by the same four cameras, the nearest is
  one of the kind and colour that was asked for;
- disagreement: how much worse the one object that fits all four views best is than the best object
  for each view alone, in squared difference. Views of one object need one object; views that know
  nothing of each other need four. 100 % is what four views of four different true objects have.

True objects that are not among those are measured in the same way: what a perfect model would
score.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from representations.cameras import orbit
from representations.interface import Cameras
from sdi_gs import build
from sdi_gs.config import load
from sdi_gs.evaluation.truth import features
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import PromptSet
from sdi_gs.guidance.sampling import ddim_sample
from sdi_gs.guidance.viewpoints import Viewpoints
from sdi_gs.mini.corpus import COLORS, DISTANCE, FOV_Y_DEG, KINDS, SIZE
from sdi_gs.mini.render import cast
from sdi_gs.mini.shapes import Builder

VIEWS, STARTS, ELEVATION = 4, (0.0, 20.0, 45.0, 65.0), 15.0
INSTANCES = 10  # of a kind, to find the nearest among


def ring(start: float) -> Cameras:
    azimuth = start + torch.arange(VIEWS) * 90.0
    rest = (torch.full((VIEWS,), x) for x in (ELEVATION, DISTANCE, FOV_Y_DEG))
    return orbit(azimuth, *rest, (SIZE, SIZE))


def painted(kind: str, cameras: Cameras, seed: int, colors: list[str]) -> Tensor:
    """A random object of a kind in each of ``colors``: [colors, V, 3, H, W]."""
    builder = Builder(np.random.default_rng([seed, list(KINDS).index(kind)]))
    KINDS[kind](builder)
    solid = builder.finish()
    casts = cast(solid, cameras)
    views = [[one.paint(solid.palette(COLORS[color])) for one in casts] for color in colors]
    return torch.from_numpy(np.array(views))


class Bank(NamedTuple):
    """Random objects seen by one ring of cameras."""

    features: Tensor  # [kinds, instances, colours, V, D]
    cameras: Cameras

    @staticmethod
    def of(start: float) -> Bank:
        cameras, colors = ring(start), list(COLORS)
        rows = []
        for kind in KINDS:
            seen = torch.stack([painted(kind, cameras, s, colors) for s in range(INSTANCES)])
            rows.append(features(seen.flatten(0, 2)).unflatten(0, seen.shape[:3]))
        return Bank(torch.stack(rows), cameras)

    def nearest(self, pictures: Tensor) -> tuple[int, int]:
        """Kind and colour of the object that is most like ``pictures`` [V, 3, H, W]."""
        distance = (self.features - features(pictures)).square().sum(-1).mean(-1).amin(1)
        return divmod(int(distance.argmin()), distance.shape[1])

    def disagreement(self, pictures: Tensor, kind: int, color: int) -> float:
        own = (self.features[kind, :, color] - features(pictures)).square().sum(-1)  # [n, V]
        return float(own.mean(1).min() - own.amin(0).mean())


def asked() -> list[tuple[int, int, int]]:
    """Kind, colour and ring, as numbers."""
    return [(k, (3 * k) % len(COLORS), k % len(STARTS)) for k in range(len(KINDS))]


@torch.no_grad()
def drawn(source: str, banks: list[Bank], cfg: float, steps: int, seed: int) -> list[Tensor]:
    """A group of views of each that is asked for, [V, 3, H, W] in [0, 1]."""
    model = build.denoiser(load("mini", [f"model.source={source}"]).model, torch.device("cpu"))
    rng = torch.Generator().manual_seed(seed)
    side = SIZE // 4
    out = []
    for kind, color, which in asked():
        prompts = PromptSet(model, f"a {list(COLORS)[color]} {list(KINDS)[kind]}")
        conditions = prompts.conditions(Viewpoints.of(banks[which].cameras))
        noise = torch.randn(VIEWS, 4, side, side, generator=rng)
        z = ddim_sample(GuidedPredictor(model, conditions), noise, steps, cfg)
        out.append(model.decode(z).clamp(0, 1))
    return out


def true_groups(banks: list[Bank], apart: bool) -> list[Tensor]:
    """Objects that are in no bank; ``apart``: each view of another one."""
    out = []
    for kind, color, which in asked():
        name, shade = list(KINDS)[kind], [list(COLORS)[color]]
        cameras = banks[which].cameras
        seen = [painted(name, cameras, 1000 + VIEWS * kind + v * apart, shade)[0, v]
                for v in range(VIEWS)]  # fmt: skip
        out.append(torch.stack(seen))
    return out


def report(
    label: str, groups: list[Tensor], banks: list[Bank], whole: float | None = None
) -> float:
    """Print a line; the mean disagreement, of which ``whole`` is 100 %."""
    right, apart = 0, []
    for (kind, color, which), pictures in zip(asked(), groups, strict=True):
        right += banks[which].nearest(pictures) == (kind, color)
        apart.append(banks[which].disagreement(pictures, kind, color))
    mean = sum(apart) / len(apart)
    share = 100 * mean / (whole or mean)
    print(f"{label:24} right {100 * right / len(groups):5.1f} %   disagreement {share:5.1f} %",
          flush=True)  # fmt: skip
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mini,mini_mv", help="names or folders, with commas")
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="a picture of the last model's groups")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    banks = [Bank.of(start) for start in STARTS]
    whole = report("four true objects", true_groups(banks, apart=True), banks)
    report("true objects", true_groups(banks, apart=False), banks, whole)
    for source in args.models.split(","):
        groups = drawn(source, banks, args.cfg, args.steps, args.seed)
        report(source, groups, banks, whole)
        if args.sheet:
            rows = [torch.cat(list(group), dim=2) for group in groups]
            columns = [torch.cat(rows[i::4], dim=1) for i in range(4)]
            grid = torch.cat(columns, dim=2).permute(1, 2, 0)
            Image.fromarray((grid * 255 + 0.5).byte().numpy()).save(args.sheet)


if __name__ == "__main__":
    main()
