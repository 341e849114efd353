# SPDX-License-Identifier: Apache-2.0
"""Kappa that belongs to the shape or to the place of the camera, not to the picture.

Where the noise of a view is the same whenever the view is, and neighbouring views share what they
share of the surface, score distillation follows the probability-flow ODE of all views at once:
Consistent Flow Distillation (arXiv 2501.05445) paints the noise on the surface, Flow Score
Distillation (arXiv 2405.10988) on a panorama around the camera.

Noise is a function, not a table: a normal number for every (cell, channel, seed) by a hash, so it
is as large as it needs to be, and nothing has to be kept or resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from representations.checks import require

from .noise import Noised, NoiseInput
from .viewpoints import Seen

_MIX = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""The constants of splitmix64 (Steele, Lea, Flood 2014), as signed numbers."""


def hashed(numbers: Tensor) -> Tensor:
    """int64 of any shape, each mixed into 64 bits that look random: splitmix64."""
    x = numbers + _MIX[0]
    for shift, factor in ((30, _MIX[1]), (27, _MIX[2])):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def normal_of(cells: Tensor, channels: int, seed: int) -> Tensor:
    """A standard normal number for each channel of each of ``cells`` (int64 [N]): [N, channels],
    float32. The same cell and seed give the same numbers; only their rounding is the device's."""
    # Channels are mixed in before the cell, so that no cell's channel is another cell's.
    place = torch.arange(channels, device=cells.device) + (seed << 8)
    mixed = hashed(hashed(place)[None, :] ^ hashed(cells)[:, None])
    uniform = (_shifted(mixed, 11).double() + 0.5) / 2.0**53
    return (math.sqrt(2.0) * torch.erfinv(2.0 * uniform - 1.0)).float()


@dataclass(frozen=True)
class Lasting:
    """How long a hashed noise stays what it is."""

    seed: int
    share: float  # of the run until it has turned into another one; 0: it stays

    def of(self, cells: Tensor, channels: int, done: float) -> Tensor:
        """The numbers [N, channels] of ``cells`` when ``done`` of the run is done. Halfway between
        two noises their weights are those of a rotation, so that it is standard normal always."""
        turns = done / self.share if self.share > 0.0 else 0.0
        whole = math.floor(turns)
        angle = (turns - whole) * math.pi / 2
        now = normal_of(cells, channels, 2 * self.seed + (whole << 32))
        if angle == 0.0:
            return now
        then = normal_of(cells, channels, 2 * self.seed + ((whole + 1) << 32))
        return math.cos(angle) * now + math.sin(angle) * then


@dataclass(frozen=True)
class SurfaceNoise:
    """Consistent Flow Distillation (arXiv 2501.05445): noise painted on the surface.

    The shape's space is divided into cubic cells, each with a normal number per channel. A pixel of
    the latents sums the cells that its pixels of the picture see and divides by the root of their
    number; a cell that several see belongs to the one that sees most of it. So the noise of one
    view is independent standard normal, as a denoiser needs it, and two views of a piece of surface
    have the same noise there. (The publication lays the pixels of the latents as triangles on a
    picture of noise and counts the points of that picture in them; here cells are counted.)
    Where there is no surface, noise stays in the picture.
    """

    kind: Literal["surface"] = "surface"
    seed: int = 0  # which noise
    # Side of a cell, world units: about one and a half pixels of the picture. With less than one,
    # two views see different cells; the more, the fewer cells a pixel of the latents sums.
    cell: float = 0.006
    opaque: float = 0.1  # where alpha is above it there is surface
    lasts: float = 0.0  # share of the run in which the noise turns into another one; 0: never
    fresh: bool = False  # another one in each step, the same for all of its views

    def __post_init__(self) -> None:
        still = not self.fresh or self.lasts == 0.0
        require(still, "noise.fresh", self.fresh, "false with noise.lasts", False)
        require(self.cell > 0.0, "noise.cell", self.cell, "a positive length", 0.006)
        require(0.0 < self.opaque < 1.0, "noise.opaque", self.opaque, "between 0 and 1", 0.1)
        require(self.lasts >= 0.0, "noise.lasts", self.lasts, "0 or more", 0)

    def __call__(self, given: NoiseInput) -> Noised:
        seen = required(given, self.kind)
        owner = Owners.of(seen, given.z.shape[-2:], self.cell, self.opaque)
        # A fresh noise is one that has turned into the next whole one with every step.
        step = float(given.progress.step)
        lasts, done = (1.0, step) if self.fresh else (self.lasts, _done(given))
        numbers = Lasting(self.seed, lasts).of(owner.cells, given.z.shape[1], done)
        behind = in_the_picture(given, self.seed, lasts, done)
        return given.noised(owner.summed(numbers.to(given.z), behind))


