# SPDX-License-Identifier: Apache-2.0
"""CLIP score, CLIP-IQA and R-precision on a ``CLIPModel`` of transformers.

Any folder in that layout will do: openai/clip-vit-base-patch32 (the paper's), or the small judge of
mini's world that ships with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artefacts.media import to_uint8
from ..errors import UserError, first_line

IQA = {
    "quality": ("Good photo.", "Bad photo."),
    "sharp": ("Sharp photo.", "Blurry photo."),
    "real": ("Real photo.", "Abstract photo."),
}
"""The pairs of CLIP-IQA (arXiv 2207.12396) that the paper reports."""

PUBLISHED = "openai/clip-vit-base-patch32"
"""The CLIP of the paper's table."""

_AT_ONCE = 64  # pictures or captions in one pass


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what turns words and pictures into its inputs."""

    source: str
    model: Any
    tokenizer: Any
    processor: Any  # of pictures
    device: torch.device

    @staticmethod
    def load(source: str, device: torch.device | str = "cpu") -> Clip:
        """From a folder, or from the hub's cache by its id. UserError when it cannot be had."""
        from transformers.utils import logging

        # Notes about absent torchvision say nothing that a user can act on.
        logging.set_verbosity_error()
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        looks_like_path = source.startswith((".", "/", "~")) or len(Path(source).parts) != 2
        folder = Path(source).expanduser()
        if looks_like_path and not folder.is_dir():
            raise UserError(
                f"clip={source}: no such folder. A CLIP folder holds config.json, "
                f"model.safetensors and the tokenizer's files, as {PUBLISHED} does"
            )
        where = str(folder) if folder.is_dir() else source
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model = CLIPModel.from_pretrained(where, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(where)
            processor = CLIPImageProcessor.from_pretrained(where)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"clip={source} cannot be loaded as a CLIPModel: {first_line(error)}. Name a "
                "folder with config.json, model.safetensors, tokenizer and preprocessor files; "
                f"without network, fetch {PUBLISHED} on another machine first"
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        target = torch.device(device)
        return Clip(source, model.eval().to(target), tokenizer, processor, target)

    @property
    def size(self) -> int:
        """Side of the pictures that the model sees, pixels."""
        return int(self.model.config.vision_config.image_size)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures [B, 3, H, W] in [0, 1], rounded to 8 bits first."""
        from PIL import Image

        out = []
        for part in images.split(_AT_ONCE):
            pils = [Image.fromarray(picture) for picture in to_uint8(part)]
            pixels = self.processor(images=pils, return_tensors="pt")["pixel_values"]
            pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            out.append(F.normalize(self.model.visual_projection(pooled), dim=-1).cpu())
        return torch.cat(out)

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of sentences."""
        out = []
        longest = int(self.model.config.text_config.max_position_embeddings)
        for first in range(0, len(texts), _AT_ONCE):
            ids = self.tokenizer(
                list(texts[first : first + _AT_ONCE]),
                padding="max_length", max_length=longest, truncation=True, return_tensors="pt",
            )  # fmt: skip
            pooled = self.model.text_model(
                input_ids=ids["input_ids"].to(self.device),
                attention_mask=ids["attention_mask"].to(self.device),
            ).pooler_output
            out.append(F.normalize(self.model.text_projection(pooled), dim=-1).cpu())
        return torch.cat(out)

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax; 100 in every published CLIP."""
        return float(self.model.logit_scale.detach().exp())


def clip_score(pictures: Tensor, caption: Tensor) -> Tensor:
    """100 * cos, not below 0, [B] (arXiv 2104.08718 with w = 100): unit vectors [B, D] and [D]."""
    return (100.0 * pictures @ caption).clamp(min=0.0)


def iqa(pictures: Tensor, pair: Tensor, scale: float) -> Tensor:
    """Probability of the first caption of ``pair`` [2, D], [B] in [0, 1]: unit vectors [B, D]."""
    return (scale * pictures @ pair.T).softmax(dim=-1)[:, 0]


def retrieved(pictures: Tensor, candidates: Tensor, own: int) -> Tensor:
    """Whether candidate ``own`` of [C, D] is the nearest to each of [B, D]; [B] bool. Its mean is
    R-precision (R = 1). A tie is not a hit."""
    cosines = pictures @ candidates.T
    mine = cosines[:, own : own + 1]
    others = torch.cat([cosines[:, :own], cosines[:, own + 1 :]], dim=1)
    return (mine > others).all(dim=1)
