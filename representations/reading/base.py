# SPDX-License-Identifier: Apache-2.0
"""What every reader of splats gives to the door in :mod:`representations.reading`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..axes import FRAMES
from ..checks import one_of
from ..cloud import SplatCloud
from ..cutting import WHOLE, Cut

ROWS = 2**14
"""Splats decoded at once: what is in work stays in the cache, and memory at the result's size."""

MOST_UNPACKED = 100
"""Bytes that one byte of a packed file may claim to unpack into. Splats pack into a half or less;
only a file made to exhaust memory claims a thousand."""

FREE = 16 * 2**20  # bytes that any packed file may claim

OPACITY_EDGE = 1e-6
"""Opacities of exactly 0 and 1, which 8 bits hold, have no finite logit."""


class SplatFileError(ValueError):
    """A file that cannot be used as splats; the message says what was found and what is needed."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file of splats is understood where it does not say so itself."""

    up: str | None = None  # a name in :data:`axes.FRAMES`; None: what the file says, else "viewer"
    activated: bool = False  # a PLY that holds scales and opacities, not their logs and logits
    drop_bad: bool = False  # leave out rows that cannot be drawn, instead of refusing the file
    linear_colours: bool = False  # colours are linear light, not the values that a screen is sent
    cut: Cut = WHOLE  # what is left out of what was read

    def __post_init__(self) -> None:
        if self.up is not None:
            one_of("up", self.up, tuple(FRAMES))


class Source(NamedTuple):
    """A file that was opened: what it says of itself, and its splats block by block."""

    splats: int
    rest: int  # harmonics per channel beyond the constant: 0, 3, 8 or 15
    blocks: Iterator[SplatCloud]  # in the frame of the file; at most ROWS each
    notes: tuple[str, ...] = ()  # what a user should know of the reading
    up: str | None = None  # the frame that the file names
    activatable: bool = False  # whether such files exist with activated values too
    linear: bool = False  # the file says that its colours are linear light


def require_room(path: object, claimed: int, size: int) -> None:
    """Raise SplatFileError for a packed file of ``size`` bytes that claims to be a bomb."""
    if claimed > FREE + MOST_UNPACKED * size:
        raise SplatFileError(
            f"{path}: has {size:,} bytes and claims to unpack into {claimed:,}: no splats do; "
            "it is damaged"
        )


def opacity_logit(opacity: np.ndarray) -> Tensor:
    """Logits of opacities in [0, 1], finite at both ends."""
    values = torch.from_numpy(np.ascontiguousarray(opacity, np.float32))
    return torch.logit(values, eps=OPACITY_EDGE)


def tensor(values: np.ndarray) -> Tensor:
    """Float32, contiguous, of its own memory."""
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(np.array(values, np.float32, order="C"))


def ranges(count: int) -> Iterator[slice]:
    """Blocks of at most ROWS rows."""
    for first in range(0, count, ROWS):
        yield slice(first, min(first + ROWS, count))


def smallest_three(packed: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Unit quaternions [N, 4] from three components [N, 3], in order, without the ``largest``
    [N], whose sign is positive."""
    n = len(packed)
    whole = np.zeros((n, 4), np.float32)
    rest = np.arange(3)[None] + (np.arange(3)[None] >= largest[:, None])
    whole[np.arange(n)[:, None], rest] = packed
    left = 1.0 - np.square(packed).sum(axis=1)
    whole[np.arange(n), largest] = np.sqrt(np.clip(left, 0.0, None))
    return whole
