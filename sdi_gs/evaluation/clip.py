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
from ..diffusion.folder import ModelError, check_part, check_words, loaded, naming, read_json
from ..errors import UserError, first_line

IQA = {
    "quality": ("Good photo.", "Bad photo."),
    "sharp": ("Sharp photo.", "Blurry photo."),
    "real": ("Real photo.", "Abstract photo."),
}
"""The pairs of CLIP-IQA (arXiv 2207.12396) that the paper reports."""

PUBLISHED = "openai/clip-vit-base-patch32"
"""The CLIP of the paper's table."""

LARGEST_PICTURE = 2048
"""Side that a CLIP may see, pixels."""

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
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

        looks_like_path = source.startswith((".", "/", "~")) or len(Path(source).parts) != 2
        folder = Path(source).expanduser()
        if looks_like_path and not folder.is_dir():
            raise UserError(
                f"clip={source}: no such folder. A CLIP folder holds config.json, "
                f"model.safetensors and the tokenizer's files, as {PUBLISHED} does"
            )
        where = str(folder) if folder.is_dir() else source
        device = torch.device(device)
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        local = folder if folder.is_dir() else None

        def load() -> Any:
            return CLIPModel.from_pretrained(where, dtype=torch.float32, output_loading_info=True)

        try:
            with naming(f"the CLIPModel in {where}"):
                if local is not None:
                    check_part(local)
                    _check_pictures(local)
                model = loaded(
                    local, where, lambda: CLIPModel(CLIPConfig.from_pretrained(where)), load
                )
                tokenizer = CLIPTokenizer.from_pretrained(where)
                processor = CLIPImageProcessor.from_pretrained(where)
                words = model.config.text_config
                check_words(where, tokenizer, words.vocab_size, None)
                made = Clip(source, model.eval().to(device), tokenizer, processor, device)
                made.try_out()
        except ModelError as error:
            raise UserError(
                f"clip={source} cannot be loaded as a CLIPModel: {first_line(error)}. Name a "
                "folder with config.json, model.safetensors, tokenizer and preprocessor files; "
                f"without network, fetch {PUBLISHED} on another machine first"
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        return made

    def try_out(self) -> None:
        """One picture and one sentence: what does not go together shows here. ModelError when what
        comes out is no numbers."""
        seen = self.pictures(torch.full((1, 3, self.size, self.size), 0.5))
        read = self.captions(["a mug"])
        # Weights of zeros give vectors that normalising leaves at zero.
        unit = all(abs(float(row.norm()) - 1.0) < 1e-3 for row in (*seen, *read))
        if seen.shape != read.shape or not unit or not 1e-3 <= self.scale <= 1e4:
            raise ModelError(
                f"its pictures become {tuple(seen.shape)}, its sentences {tuple(read.shape)}, "
                f"or no unit vectors, and cosines are multiplied by {self.scale:.3g}: it is damaged"
            )

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


def _check_pictures(folder: Path) -> None:
    """Refuse pictures of a size that no CLIP has: they would be made before anybody asks."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            found = read_json(folder / name)
            found = found.get("image_processor", found)
            for key in ("size", "crop_size"):
                sizes = found.get(key) if isinstance(found, dict) else None
                for value in sizes.values() if isinstance(sizes, dict) else (sizes,):
                    if value is not None and not (
                        type(value) is int and 1 <= value <= LARGEST_PICTURE
                    ):
                        raise ModelError(
                            f"{folder / name} has {key}={value!r}: allowed are 1 to "
                            f"{LARGEST_PICTURE} pixels"
                        )
    size = (read_json(folder / "config.json").get("vision_config") or {}).get("image_size", 224)
    if not (type(size) is int and 1 <= size <= LARGEST_PICTURE):
        raise ModelError(
            f"{folder / 'config.json'} has image_size={size!r}: allowed are 1 to "
            f"{LARGEST_PICTURE} pixels"
        )


def clip_score(pictures: Tensor, caption: Tensor) -> Tensor:
    """100 * cos, not below 0, [B] (arXiv 2104.08718 with w = 100): unit vectors [B, D] and [D]."""
    return (100.0 * pictures @ caption).clamp(min=0.0)


def iqa(pictures: Tensor, pair: Tensor, scale: float) -> Tensor:
    """Probability of the first caption of ``pair`` [2, D], [B] in [0, 1]: unit vectors [B, D]."""
    return (scale * pictures @ pair.T).softmax(dim=-1)[:, 0]


def drift(pictures: Tensor, candidates: Tensor) -> float:
    """Content drift (arXiv 2308.16512): how much what is seen depends on where one stands.

    The share of pictures [B, D] whose nearest candidate of [C, D] is another than that of most; 0
    for a shape that is one thing from every side, be it the wrong one, and below 1. ValueError for
    no picture."""
    if not len(pictures):
        raise ValueError("0 pictures: at least one has to be seen")
    named = (pictures @ candidates.T).argmax(dim=1)
    return 1.0 - int(named.bincount().max()) / len(pictures)


def retrieved(pictures: Tensor, candidates: Tensor, own: int) -> Tensor:
    """Whether candidate ``own`` of [C, D] is the nearest to each of [B, D]; [B] bool. Its mean is
    R-precision (R = 1). A tie is not a hit."""
    cosines = pictures @ candidates.T
    mine = cosines[:, own : own + 1]
    others = torch.cat([cosines[:, :own], cosines[:, own + 1 :]], dim=1)
    return (mine > others).all(dim=1)
