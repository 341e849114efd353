# SPDX-License-Identifier: Apache-2.0
"""ImageReward (arXiv 2304.05977), where its package and a local copy of its weights are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artefacts.media import to_uint8
from ..errors import UserError

WEIGHTS = "ImageReward.pt"


@dataclass(frozen=True)
class Reward:
    """Scores pictures by how people would rate them; about -2 to 2."""

    model: Any

    @staticmethod
    def load(folder: Path) -> Reward:
        """``folder`` holds ImageReward.pt and med_config.json, as THUDM/ImageReward does."""
        if not (folder / WEIGHTS).is_file():
            raise UserError(
                f"image_reward={folder}: no {WEIGHTS} in it. It is a local copy of "
                "THUDM/ImageReward, with ImageReward.pt and med_config.json"
            )
        try:
            import ImageReward
        except ImportError as error:
            raise UserError(
                f"image_reward needs the package image-reward, which cannot be imported here "
                f"({error}); pip install image-reward, in an environment of its own if it asks "
                "for an older transformers, or leave the option out"
            ) from error
        return Reward(
            ImageReward.load(str(folder / WEIGHTS), med_config=str(folder / "med_config.json"))
        )

    @torch.no_grad()
    def __call__(self, pictures: Tensor, prompt: str) -> float:
        """Mean over [B, 3, H, W] in [0, 1]."""
        from PIL import Image

        pils = [Image.fromarray(picture) for picture in to_uint8(pictures)]
        scores = [float(self.model.score(prompt, pil)) for pil in pils]
        return sum(scores) / len(scores)
