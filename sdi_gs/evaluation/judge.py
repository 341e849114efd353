# SPDX-License-Identifier: Apache-2.0
"""The judge: a small CLIP of mini's world, trained apart from mini and by another objective.

``python -m sdi_gs.evaluation.judge train``, then ``... save``, then ``... measure``. It has the
ordinary ``CLIPModel`` layout, so openai/clip-vit-base-patch32 can take its place unchanged. Beside
objects, colours and views it is taught the captions of CLIP-IQA, on renders and on spoiled ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..mini.batches import step_rng
from ..mini.corpus import COLORS, KINDS, SIZE, VIEWS, Corpus, vocabulary
from ..mini.data import DataSizes, load_corpus, load_heldout, to_float
from ..mini.halfformed import blurred, splat_cloud
from ..mini.networks import TEXT_LENGTH, word_tokenizer
from .clip import IQA, Clip

JUDGE_DIR = Path(__file__).parent / "judge_weights"
WIDTH, LAYERS, PATCH, SHARED = 160, 4, 8, 128  # of the vision tower; size of the common space
QUALITIES = tuple(IQA.values())
"""What it is taught to tell apart beside objects: the pairs of CLIP-IQA."""


def make_tokenizer() -> Any:
    """Every word of the corpus and of :data:`QUALITIES` is one token."""
    words = {
        word.lower().rstrip(".") for pair in QUALITIES for text in pair for word in text.split()
    }
    return word_tokenizer(sorted({*vocabulary(), *words}))


def make_model(tokenizer: Any) -> Any:
    """A CLIPModel of about 1.3 M parameters for 64x64 pictures."""
    from transformers import CLIPConfig, CLIPModel

    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        **ends,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=SHARED)
    return CLIPModel(config)


def make_processor() -> Any:
    """How a picture becomes numbers: 64x64 pixels, [0, 1] -> [-1, 1]."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def spoil(images: Tensor, which: int, rng: torch.Generator) -> Tensor:
    """Pictures [B, 3, H, W] that deserve the second caption of ``QUALITIES[which]``.

    bad: blurred, noisy, or faint; blurry: blurred; abstract: a cloud of splats in the object's
    colours instead of the object.
    """
    count, _, _, size = images.shape
    strength = torch.rand(count, generator=rng)
    name = QUALITIES[which][1].split()[0].lower()
    if name == "abstract":
        return torch.stack([_cloud_of(image, size, rng) for image in images])
    soft = blurred(images, 0.9 + 3.0 * strength)
    if name == "blurry":
        return soft
    noisy = images + (0.06 + 0.2 * strength)[:, None, None, None] * torch.randn(
        images.shape, generator=rng
    )
    faint = 1.0 - (1.0 - images) * (0.15 + 0.4 * strength)[:, None, None, None]
    choice = torch.randint(3, (count, 1, 1, 1), generator=rng)
    return torch.where(choice == 0, soft, torch.where(choice == 1, noisy, faint)).clamp(0, 1)


def _cloud_of(image: Tensor, size: int, rng: torch.Generator) -> Tensor:
    inside = (image.amin(dim=0) < 0.97).nonzero()
    pick = inside[torch.randint(len(inside), (24,), generator=rng)]
    palette = image[:, pick[:, 0], pick[:, 1]].T
    splats = int(10 ** float(1.0 + 1.3 * torch.rand((), generator=rng)))
    rgb, alpha = splat_cloud(splats, size, palette, (0.8, 7.0), rng)
    return rgb + (1 - alpha)


def jitter(images: Tensor, rng: torch.Generator) -> Tensor:
    """Slight changes that change no caption: shift, softness, exposure."""
    shift = torch.randint(-3, 4, (2,), generator=rng).tolist()
    moved = F.pad(images, (3, 3, 3, 3), value=1.0)
    height, width = images.shape[-2:]
    y, x = 3 + shift[0], 3 + shift[1]
    moved = moved[..., y : y + height, x : x + width]
    sigma = 0.5 * torch.rand(len(images), generator=rng)
    gain = 1.0 + 0.08 * (torch.rand(len(images), 1, 1, 1, generator=rng) - 0.5)
    return (blurred(moved, sigma) * gain).clamp(0, 1)


