# SPDX-License-Identifier: Apache-2.0
"""3D quality on mini: PSNR of generated assets against the true objects.

Eight prompts that no test uses, three methods with the same steps, seeds, cameras and learning
rates; mean PSNR over 8 azimuths against the object with central proportions. The prompts were
drawn by chance among the kinds that no setting was ever tuned on, before any of them had been
generated with these weights.

    python benchmarks/quality3d.py [--methods mini/sds,mini/sds_annealed,mini] [--out FOLDER]
                                   [--prompts "red mug; gray elephant"] [key=value ...]

The first line, "true objects", is what random objects of the same words out of mini's own corpus
score in the same way: their proportions vary, and a generator that drew from the corpus without a
fault would score no more. Who finds the centre of the distribution scores more.

Writes one row of JSON per run and a sheet of pictures (generated above true) per method.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from representations.cameras import turntable
from sdi_gs import build
from sdi_gs.artefacts.media import psnr
from sdi_gs.config import load
from sdi_gs.mini.corpus import DISTANCE, FOV_Y_DEG, SIZE, render_instance, render_truth
from sdi_gs.trainer import train

PROMPTS = (
    ("teal", "cat"),
    ("brown", "clock"),
    ("green", "snowman"),
    ("blue", "camera"),
    ("purple", "helicopter"),
    ("pink", "airplane"),
    ("yellow", "train"),
    ("orange", "bear"),
)
METHODS = ("mini/sds", "mini/sds_annealed", "mini")  # preset, or preset/guidance
COLLAPSED_DB = 14.0  # white pictures have 8 (the camera) to 15 (the airplane) and count by object


def run(method: str, color: str, kind: str, seed: int, overrides: list[str]) -> tuple[dict, Tensor]:
    """One generation. Returns its row and the pictures [2, 8, 3, H, W] (generated, true)."""
    preset, _, guidance = method.partition("/")
    settings = [f"prompt=a {color} {kind}", f"seed={seed}", *overrides]
    config = load(preset, settings, guidance or None)
    training = build.training(config)
    cameras = turntable(8, 15.0, DISTANCE, FOV_Y_DEG, (SIZE, SIZE))
    began, evaluations = time.perf_counter(), 0
    for report in train(training):
        evaluations += report.evaluations
    seconds = time.perf_counter() - began
    with torch.no_grad():
        made = training.renderer.render(cameras, torch.ones(8, 3))[0].rgb.clamp(0, 1)
    truth = render_truth(kind, color, cameras)
    values = psnr(made, truth)
    row = {
        "method": method,
        "prompt": config.prompt,
        "seed": seed,
        "psnr_db": float(values.mean()),
        "worst_view_db": float(values.min()),
        "white_db": float(psnr(torch.ones_like(truth), truth).mean()),
        "seconds": seconds,
        "steps": config.steps,
        "denoiser_samples_per_step": evaluations / config.steps,
        "splats": report.refined.size,
    }
    return row, torch.stack([made, truth])


def true_objects_db(prompts: Sequence[tuple[str, str]], count: int = 12) -> float:
    """Mean PSNR of random true objects against the central ones, at the benchmark's cameras."""
    cameras = turntable(8, 15.0, DISTANCE, FOV_Y_DEG, (SIZE, SIZE))
    values = []
    for color, kind in prompts:
        truth = render_truth(kind, color, cameras)
        for seed in range(count):
            made = render_instance(kind, color, cameras, np.random.default_rng(seed))
            values.append(float(psnr(made, truth).mean()))
    return sum(values) / len(values)


def sheet(pictures: list[Tensor], path: Path) -> None:
    """Rows: generated, true, generated, true, ..."""
    lines = [torch.cat(list(line), dim=2) for pair in pictures for line in pair]
    grid = torch.cat(lines, dim=1).permute(1, 2, 0)
    Image.fromarray((grid * 255 + 0.5).byte().numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="PRESET or PRESET/GUIDANCE, commas between"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/quality3d"))
    parser.add_argument(
        "--prompts", help='others than the eight, to choose settings with: "red mug; blue fish"'
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="settings for every method, key=value")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    overrides = [f"threads={args.threads}", *args.overrides]
    means: dict[str, list[dict]] = {}
    given = [tuple(p.split()) for p in (args.prompts or "").split(";") if p.strip()]
    prompts: Sequence[tuple[str, str]] = given or PROMPTS  # type: ignore[assignment]
    torch.set_num_threads(args.threads)
    natural = true_objects_db(prompts)
    print(f"{'true objects':20} {natural:26.2f} dB in the mean", flush=True)
    with open(args.out / "rows.jsonl", "a") as log:
        for method in args.methods.split(","):
            pictures = []
            for seed in range(args.seeds):
                for color, kind in prompts:
                    row, pair = run(method, color, kind, seed, overrides)
                    pictures.append(pair)
                    means.setdefault(method, []).append(row)
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    print(f"{method:20} {row['prompt']:18} {row['psnr_db']:6.2f} dB "
                          f"{row['seconds']:6.1f} s", flush=True)  # fmt: skip
            sheet(pictures, args.out / f"{method.replace('/', '-')}.png")
    print(f"\n{'method':20} {'mean dB':>8} {'lowest':>7} {'collapsed':>9} {'s/run':>7} "
          f"{'samples/step':>12}")  # fmt: skip
    print(f"{'true objects':20} {natural:8.2f}")
    for method, rows in means.items():
        values = [row["psnr_db"] for row in rows]
        lost = sum(
            v < max(COLLAPSED_DB, r["white_db"] + 1) for v, r in zip(values, rows, strict=True)
        )
        print(f"{method:20} {sum(values) / len(values):8.2f} {min(values):7.2f} {lost:9d} "
              f"{sum(r['seconds'] for r in rows) / len(rows):7.1f} "
              f"{sum(r['denoiser_samples_per_step'] for r in rows) / len(rows):12.1f}")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"peak memory {peak:.0f} MB, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
