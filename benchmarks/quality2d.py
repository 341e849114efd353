# SPDX-License-Identifier: Apache-2.0
"""2D quality of mini: are its DDIM samples the object, colour and view that were asked for?

For 48 (kind, colour) pairs x 4 views x 8 samples, the nearest image (squared pixel distance) of
a held-out corpus is looked up: shapes that no training image shows, each in every colour. The
ruler is measured too: true pictures of yet other shapes, looked up in the same way, say what a
perfect model would score.

    python benchmarks/quality2d.py [--cfg 3] [--steps 30] [--model DIR] [--sheet sheet.png]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.mini import MINI_DIR
from sdi_gs.mini.corpus import COLORS, KINDS, VIEWS, Corpus
from sdi_gs.mini.data import load_fresh, load_heldout, to_float
from sdi_gs.prompts import Conditions
from sdi_gs.sampling import ddim_sample
from sdi_gs.schedule import mix


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
    uncond = model.embed([""])
    out = []
    group = max(1, 64 // per_prompt)
    for i in range(0, len(prompts), group):
        texts = [p for p in prompts[i : i + group] for _ in range(per_prompt)]
        noise = torch.randn(len(texts), 4, size, size, generator=rng)
        conditions = Conditions(uncond.expand(len(texts), -1, -1), model.embed(texts), None, None)
        z = ddim_sample(model, conditions, noise, steps, cfg)
        with torch.no_grad():
            out.append(model.decode(z).clamp(0, 1))
    images = torch.cat(out)
    return images.reshape(len(prompts), per_prompt, *images.shape[1:])


def nearest(images: torch.Tensor, reference: Corpus) -> np.ndarray:
    """Index of the nearest reference image of each of [N, 3, H, W]."""
    flat = images.reshape(len(images), -1)
    best = torch.full((len(flat),), float("inf"))
    index = torch.zeros(len(flat), dtype=torch.long)
    for start in range(0, len(reference), 4096):
        block = to_float(reference.images[start : start + 4096]).reshape(-1, flat.shape[1])
        distance = block.square().sum(1)[None] - 2 * flat @ block.T
        low, at = distance.min(dim=1)
        index = torch.where(low < best, at + start, index)
        best = torch.minimum(best, low)
    return index.numpy()


def ruler(fresh: Corpus, heldout: Corpus) -> dict[str, float]:
    """What true pictures score, in percent: the ceiling of a perfect model."""
    found = nearest(to_float(fresh.images), heldout)
    kind = heldout.kind[found] == fresh.kind
    color = heldout.color[found] == fresh.color
    view = heldout.view()[found] == fresh.view()
    rates = {"kind_and_color": kind & color, "kind": kind, "color": color, "view": view}
    return {name: round(100 * float(hit.mean()), 1) for name, hit in rates.items()}


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
    found = nearest(images.flatten(0, 1), heldout)
    kinds, colors, view_of = list(KINDS), list(COLORS), heldout.view()
    wanted = [a for a in asked for _ in range(args.samples)]
    right_kind = np.array(
        [kinds[heldout.kind[i]] == w[0] for i, w in zip(found, wanted, strict=True)]
    )
    right_color = np.array(
        [colors[heldout.color[i]] == w[1] for i, w in zip(found, wanted, strict=True)]
    )
    right_view = np.array([VIEWS[view_of[i]] == w[2] for i, w in zip(found, wanted, strict=True)])
    result: dict[str, Any] = {
        "samples": len(wanted),
        "cfg_scale": args.cfg,
        "ddim_steps": args.steps,
        "kind_and_color_percent": 100 * float((right_kind & right_color).mean()),
        "kind_percent": 100 * float(right_kind.mean()),
        "color_percent": 100 * float(right_color.mean()),
        "view_percent": 100 * float(right_view.mean()),
        "seconds": seconds,
    }
    result["true_pictures_percent"] = ruler(load_fresh(args.cache), heldout)
    result["noise_error_by_t"] = noise_errors(model, heldout)
    print(json.dumps(result, indent=2))
    for title, column, key in (("kind", 0, right_kind), ("view", 2, right_view)):
        rates = {}
        for name in dict.fromkeys(w[column] for w in wanted):
            rates[name] = float(key[[w[column] == name for w in wanted]].mean())
        worst = sorted(rates, key=rates.__getitem__)[:8]
        print(f"worst by {title}: " + ", ".join(f"{n} {100 * rates[n]:.0f}" for n in worst))
    if args.sheet:
        from PIL import Image

        first = images[: 4 * 32, :2].reshape(-1, 4, 2, 3, 64, 64)  # pair, view, sample
        rows = first.reshape(len(first), 8, 3, 64, 64)[: 8 * (len(first) // 8)]
        grid = rows.reshape(-1, 2, 8, 3, 64, 64).permute(0, 4, 1, 2, 5, 3)
        grid = grid.reshape(len(rows) // 2 * 64, -1, 3)
        Image.fromarray((grid * 255).byte().numpy()).save(args.sheet)


if __name__ == "__main__":
    main()