class Trainer:
    """The loop: contrast of pictures with captions, and of spoiled pictures with whole ones."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.corpus = load_corpus(args.cache, DataSizes())
        torch.manual_seed(0)
        self.tokenizer = make_tokenizer()
        self.model = make_model(self.tokenizer)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        self.step = 0
        self.path = args.cache / "judge.pt"
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def text(self, captions: list[str]) -> Tensor:
        return text_features(self.model, self.tokenizer, captions)

    def contrast(self, images: Tensor, captions: list[str]) -> Tensor:
        """Symmetric cross-entropy in which equal captions are all right answers."""
        at = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
        row = torch.tensor([at[c] for c in captions])
        scale = self.model.logit_scale.exp().clamp(max=100.0)
        logits = scale * image_features(self.model, images) @ self.text(list(at)).T
        right = F.one_hot(row, len(at)).float()
        to_image = (right / right.sum(dim=0)).T
        return 0.5 * (F.cross_entropy(logits, row) + F.cross_entropy(logits.T, to_image))

    def quality(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Which caption of its pair a picture deserves; half of the pictures are spoiled."""
        which = int(torch.randint(len(QUALITIES), (), generator=rng))
        half = len(images) // 2
        mixed = torch.cat([spoil(images[:half], which, rng), images[half:]])
        scale = self.model.logit_scale.exp().clamp(max=100.0)
        logits = scale * image_features(self.model, mixed) @ self.text(list(QUALITIES[which])).T
        answer = torch.cat([torch.ones(half), torch.zeros(len(images) - half)]).long()
        return F.cross_entropy(logits, answer)

    def losses(self) -> tuple[Tensor, Tensor]:
        draw = step_rng(11, self.step)
        rng = torch.Generator().manual_seed(self.step)
        index = draw.integers(len(self.corpus), size=self.args.batch)
        images = jitter(to_float(self.corpus.images[index]), rng)
        captions = [c or "a photo" for c in self.corpus.captions(index, draw)]
        said = [k for k, c in enumerate(captions) if c != "a photo"]
        contrast = self.contrast(images[said], [captions[k] for k in said])
        return contrast, self.quality(images[: self.args.batch // 3], rng)

    def rate(self) -> float:
        done = self.step / self.args.steps
        cosine = 0.5 + 0.5 * float(np.cos(np.pi * done))
        return float(self.args.lr) * min(1.0, (self.step + 1) / 100) * max(cosine, 0.01)

    def run(self) -> None:
        began = time.time()
        while self.step < self.args.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            contrast, quality = self.losses()
            (contrast + 0.3 * quality).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % 50 == 0:
                seconds = (time.time() - began) / 50
                began = time.time()
                shown = f"contrast {contrast.item():.3f} quality {quality.item():.3f}"
                print(f"judge {self.step}/{self.args.steps} {shown} {seconds:.2f} s/step",
                      flush=True)  # fmt: skip
            if self.step % 250 == 0 or self.step == self.args.steps:
                state = {"model": self.model.state_dict(), "step": self.step,
                         "optimizer": self.optimizer.state_dict()}  # fmt: skip
                torch.save(state, self.path.with_suffix(".part"))
                self.path.with_suffix(".part").replace(self.path)


def image_features(model: Any, images: Tensor) -> Tensor:
    """Unit vectors [B, SHARED] of pictures [B, 3, 64, 64] in [0, 1]."""
    pooled = model.vision_model(pixel_values=images * 2 - 1).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: Any, tokenizer: Any, captions: list[str]) -> Tensor:
    """Unit vectors [B, SHARED] of captions."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    pooled = model.text_model(**ids).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def save(args: argparse.Namespace) -> None:
    """Write the folder that CLIPModel and CLIPProcessor read, float16."""
    from transformers import CLIPProcessor

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    state = torch.load(args.cache / "judge.pt", weights_only=True)
    model.load_state_dict(state["model"])
    with torch.no_grad():
        model.logit_scale.clamp_(max=float(np.log(100.0)))
    model.half().save_pretrained(args.out)
    CLIPProcessor(image_processor=make_processor(), tokenizer=tokenizer).save_pretrained(args.out)
    size = sum(p.stat().st_size for p in Path(args.out).rglob("*") if p.is_file())
    print(f"judge: wrote {args.out}, {size / 1e6:.2f} MB, after {state['step']} steps")


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Retrieval on renders that it never saw: which of all kinds and colours, which view."""
    clip = Clip.load(str(args.out))
    heldout: Corpus = load_heldout(args.cache)
    index = np.random.default_rng(5).integers(len(heldout), size=args.pictures)
    images = to_float(heldout.images[index])
    found = clip.pictures(images)
    pairs = [(k, c) for k in range(len(KINDS)) for c in range(len(COLORS))]
    names = [f"a {list(COLORS)[c]} {list(KINDS)[k]}" for k, c in pairs]
    best = (found @ clip.captions(names).T).argmax(dim=1).tolist()
    kind = np.array([pairs[b][0] for b in best]) == heldout.kind[index]
    color = np.array([pairs[b][1] for b in best]) == heldout.color[index]
    view = []
    truth = heldout.view()
    for row, i in zip(found, index, strict=True):
        name = f"a {list(COLORS)[heldout.color[i]]} {list(KINDS)[heldout.kind[i]]}"
        words = clip.captions([f"{name}, {v} view" for v in VIEWS])
        view.append(int((words @ row).argmax()) == truth[i])
    rng = torch.Generator().manual_seed(1)
    quality = {}
    for which, (good, bad) in enumerate(QUALITIES):
        words = clip.captions([good, bad])
        whole = (found[:256] @ words.T).argmax(dim=1) == 0
        spoiled = clip.pictures(spoil(images[:256], which, rng))
        quality[f"{good} / {bad}"] = 50 * float(
            whole.float().mean() + ((spoiled @ words.T).argmax(dim=1) == 1).float().mean()
        )
    return {
        "pictures": len(index),
        "kind_and_color_percent": 100 * float((kind & color).mean()),
        "kind_percent": 100 * float(kind.mean()),
        "color_percent": 100 * float(color.mean()),
        "view_percent": 100 * float(np.mean(view)),
        "quality_percent": quality,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("train", "save", "measure"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/mini"))
    parser.add_argument("--out", type=Path, default=JUDGE_DIR)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    match args.stage:
        case "train":
            Trainer(args).run()
        case "save":
            save(args)
        case _:
            print(json.dumps(measure(args), indent=2))


if __name__ == "__main__":
    main()
