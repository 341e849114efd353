# SPDX-License-Identifier: Apache-2.0
"""What the readers are given, our own pictures of it, and how pictures are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from representations.axes import to_file_matrix
from representations.cameras import look_at, orbit, pinhole
from representations.cloud import SplatCloud
from representations.gaussians import GaussianConfig, GaussianRenderer, InitConfig, RatesConfig
from representations.interface import Cameras
from representations.ops.constants import SH_DC

SIZE = 256
FOV_Y_DEG = 40.0


@dataclass(frozen=True)
class Scene:
    name: str
    cloud: SplatCloud
    position: tuple[float, float, float]  # of the camera, world units; it looks at the origin

    def camera(self) -> Cameras:
        position = torch.tensor([self.position], dtype=torch.float64)
        return Cameras(
            look_at(position, torch.zeros_like(position)).float(),
            pinhole(torch.tensor([math.radians(FOV_Y_DEG)]), SIZE, SIZE),
            SIZE,
            SIZE,
        )

    def picture(self, sh_degree: int | None = None) -> np.ndarray:
        """Ours, on black: [SIZE, SIZE, 3] in [0, 1], of harmonics up to ``sh_degree``."""
        degree = self.cloud.sh_degree if sh_degree is None else sh_degree
        config = GaussianConfig(sh_degree=degree, max_count=max(4000, len(self.cloud)))
        with torch.no_grad():
            render, _ = GaussianRenderer(config, cloud=self.cloud).render(
                self.camera(), torch.zeros(1, 3)
            )
        return render.rgb[0].permute(1, 2, 0).numpy()

    def camera_in_file(self, up: str = "viewer") -> list[list[float]]:
        """Rows [4, 4] from an OpenGL camera to the file's frame."""
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = to_file_matrix(up)
        to_world = torch.linalg.inv(self.camera().world_to_cam[0].double())
        flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
        return (turn @ to_world @ flip).tolist()


def thin() -> Scene:
    """Needles and leaves of random orientation whose colour depends on the view up to degree 3.

    Colours stay in [0, 1] from almost everywhere: there our rasteriser cuts them, and viewers do
    not cut them at 1.
    """
    g = torch.Generator().manual_seed(3)
    n = 400
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    log_scale = torch.tensor([0.16, 0.05, 0.012]).log().repeat(n, 1)
    # A .sog file keeps harmonics in a palette of at most 256 here: more kinds would test its loss.
    harmonics = 0.12 * torch.randn(64, 15, 3, generator=g)
    # Which axis is the long one differs, so that an exchange of two axes shows.
    order = torch.stack([torch.randperm(3, generator=g) for _ in range(n)])
    return Scene(
        "thin",
        SplatCloud(
            means=direction * 0.9 * torch.rand(n, 1, generator=g) ** (1 / 3),
            log_scale=log_scale.gather(1, order) + 0.2 * torch.randn(n, 3, generator=g),
            quat_wxyz=3.0 * torch.randn(n, 4, generator=g),
            opacity_logit=1.0 + torch.randn(n, generator=g),
            sh_dc=(0.25 + 0.5 * torch.rand(n, 3, generator=g) - 0.5) / SH_DC,
            sh_rest=harmonics[torch.randint(64, (n,), generator=g)],
        ),
        position=(1.9, 1.4, 1.1),
    )


def mug() -> Scene:
    """An asset as a run leaves it: splats that were fitted to pictures of the red mug of mini."""
    from sdi_gs.mini.corpus import render_truth

    torch.manual_seed(0)
    ones = torch.ones(24)
    azimuth, elevation = torch.arange(24) * 15.0, torch.tensor([-5.0, 15.0, 40.0]).repeat(8)
    cameras = orbit(azimuth, elevation, 3.0 * ones, 30.0 * ones, (64, 64))
    truth = render_truth("mug", "red", cameras, samples=2)
    shape = GaussianRenderer(
        GaussianConfig(
            count=2000,
            max_count=2000,
            init=InitConfig(radius=0.45, scale_factor=0.7),
            rates=RatesConfig(means=1e-2, log_scale=2e-2, quat_wxyz=2e-2),
        )
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        pick = torch.randperm(24, generator=generator)[:4]
        views = Cameras(cameras.world_to_cam[pick], cameras.intrinsics[pick], 64, 64)
        render, _ = shape.render(views, torch.ones(4, 3))
        shape.optimizer.zero_grad()
        (render.rgb - truth[pick]).square().mean().backward()
        shape.optimizer.step()
    return Scene("mug", shape.cloud(), position=(1.5, 1.2, 1.0))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10.0 * np.log10(np.square(one - other).mean()))


def load(path: Path) -> np.ndarray:
    """[H, W, 3] in [0, 1]."""
    return np.asarray(Image.open(path).convert("RGB"), np.float32) / 255.0


def save(path: Path, picture: np.ndarray) -> None:
    Image.fromarray((picture.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)).save(path)
