# SPDX-License-Identifier: Apache-2.0
"""Measures against the true object, where mini knows it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from representations.cameras import azimuth_in_half_turn

from ..artefacts.media import psnr
from ..config import Config

WHITE = 0.95  # a pixel is of the object where its darkest channel is below
FRONT_WITHIN_DEG = 45.0  # DreamFusion's limit of the front view


class AgainstTruth(NamedTuple):
    """Means over views at the same cameras."""

    psnr_db: float
    ssim: float  # in [-1, 1]
    silhouette_iou: float  # in [0, 1]
    front_views: int  # how many of the views look like the front: the Janus score
    front_views_of_truth: int  # what a faultless object has
    right_views: int  # how many look most like the true object from their own side


def truth_of(config: Config) -> tuple[str, str] | None:
    """(kind, colour) where the prompt names one of each that mini was taught."""
    from ..mini import split_words
    from ..mini.corpus import COLORS, KINDS

    words = split_words(config.prompt)
    kinds = [word for word in words if word in KINDS]
    colors = [word for word in words if word in COLORS]
    if not config.model.embedded or len(kinds) != 1 or len(colors) != 1:
        return None
    return kinds[0], colors[0]


def silhouette(pictures: Tensor) -> Tensor:
    """Where the object is, [B, H, W] bool, of [B, 3, H, W] in [0, 1] on white."""
    return pictures.amin(dim=1) < WHITE


def silhouette_iou(pictures: Tensor, truth: Tensor) -> Tensor:
    """Overlap of the objects' outlines, [B] in [0, 1]; two empty pictures overlap fully."""
    a, b = silhouette(pictures), silhouette(truth)
    union = (a | b).sum(dim=(1, 2))
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), [B]."""
    from skimage.metrics import structural_similarity

    pairs = zip(pictures.double().numpy(), truth.double().numpy(), strict=True)
    return torch.tensor(
        [
            structural_similarity(
                a, b, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )
            for a, b in pairs
        ]
    )  # fmt: skip


def features(pictures: Tensor) -> Tensor:
    """[B, D]: means over blocks of 2, 4 and 8 pixels, a block counted as its pixels. Their distance
    forgives a wheel that stands a pixel further left."""
    blocks = (F.avg_pool2d(pictures, k).flatten(1) * k for k in (2, 4, 8))
    return torch.cat(list(blocks), dim=1)


def most_like(pictures: Tensor, truth: Tensor) -> Tensor:
    """Index of the most similar of ``truth`` [V, 3, H, W] for each of [B, 3, H, W]; [B]."""
    return torch.cdist(features(pictures), features(truth)).argmin(dim=1)


def looks_front(index: Tensor, azimuth_deg: Tensor) -> int:
    """How many of the views ``index`` name an azimuth within 45 degrees of the front."""
    turned = azimuth_in_half_turn(azimuth_deg[index]).abs()
    return int((turned < FRONT_WITHIN_DEG).sum())


RING = 24
"""Views of a turntable in which faces are counted, 15 degrees apart."""


def faces(pictures: Tensor, truth: Tensor, azimuth_deg: Tensor) -> int:
    """How many faces a shape has: one, if it is as it should be; two, for a Janus.

    ``pictures`` and ``truth`` [V, 3, H, W] at the same cameras of a whole turntable, in order. Each
    view is taken for the side of the true object that it is most like; a face is a row of
    neighbouring views, two or more, that are taken for the front. The true object has one.
    """
    turned = azimuth_in_half_turn(azimuth_deg[most_like(pictures, truth)]).abs()
    front = turned < FRONT_WITHIN_DEG
    if bool(front.all()):
        return 1
    begins = front & ~front.roll(1) & front.roll(-1)  # with a neighbour: one view alone is chance
    return int(begins.sum())


def against_truth(pictures: Tensor, truth: Tensor, azimuth_deg: Tensor) -> AgainstTruth:
    """``pictures`` and ``truth`` [V, 3, H, W] in [0, 1] at the same cameras of a turntable whose
    azimuths are ``azimuth_deg`` [V]."""
    if pictures.shape != truth.shape:
        raise ValueError(f"pictures {tuple(pictures.shape)} and truth {tuple(truth.shape)} differ")
    found = most_like(pictures, truth)
    own = torch.arange(len(truth))
    return AgainstTruth(
        float(psnr(pictures, truth).mean()),
        float(ssim(pictures, truth).mean()),
        float(silhouette_iou(pictures, truth).mean()),
        looks_front(found, azimuth_deg),
        looks_front(own, azimuth_deg),
        int((found == own).sum()),
    )


def nearest_psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """PSNR against the best of ``truth`` [V, 3, H, W], [B] in dB: for pictures whose camera is not
    known, such as those of a 2D model."""
    best = [float(psnr(p.expand_as(truth), truth).max()) for p in pictures]
    return torch.tensor(best)
