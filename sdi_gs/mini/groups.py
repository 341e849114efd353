# SPDX-License-Identifier: Apache-2.0
"""Groups of four views of one shape, finished and half-formed: what mini's sibling learns from.

The four stand at quarter turns from a random azimuth, at one elevation. A :class:`Corpus` of groups
holds them in a row: pictures 4 g to 4 g + 3 are group g.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from representations.cameras import azimuth_in_half_turn, orbit

from .corpus import (
    COLORS,
    DISTANCE,
    FOV_Y_DEG,
    KINDS,
    SIZE,
    Corpus,
    caption,
    sample_elevation,
    view_word,
)
from .data import to_float
from .halfformed import blurred, composite, smooth_noise
from .render import cast
from .shapes import Builder

VIEWS = 4
FORMED = ("cloud", "cloud_over_object", "blur", "tint", "speckle")


def build(seed: int, shapes_per_kind: int, paints: int, processes: int = 2) -> Corpus:
    """Render groups: ``shapes_per_kind`` shapes of each kind, each painted in ``paints`` colours.
    The result depends on the arguments before ``processes`` only."""
    jobs = [(seed, k, shapes_per_kind, paints) for k in range(len(KINDS))]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = pool.map(_build_kind, jobs, chunksize=1)
    return Corpus(**{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def _build_kind(job: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    seed, kind, shapes, paints = job
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, kind])
    base = np.array(list(COLORS.values()))
    images, colors, azimuths, elevations = [], [], [], []
    turn = np.arange(VIEWS) * (360.0 / VIEWS)
    for _ in range(shapes):
        builder = Builder(rng)
        list(KINDS.values())[kind](builder)
        solid = builder.finish()
        azimuth = torch.tensor(rng.uniform(-180.0, 180.0) + turn, dtype=torch.float32)
        azimuth = azimuth_in_half_turn(azimuth)
        elevation = torch.full((VIEWS,), sample_elevation(rng))
        far, wide = torch.full((VIEWS,), DISTANCE), torch.full((VIEWS,), FOV_Y_DEG)
        casts = cast(solid, orbit(azimuth, elevation, far, wide, (SIZE, SIZE)))
        for color in rng.choice(len(base), paints, replace=False):
            main = np.clip(base[color] + rng.normal(0, 0.02, 3), 0, 1)
            palette = solid.palette(tuple(main))
            images += [(each.paint(palette) * 255 + 0.5).astype(np.uint8) for each in casts]
            colors += [color] * VIEWS
            azimuths.append(azimuth.numpy())
            elevations.append(elevation.numpy())
    return {
        "images": np.stack(images),
        "kind": np.full(len(images), kind),
        "color": np.array(colors),
        "azimuth_deg": np.concatenate(azimuths).astype(np.float32),
        "elevation_deg": np.concatenate(elevations).astype(np.float32),
    }


def load_groups(cache: Path, shapes_per_kind: int, processes: int = 2) -> Corpus:
    """The corpus of groups, built once: three colours for each shape."""
    path = cache / f"groups-{shapes_per_kind}.npz"
    if not path.exists():
        build(3, shapes_per_kind, 3, processes).save(path)
    return Corpus.load(path)


def captions(corpus: Corpus, group: int, rng: np.random.Generator) -> list[str]:
    """One phrasing for the four views, each with its own view word."""
    state = int(rng.integers(2**32))
    kind, color = list(KINDS)[corpus.kind[VIEWS * group]], list(COLORS)[corpus.color[VIEWS * group]]
    said = []
    for i in range(VIEWS * group, VIEWS * group + VIEWS):
        view = view_word(float(corpus.azimuth_deg[i]), float(corpus.elevation_deg[i]))
        said.append(caption(kind, color, view, np.random.default_rng(state)))
    return said


def half_formed_groups(corpus: Corpus, source: np.ndarray, seed: int) -> np.ndarray:
    """Half-formed pictures of the groups ``source`` [P], uint8 [4 P, 3, H, W]."""
    rng = torch.Generator().manual_seed(seed)
    out = []
    for group in source:
        rows = slice(VIEWS * int(group), VIEWS * int(group) + VIEWS)
        azimuth = torch.from_numpy(corpus.azimuth_deg[rows]).deg2rad()
        elevation = torch.from_numpy(corpus.elevation_deg[rows]).deg2rad()
        formed = half_form_group(to_float(corpus.images[rows]), azimuth, elevation, rng)
        out.append((formed * 255 + 0.5).to(torch.uint8).numpy())
    return np.concatenate(out)


def half_form_group(
    images: Tensor, azimuth: Tensor, elevation: Tensor, rng: torch.Generator
) -> Tensor:
    """Four views [V, 3, H, W] in [0, 1] of a shape that is being made: a cloud of splats in space,
    or what spoils all the views alike. Angles [V] in radians."""
    views, _, size, _ = images.shape
    name = FORMED[int(torch.randint(len(FORMED), (), generator=rng))]
    strength, soft, noisy, amplitude = torch.rand(4, generator=rng).tolist()
    out = images.clone()
    if name in ("cloud", "cloud_over_object"):
        rgb, alpha = _cloud(images, azimuth, elevation, rng)
        under = torch.ones_like(images)
        if name == "cloud_over_object":
            under = images * strength + under * (1.0 - strength)
            keep = float(torch.rand((), generator=rng))
            rgb, alpha = rgb * keep, alpha * keep
        out = rgb + (1.0 - alpha) * under
    sigma = 0.4 + 4.0 * strength**1.5 if name == "blur" else 1.2 * strength if soft < 0.4 else 0.0
    out = blurred(out, torch.full((views,), sigma))
    if name == "tint" or noisy < 0.2:
        out = out + 0.16 * amplitude * smooth_noise(views, size, rng)
    if name == "speckle":
        out = out + 0.12 * strength * torch.randn(out.shape, generator=rng)
    return out.clamp(0.0, 1.0)


def _cloud(
    images: Tensor, azimuth: Tensor, elevation: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random cloud of round splats in space, seen by all the cameras from far away: rgb
    premultiplied [V, 3, H, W] and alpha [V, 1, H, W]."""
    size = images.shape[-1]
    seen = images.permute(0, 2, 3, 1).reshape(-1, 3)
    inside = seen[seen.amin(dim=1) < 0.97]
    if len(inside) and float(torch.rand((), generator=rng)) < 0.7:
        palette = inside[torch.randint(len(inside), (24,), generator=rng)]
    else:
        palette = torch.rand(12, 3, generator=rng)
    count = int(10 ** float(1.0 + 1.6 * torch.rand((), generator=rng)))
    u = torch.rand(count, 7, generator=rng)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=1)
    reach = (0.12 + 0.36 * float(torch.rand((), generator=rng))) * size
    point = direction * u[:, :1].pow(1 / 3) * reach
    sigma = 0.8 * (7.0 / 0.8) ** u[:, 1]
    opacity = u[:, 2] ** (0.5 + 2.5 * float(torch.rand((), generator=rng)))
    color = palette[(u[:, 3] * len(palette)).long()]
    color = (color + 0.15 * (u[:, 4:7] - 0.5)).clamp(0, 1)
    pictures = []
    for a, e in zip(azimuth, elevation, strict=True):
        towards = torch.stack([a.cos() * e.cos(), a.sin() * e.cos(), e.sin()])
        right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)])
        across = torch.stack([point @ right, -(point @ torch.linalg.cross(towards, right))], dim=1)
        order = (point @ towards).argsort(descending=True)
        at = across[order] + 0.5 * size
        pictures.append(composite(at, sigma[order], opacity[order], color[order], size))
    return torch.stack([p[0] for p in pictures]), torch.stack([p[1] for p in pictures])
