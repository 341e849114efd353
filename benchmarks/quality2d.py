# SPDX-License-Identifier: Apache-2.0
"""2D quality of mini: are its DDIM samples the object, colour and view that were asked for?

For 48 (kind, colour) pairs x 4 views x 8 samples, the nearest image of a held-out corpus is looked
up: shapes that no training image shows, each in every colour. Near is measured in two ways: by
squared differences of pixels, and by those of the picture at a half, a quarter and an eighth of
its size, which forgive a wheel that stands a pixel further left. The rulers are measured too: true
pictures of yet other shapes, looked up in the same way, say what a perfect model would score.

    python benchmarks/quality2d.py [--cfg 3] [--steps 30] [--model DIR] [--sheet sheet.png]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sdi_gs.diffusion.schedule import mix
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.evaluation.truth import features
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import Conditions
from sdi_gs.guidance.sampling import ddim_sample
from sdi_gs.mini import MINI_DIR
from sdi_gs.mini.corpus import COLORS, KINDS, VIEWS, Corpus
from sdi_gs.mini.data import load_fresh, load_heldout, to_float


def pairs(count: int) -> list[tuple[str, str]]:
    """Spread over kinds and colours: pair i takes kind i mod 32, the colour shifts per round."""
    kinds, colors = list(KINDS), list(COLORS)
    return [
        (kinds[i % len(kinds)], colors[(3 * i + i // len(kinds)) % len(colors)])
        for i in range(count)
    ]


def sample(
    model: StableDiffusion, prompts: list[str], per_prompt: int, steps: int, cfg: float, seed: int
) -> torch.Tensor:
    """[len(prompts), per_prompt, 3, H, W] in [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    size = model.unet.config.sample_size
    out = []
    group = max(1, 64 // per_prompt)
    for i in range(0, len(prompts), group):
        texts = [p for p in prompts[i : i + group] for _ in range(per_prompt)]
        noise = torch.randn(len(texts), 4, size, size, generator=rng)
        conditions = Conditions(model.embed([""] * len(texts)), model.embed(texts))
        z = ddim_sample(GuidedPredictor(model, conditions), noise, steps, cfg)
        with torch.no_grad():
            out.append(model.decode(z).clamp(0, 1))
    images = torch.cat(out)
    return images.reshape(len(prompts), per_prompt, *images.shape[1:])


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Features [N, D] whose squared distance is that of the pixels."""
    return images.flatten(1)


RULERS = {"pixels": pixels, "pyramid": features}


def nearest(images: torch.Tensor, reference: Corpus, ruler: str) -> np.ndarray:
    """Index of the nearest reference image of each of [N, 3, H, W]."""
    measure = RULERS[ruler]
    asked = measure(images)
    best = torch.full((len(asked),), float("inf"))
    index = torch.zeros(len(asked), dtype=torch.long)
    for start in range(0, len(reference), 4096):
        block = measure(to_float(reference.images[start : start + 4096]))
        distance = block.square().sum(1)[None] - 2 * asked @ block.T
        low, at = distance.min(dim=1)
        index = torch.where(low < best, at + start, index)
        best = torch.minimum(best, low)
    return index.numpy()


class Hits(NamedTuple):
    """What the nearest image got right, [N] bool each."""

    kind: np.ndarray
    color: np.ndarray
    view: np.ndarray

    def percent(self) -> dict[str, float]:
        rates = {"kind_and_color": self.kind & self.color, **self._asdict()}
        return {name: round(100 * float(hit.mean()), 1) for name, hit in rates.items()}


def look_up(
    images: torch.Tensor, wanted: tuple[np.ndarray, ...], heldout: Corpus, ruler: str
) -> Hits:
    """``wanted``: kind, colour and view as indices, [N] each."""
    found = nearest(images, heldout, ruler)
    got = (heldout.kind[found], heldout.color[found], heldout.view()[found])
    return Hits(*(a == b for a, b in zip(got, wanted, strict=True)))


@torch.no_grad()
def noise_errors(model: StableDiffusion, heldout: Corpus, count: int = 256) -> dict[int, float]:
    """Mean squared error of the predicted noise on held-out renders, by t (answering 0: 1)."""
    rng = torch.Generator().manual_seed(0)
    index = np.linspace(0, len(heldout) - 1, count).astype(int)
    kinds, colors, view = list(KINDS), list(COLORS), heldout.view()
    texts = [
        f"a {colors[heldout.color[i]]} {kinds[heldout.kind[i]]}, {VIEWS[view[i]]} view"
        for i in index
    ]
    pictures = to_float(heldout.images[index]).split(32)
    z = torch.cat([model.encode(part) for part in pictures])
    condition = model.embed(texts)
    errors = {}
    for t in (50, 100, 200, 300, 500, 700, 900, 980):
        noise = torch.randn(z.shape, generator=rng)
        time_index = torch.full((count,), t)
        x = mix(z, noise, model.alpha_bar[time_index])
        batches = zip(x.split(32), time_index.split(32), condition.split(32), strict=True)
        eps = torch.cat([model.predict_noise(*batch) for batch in batches])
        errors[t] = round(float((eps - noise).square().mean()), 4)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MINI_DIR)
    parser.add_argument("--cache", type=Path, default=Path(".cache/mini"))
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="write the first samples as a picture")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    heldout = load_heldout(args.cache)
    model = StableDiffusion.load(args.model)
    asked = [(k, c, v) for k, c in pairs(args.pairs) for v in VIEWS]
    began = time.time()
    texts = [f"a {color} {kind}, {view} view" for kind, color, view in asked]
    images = sample(model, texts, args.samples, args.steps, args.cfg, args.seed)
    seconds = time.time() - began
    asked_each = [a for a in asked for _ in range(args.samples)]
    wanted = tuple(
        np.array([list(known).index(a[column]) for a in asked_each])
        for column, known in enumerate((KINDS, COLORS, VIEWS))
    )
    fresh = load_fresh(args.cache)
    truth = (fresh.kind, fresh.color, fresh.view())
    result: dict[str, Any] = {
        "samples": len(asked_each),
        "cfg_scale": args.cfg,
        "ddim_steps": args.steps,
        "seconds": round(seconds, 1),
    }
    for ruler in RULERS:
        hits = look_up(images.flatten(0, 1), wanted, heldout, ruler)
        result[ruler] = {
            "percent": hits.percent(),
            "percent_of_true_pictures": look_up(
                to_float(fresh.images), truth, heldout, ruler
            ).percent(),
        }
        worst = {name: hits.kind[wanted[0] == i].mean() for i, name in enumerate(KINDS)
                 if (wanted[0] == i).any()}  # fmt: skip
        result[ruler]["worst_kinds_percent"] = {
            name: round(100 * float(worst[name]))
            for name in sorted(worst, key=worst.__getitem__)[:8]
        }
    result["noise_error_by_t"] = noise_errors(model, heldout)
    print(json.dumps(result, indent=2))
    if args.sheet:
        from PIL import Image

        first = images[: 4 * 32, :2].reshape(-1, 4, 2, 3, 64, 64)  # pair, view, sample
        rows = first.reshape(len(first), 8, 3, 64, 64)[: 8 * (len(first) // 8)]
        grid = rows.reshape(-1, 2, 8, 3, 64, 64).permute(0, 4, 1, 2, 5, 3)
        grid = grid.reshape(len(rows) // 2 * 64, -1, 3)
        Image.fromarray((grid * 255).byte().numpy()).save(args.sheet)


if __name__ == "__main__":
    main()