@dataclass(frozen=True)
class WorldMapNoise:
    """Flow Score Distillation (arXiv 2405.10988): noise on a panorama around the camera.

    The panorama is as high as the latents for half a turn up and down and twice as wide for the
    whole turn; a view has the piece at its elevation and azimuth, moved by whole pixels, where
    there is a shape, and the noise of the picture elsewhere.
    """

    kind: Literal["world_map"] = "world_map"
    seed: int = 0
    degrees: float = 180.0  # of the panorama, that the width of a picture spans
    opaque: float = 0.5
    lasts: float = 0.0

    def __post_init__(self) -> None:
        require(0.0 < self.degrees <= 360.0, "noise.degrees", self.degrees, "0 to 360", 180)
        require(0.0 < self.opaque < 1.0, "noise.opaque", self.opaque, "between 0 and 1", 0.5)
        require(self.lasts >= 0.0, "noise.lasts", self.lasts, "0 or more", 0)

    def __call__(self, given: NoiseInput) -> Noised:
        seen = required(given, self.kind)
        channels, height, width = given.z.shape[1:]
        around = max(round(width * 360.0 / self.degrees), width)
        views = given.viewpoints
        assert views is not None
        turn = (views.azimuth_deg.double() / 360.0 * around).floor().long() % around
        rise = (-views.elevation_deg.double() / self.degrees * height).floor().long()
        device = given.z.device
        rows = rise.to(device)[:, None, None] + torch.arange(height, device=device)[:, None]
        columns = (turn.to(device)[:, None, None] + torch.arange(width, device=device)) % around
        cells = (rows * around + columns).flatten()
        numbers = Lasting(self.seed, self.lasts).of(cells, channels, _done(given))
        kappa = numbers.to(given.z).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
        cover = torch.nn.functional.adaptive_avg_pool2d(seen.alpha.to(given.z), (height, width))
        behind = in_the_picture(given, self.seed, self.lasts, _done(given))
        return given.noised(torch.where(cover >= self.opaque, kappa, behind))


def required(given: NoiseInput, kind: str) -> Seen:
    """What the cameras saw. ValueError for pictures of no shape."""
    if given.viewpoints is None or given.viewpoints.seen is None:
        raise ValueError(
            f"noise.kind={kind} paints noise on a shape, and these pictures show none; write "
            "noise.kind=fixed, which is the same for one picture"
        )
    return given.viewpoints.seen


def in_the_picture(given: NoiseInput, seed: int, lasts: float, done: float) -> Tensor:
    """One noise for every view, like z: [1, c, h, w], when ``done`` of the run is done."""
    channels, height, width = given.z.shape[1:]
    cells = torch.arange(height * width, device=given.z.device)
    numbers = Lasting(seed + (1 << 20), lasts).of(cells, channels, done)
    return numbers.to(given.z).T.reshape(1, channels, height, width)


def _done(given: NoiseInput) -> float:
    step, steps = given.progress
    return step / steps


@dataclass(frozen=True)
class Owners:
    """Which cells of space the pixels of the latents own."""

    cells: Tensor  # [M] int64, hashes of places; a cell seen by several views occurs once in each
    pixels: Tensor  # [M] int64, flat index into [B, h, w] of its owner
    shape: tuple[int, int, int]  # B, h, w

    @staticmethod
    @torch.no_grad()
    def of(seen: Seen, size: tuple[int, ...], cell: float, opaque: float) -> Owners:
        """Cells with sides of ``cell`` world units, owned by latents of ``size`` (h, w)."""
        batch, _, high, wide = seen.alpha.shape
        height, width = size
        place = (seen.points().double() / cell).floor().long()  # [B, H, W, 3]
        key = torch.zeros_like(place[..., 0])
        for axis in range(3):  # one after the other: places are few beside 2^64 hashes
            key = hashed(key ^ place[..., axis])
        device = key.device
        row = (torch.arange(high, device=device) * height // high)[:, None]
        column = torch.arange(wide, device=device) * width // wide
        view = torch.arange(batch, device=device)[:, None, None] * height * width
        pixel = (view + row * width + column).expand(batch, high, wide)
        solid = seen.alpha[:, 0] > opaque
        return Owners.elected(key[solid], pixel[solid], (batch, height, width))

    @staticmethod
    def elected(key: Tensor, pixel: Tensor, shape: tuple[int, int, int]) -> Owners:
        """Every cell of a view to the pixel that sees most of it, to the first of equals."""
        if not len(key):
            return Owners(key, pixel, shape)
        per_view = shape[1] * shape[2]
        cells, number = torch.unique(key, return_inverse=True)
        group = pixel // per_view * len(cells) + number  # a cell of a view
        pairs, count = torch.unique(group * per_view + pixel % per_view, return_counts=True)
        # Sorted by cell and pixel, so that the pixels of a cell are neighbours.
        _, index = torch.unique_consecutive(pairs // per_view, return_inverse=True)
        most = count.new_zeros(int(index[-1]) + 1)
        most.scatter_reduce_(0, index, count, "amax")
        place = torch.arange(len(pairs), device=pairs.device)
        winner = torch.full_like(most, len(pairs))
        able = count == most[index]
        winner.scatter_reduce_(0, index[able], place[able], "amin")
        won = pairs[winner]
        group = won // per_view
        return Owners(
            cells[group % len(cells)],
            group // len(cells) * per_view + won % per_view,
            shape,
        )

    def summed(self, numbers: Tensor, behind: Tensor) -> Tensor:
        """Of the cells' ``numbers`` [M, c] a sum of unit variance for each pixel, [B, c, h, w];
        ``behind`` [1, c, h, w] for those that own none."""
        batch, height, width = self.shape
        total = numbers.new_zeros(batch * height * width, numbers.shape[1])
        total.index_add_(0, self.pixels, numbers)
        owned = torch.bincount(self.pixels, minlength=len(total)).to(numbers)
        scaled = total / owned.clamp(min=1.0).sqrt()[:, None]
        kappa = scaled.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        return torch.where(owned.reshape(batch, 1, height, width) > 0, kappa, behind)
