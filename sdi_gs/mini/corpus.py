# SPDX-License-Identifier: Apache-2.0
"""The procedural corpus: kinds x colours x views, with captions, reproducible from a seed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from representations.cameras import azimuth_in_half_turn, orbit
from representations.interface import Cameras

from . import creatures, objects
from .render import cast
from .shapes import Builder, Solid, Vec3

KINDS: dict[str, Callable[[Builder], None]] = {
    function.__name__: function
    for function in (
        objects.mug, objects.chair, objects.house, objects.sofa, objects.teapot,
        objects.mushroom, objects.lighthouse, objects.castle, objects.television, objects.clock,
        objects.camera, objects.windmill, objects.mailbox, creatures.snowman, creatures.robot,
        creatures.duck, creatures.rocket, creatures.car, creatures.truck, creatures.train,
        creatures.airplane, creatures.helicopter, creatures.boat, creatures.bear, creatures.cat,
        creatures.penguin, creatures.fish, creatures.snail, creatures.turtle, creatures.elephant,
        creatures.rabbit, creatures.ladybug,
    )
}  # fmt: skip

COLORS: dict[str, Vec3] = {
    "red": (0.88, 0.12, 0.12),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.98, 0.86, 0.15),
    "green": (0.20, 0.66, 0.22),
    "teal": (0.08, 0.68, 0.68),
    "blue": (0.15, 0.32, 0.92),
    "purple": (0.52, 0.18, 0.75),
    "pink": (0.99, 0.55, 0.76),
    "brown": (0.50, 0.30, 0.15),
    "gray": (0.60, 0.60, 0.62),
}

VIEWS = ("front", "side", "back", "overhead")

SIZE = 64  # pixels
DISTANCE = 3.0  # world units; the objects fit a ball of radius 0.75
FOV_Y_DEG = 30.0

_TEMPLATES = (
    "a {color} {kind}",
    "a photo of a {color} {kind}",
    "a 3d model of a {color} {kind}",
    "{color} {kind}",
    "a picture of a {kind} that is {color}",
)


def view_word(azimuth_deg: float, elevation_deg: float) -> str:
    """DreamFusion's view words: overhead above 60 degrees, front within 45 of azimuth 0."""
    if elevation_deg > 60.0:
        return "overhead"
    azimuth = abs(float(azimuth_in_half_turn(azimuth_deg)))
    return "front" if azimuth < 45.0 else "back" if azimuth > 135.0 else "side"


def caption(kind: str, color: str, view: str, rng: np.random.Generator) -> str:
    """One of several phrasings; 10 % are empty, 10 % say no view, 4 % say no colour."""
    dropped, no_view, no_color, template = rng.random(4)
    if dropped < 0.10:
        return ""
    if no_color < 0.04:
        text = f"a {kind}"
    else:
        text = _TEMPLATES[int(template * len(_TEMPLATES))].format(color=color, kind=kind)
    return text if no_view < 0.10 else f"{text}, {view} view"


def vocabulary() -> list[str]:
    """Every word that a caption can hold."""
    words = {"view", *VIEWS, *COLORS, *KINDS}
    for template in _TEMPLATES:
        words.update(w for w in template.split() if "{" not in w)
    return sorted(words)


def truth(kind: str) -> Solid:
    """The object with every proportion at its central value: the mode of its distribution."""
    if kind not in KINDS:
        raise ValueError(f"mini knows no kind {kind!r}; it knows {', '.join(sorted(KINDS))}")
    builder = Builder(None)
    KINDS[kind](builder)
    return builder.finish()


def render_truth(kind: str, color: str, cameras: Cameras, samples: int = 3) -> Tensor:
    """Pictures of the central object on white, [B, 3, H, W] float32."""
    return _painted(truth(kind), color, cameras, samples)


def render_instance(kind: str, color: str, cameras: Cameras, rng: np.random.Generator) -> Tensor:
    """Pictures of a random object of that kind as the corpus has them, [B, 3, H, W] float32."""
    builder = Builder(rng)
    KINDS[kind](builder)
    return _painted(builder.finish(), color, cameras, samples=2)


