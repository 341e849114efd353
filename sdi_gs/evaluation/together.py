# SPDX-License-Identifier: Apache-2.0
"""What only several shapes, or many pictures together, can be asked: how much the shapes of one
sentence differ, and how far their pictures are from the model's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Looks(NamedTuple):
    """A shape as a CLIP sees it."""

    prompt: str
    shape: Tensor  # [V, D] unit vectors of its views, at the same cameras for every shape
    flat: Tensor | None = None  # [M, D] of the model's own pictures of the sentence


class Together(NamedTuple):
    """Measures of several shapes. None where there is nothing to measure them on."""

    diversity: float | None  # percent, mean over the sentences that have two shapes or more
    frechet: float | None  # of all views to all of the model's own pictures


def diversity(shapes: Tensor) -> float:
    """How much shapes of one sentence differ, percent: 100 times one minus the cosine between
    unit vectors [S, V, D] of the same view of two shapes, over all pairs and views. 0 for S equal
    shapes; ValueError for S < 2. (The App. C of arXiv 2405.15891 shows it and has no measure.)"""
    count = len(shapes)
    if count < 2:
        raise ValueError(f"{count} shapes: two or more are compared")
    # The squared length of a sum of unit vectors is their number and twice the cosines of pairs.
    length = shapes.double().sum(0).square().sum(-1)
    cosine = (length - count) / (count * (count - 1))
    return 100.0 * (1.0 - float(cosine.mean()))


def frechet(one: Tensor, other: Tensor) -> float:
    """Squared Frechet distance between normal distributions with the means and covariances of
    vectors [N, D] and [M, D]:

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    as FID has it (arXiv 1706.08500), of whatever the vectors are features of. The fewer of them,
    the larger it comes out: compare only what was measured with the same numbers. ValueError for
    less than two of either."""
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} pictures: two or more of each are needed")
    a, b = (vectors.double().numpy() for vectors in (one, other))
    first, second = (np.atleast_2d(np.cov(vectors, rowvar=False)) for vectors in (a, b))
    # (C1 C2)^(1/2) has the trace of the root of R C2 R with R = C1^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0.0)) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ second @ root).clip(min=0.0)
    apart = float(np.square(a.mean(0) - b.mean(0)).sum())
    distance = apart + float(np.trace(first) + np.trace(second) - 2.0 * np.sqrt(mixed).sum())
    return max(distance, 0.0)


def together(looks: Sequence[Looks]) -> Together:
    """The measures of shapes that were looked at by the same CLIP."""

    def sentence(one: Looks) -> str:
        return " ".join(one.prompt.lower().split())

    groups = [list(same) for _, same in groupby(sorted(looks, key=sentence), key=sentence)]
    found = [diversity(torch.stack([one.shape for one in same]))
             for same in groups if len(same) > 1]  # fmt: skip
    flat = [one.flat for one in looks if one.flat is not None]
    return Together(
        math.fsum(found) / len(found) if found else None,
        frechet(torch.cat([one.shape for one in looks]), torch.cat(flat)) if flat else None,
    )
