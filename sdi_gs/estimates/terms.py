# SPDX-License-Identifier: Apache-2.0
"""The terms of a loss that an estimator of depth adds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from representations.interface import Render

from .agreement import disagreement
from .folder import MINI, Estimator, load

NAMES = ("estimated_depth",)
"""What ``terms`` may name beside the regularisers of a representation."""


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """Who says how deep a picture is, for ``terms.estimated_depth``."""

    # "mini", or the folder or hub id of a network for monocular depth in the layout of
    # transformers, such as depth-anything/Depth-Anything-V2-Small-hf; None: mini's, which knows the
    # world of mini alone
    source: str | None = None


class Estimates:
    """Depth as ``estimator`` sees it in the pictures of a shape, against the shape's own."""

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator

    @staticmethod
    def of(config: EstimatorConfig, embedded: bool, device: torch.device) -> Estimates:
        """``embedded``: the prior is of mini's world. ValueError where no estimator can be had."""
        if config.source is None and not embedded:
            raise ValueError(
                "terms.estimated_depth needs a network that sees depth in pictures like these, and "
                "the one that ships with the package knows mini's world alone; write "
                "estimator.source=FOLDER, a copy of depth-anything/Depth-Anything-V2-Small-hf or "
                "of another AutoModelForDepthEstimation, or leave the term out"
            )
        return Estimates(load(config.source or MINI, device))

    def terms(self, render: Render, names: Collection[str]) -> dict[str, Tensor]:
        """Unweighted losses of a render by name: means over its views, small is good."""
        if "estimated_depth" not in names:
            return {}
        closeness = self.estimator(render.rgb.detach())
        return {"estimated_depth": disagreement(render.depth, closeness, render.alpha).mean()}