def _painted(solid: Solid, color: str, cameras: Cameras, samples: int) -> Tensor:
    palette = solid.palette(COLORS[color])
    return torch.from_numpy(np.stack([c.paint(palette) for c in cast(solid, cameras, samples)]))


@dataclass(frozen=True)
class Corpus:
    """Images with what is true of them."""

    images: np.ndarray  # [N, 3, 64, 64] uint8
    kind: np.ndarray  # [N] index into KINDS
    color: np.ndarray  # [N] index into COLORS
    azimuth_deg: np.ndarray  # [N] float32
    elevation_deg: np.ndarray  # [N] float32

    def __len__(self) -> int:
        return len(self.images)

    def view(self) -> np.ndarray:
        """Index into VIEWS, [N]."""
        pairs = zip(self.azimuth_deg, self.elevation_deg, strict=True)
        return np.array([VIEWS.index(view_word(a, e)) for a, e in pairs])

    def captions(self, index: np.ndarray, rng: np.random.Generator) -> list[str]:
        kinds, colors = list(KINDS), list(COLORS)
        return [
            caption(
                kinds[self.kind[i]],
                colors[self.color[i]],
                view_word(float(self.azimuth_deg[i]), float(self.elevation_deg[i])),
                rng,
            )
            for i in index
        ]

    def save(self, path: Path) -> None:
        temporary = path.with_name(path.name + ".part.npz")
        np.savez(temporary, **vars(self))
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> Corpus:
        with np.load(path) as data:
            return Corpus(**{key: data[key] for key in data.files})


def sample_elevation(rng: np.random.Generator) -> float:
    """Mostly the range in which score distillation looks, with a share from overhead."""
    u = rng.random()
    if u < 0.14:
        return float(rng.uniform(60.0, 85.0))
    return float(rng.uniform(45.0, 60.0) if u < 0.17 else rng.uniform(-10.0, 45.0))


def _build_kind(job: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """All images of one kind. A job is (seed, kind index, casts, colours painted per cast)."""
    seed, kind_index, casts, paints = job
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, kind_index])
    build = list(KINDS.values())[kind_index]
    base = np.array(list(COLORS.values()))
    images, colors, azimuths, elevations = [], [], [], []
    views_per_shape = 4
    for _ in range(casts // views_per_shape):
        builder = Builder(rng)
        build(builder)
        solid = builder.finish()  # one size for all: proportions vary, the scale says nothing
        azimuth = rng.uniform(-180.0, 180.0, views_per_shape)
        elevation = [sample_elevation(rng) for _ in range(views_per_shape)]
        cameras = orbit(
            torch.tensor(azimuth, dtype=torch.float32),
            torch.tensor(elevation, dtype=torch.float32),
            torch.full((views_per_shape,), DISTANCE),
            torch.full((views_per_shape,), FOV_Y_DEG),
            (SIZE, SIZE),
        )
        for view, ray_cast in enumerate(cast(solid, cameras)):
            for color in rng.choice(len(base), paints, replace=False):
                main = np.clip(base[color] + rng.normal(0, 0.02, 3), 0, 1)
                painted = ray_cast.paint(solid.palette(tuple(main)))
                images.append((painted * 255 + 0.5).astype(np.uint8))
                colors.append(color)
                azimuths.append(azimuth[view])
                elevations.append(elevation[view])
    return {
        "images": np.stack(images),
        "kind": np.full(len(images), kind_index),
        "color": np.array(colors),
        "azimuth_deg": np.array(azimuths, dtype=np.float32),
        "elevation_deg": np.array(elevations, dtype=np.float32),
    }


def build(seed: int, casts_per_kind: int, paints_per_cast: int = 2, processes: int = 2) -> Corpus:
    """Render the corpus. The result depends on the arguments before ``processes`` only."""
    jobs = [(seed, k, casts_per_kind, paints_per_cast) for k in range(len(KINDS))]
    if processes == 1:
        parts = [_build_kind(job) for job in jobs]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.map(_build_kind, jobs, chunksize=1)
    return Corpus(**{key: np.concatenate([p[key] for p in parts]) for key in parts[0]})
