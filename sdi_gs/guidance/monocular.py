# SPDX-License-Identifier: Apache-2.0
"""Depth or normals from a single noisy picture, compared with those of the shape.

SteinDreamer (arXiv 2401.00604) takes as the function of Stein's identity how badly a monocular
estimator, MiDaS, agrees with the geometry that was drawn:

    phi(x_t) = -loss(geometry of the rendering, estimate(x_t))

with Pearson's correlation for depth and the cosine for normals. Here the estimator is four small
convolutions on latents that learn from the renderings of the run itself, one step each time, after
they were asked. Like MiDaS they are taught clean pictures only: what they say of a noisy one is
worse the noisier it is, so that phi grows with the noise as the noise's part in a prediction does.
(Taught noisy ones they see through the noise, phi is small and uncertain everywhere, and the
variance is larger than that of SDS.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from representations.convexity import camera_normals

from .viewpoints import Seen, Viewpoints

Baseline = Callable[[Tensor], Tensor]
"""phi: noisy latents [B, c, h, w] -> [B], differentiable; e.g. the error of a depth estimator."""

Geometry = Literal["depth", "normal"]
CHANNELS: dict[Geometry, int] = {"depth": 1, "normal": 3}
WIDTH = 16  # channels between the convolutions
FIRST = 401604  # seed of the first weights, which are those of every run


class Target(NamedTuple):
    """What is to be seen, as large as the latents."""

    values: Tensor  # [B, 1 or 3, h, w]
    cover: Tensor  # [B, h, w] in [0, 1], how much of a pixel is surface


def target(seen: Seen, kind: Geometry, size: tuple[int, int]) -> Target:
    """The geometry that cameras saw, averaged down to ``size`` (h, w).

    Depth is closeness, alpha / z, as MiDaS sees inverse depth: what is empty is far away. Normals
    are those of the camera's frame, for no single picture knows where the world's axes are.
    """
    cover = seen.alpha
    if kind == "depth":
        z = seen.depth
        values = torch.where(z > 0.0, cover / z.clamp(min=1e-6), torch.zeros_like(z))
    else:
        pose = seen.cameras.world_to_cam.to(seen.normal.dtype)
        values = camera_normals(seen.normal, pose)
    values, cover = (F.adaptive_avg_pool2d(x.float(), size) for x in (values, cover))
    return Target(values, cover[:, 0])


def agreement(found: Tensor, wanted: Target) -> Tensor:
    """[B] in [-1, 1]: of depth Pearson's correlation, which knows no scale and no offset; of
    normals the mean cosine on the surface. 0 for a flat picture, and where there is no surface."""
    if found.shape[1] == 1:
        one, other = (x.flatten(1) for x in (found, wanted.values))
        one, other = (x - x.mean(1, keepdim=True) for x in (one, other))
        return F.cosine_similarity(one, other, dim=1, eps=1e-6)
    cosine = F.cosine_similarity(found, wanted.values, dim=1, eps=1e-6)
    share = wanted.cover.sum((1, 2)).clamp(min=1e-6)
    return (cosine * wanted.cover).sum((1, 2)) / share


class Monocular:
    """``phi = agreement - 1`` of an estimate with the shape, and the estimator behind it.

    What is asked in a step has learned from the steps before only, so that its weights do not know
    the step's noise, as Stein's identity demands.
    """

    def __init__(self, kind: Geometry, rate: float) -> None:
        """``rate`` is Adam's."""
        self.kind: Geometry = kind
        self.rate = rate
        self._net: nn.Sequential | None = None  # made for the first latents
        self._optimizer: torch.optim.Adam | None = None
        self._saved: dict[str, Any] | None = None  # to begin with

    def baseline(self, viewpoints: Viewpoints) -> Baseline:
        """phi of pictures that were taken there. ValueError for pictures of no shape."""
        seen = self._required(viewpoints)

        def phi(x_t: Tensor) -> Tensor:
            found = self._network(x_t)(x_t.float())
            wanted = target(seen, self.kind, (x_t.shape[2], x_t.shape[3]))
            return (agreement(found, wanted) - 1.0).to(x_t)

        return phi

    @torch.enable_grad()
    def learn(self, latents: Tensor, viewpoints: Viewpoints) -> None:
        """One step of Adam towards a phi of 0 on these latents [B, c, h, w] of a rendering."""
        self._network(latents)
        optimizer = self._optimizer
        assert optimizer is not None
        optimizer.zero_grad(set_to_none=True)
        loss = -self.baseline(viewpoints)(latents.detach()).mean()
        loss.backward()
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        if self._net is None or self._optimizer is None:
            return self._saved or {}
        state = {"weights": dict(self._net.state_dict()), "optimizer": self._optimizer.state_dict()}
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._net, self._optimizer, self._saved = None, None, state or None

    def _network(self, like: Tensor) -> nn.Sequential:
        if self._net is None:
            self._net = _convolutions(like.shape[1], CHANNELS[self.kind]).to(like.device)
            self._optimizer = torch.optim.Adam(self._net.parameters(), lr=self.rate)
            if self._saved is not None:
                self._net.load_state_dict(self._saved["weights"])
                self._optimizer.load_state_dict(self._saved["optimizer"])
        return self._net

    def _required(self, viewpoints: Viewpoints) -> Seen:
        if viewpoints.seen is None:
            raise ValueError(
                f"update.baseline={self.kind} compares an estimate with the {self.kind} of a "
                "shape, and these pictures show none; write update.baseline=constant"
            )
        return viewpoints.seen


def _convolutions(channels: int, out: int) -> nn.Sequential:
    """Latents [B, channels, h, w] -> [B, out, h, w]; a pixel sees 15 x 15 of its neighbours."""
    sizes = ((channels, WIDTH, 1), (WIDTH, WIDTH, 2), (WIDTH, WIDTH, 3), (WIDTH, out, 1))
    generator = torch.Generator().manual_seed(FIRST)
    layers: list[nn.Module] = []
    for before, after, dilation in sizes:
        layer = nn.utils.skip_init(nn.Conv2d, before, after, 3, padding=dilation, dilation=dilation)
        bound = (6.0 / (9 * before)) ** 0.5  # He's
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
        layers += [layer, nn.SiLU()]
    return nn.Sequential(*layers[:-1])
