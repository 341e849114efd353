# SPDX-License-Identifier: Apache-2.0
"""What a run at the paper's scale costs: Stable Diffusion 2.1-base at 512 x 512, random weights,
and what SDXL and SD 3.5 cost beside it.

    python benchmarks/paper_scale.py [--presets sdi_gaussians,sdi_nerf] [--steps 40] [--batch N]
                                     [--out paper_scale.json] [key=value ...]

First what can be counted without any device: FLOPs and bytes of the networks from meta tensors,
and the denoiser samples of a step from the preset's own guidance; the time of a run is estimated
from them at the speed that the paper's own time means. With a CUDA card each preset then runs for
``--steps`` steps spread over the whole falling schedule; seconds by stage, peak memory,
achieved TFLOP/s beside those of a plain matrix product in the same run, and the projected time of
10,000 steps stand beside the paper's. Without one, a single step runs at reduced size, to show that
it does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import machine
import torch

PAPER = {"minutes": 119, "gigabytes": 39.2, "card": "A6000", "steps": 10_000}  # Table 1, SDI
PROMPT = "a photo of a corgi"
PAPER_TFLOP = 233_000.0  # of its 10,000 steps, counted at 23.3 a step
GIB = 2**30
MOMENTS = 100  # of the schedule, at which a step is counted
SPEEDS = {"the paper's A6000": None, "200 TFLOP/s": 200.0}  # None: what its time means


def counted(presets: list[str], batch: int | None, overrides: list[str]) -> list[dict[str, Any]]:
    """One row per preset, from meta tensors; ``batch`` None: the preset's own."""
    from sdi_gs import budget
    from sdi_gs.config import load
    from sdi_gs.diffusion import cost
    from sdi_gs.diffusion.published import shaped, sizes_of
    from sdi_gs.diffusion.tuning import bound_encoder
    from sdi_gs.experiments.price import samples_per_step

    rows = []
    for name in presets:
        more = [] if batch is None else [f"batch={batch}"]
        config = load(name, [f"prompt={PROMPT}", *more, *overrides])
        model = shaped(sizes_of(config.model.source))
        if config.model.vae_memory == "bounded" and model.vae is not None:
            bound_encoder(model.vae)
        at_once = config.micro_batch or config.batch
        one = cost.of_prediction(model, 1)
        encoding = cost.of_encoding(model, at_once, backward=True).flops * config.batch / at_once
        text = cost.of_words(model, 6)
        samples = samples_per_step(config, MOMENTS)
        tflop = (samples * one.flops + encoding) / 1e12
        needed = budget.estimate(config)
        rows.append(
            {
                "preset": name,
                "batch": config.batch,
                "settings": [*more, *overrides],
                "denoiser_samples_per_step": samples,
                "unet_tflop_per_step": samples * one.flops / 1e12,
                "vae_tflop_per_step": encoding / 1e12,
                "tflop_per_step": tflop,
                "estimated_minutes": estimated_minutes(tflop * config.steps),
                "text_tflop_once": text.flops / 1e12,
                "weights_gib": (needed.weights + needed.words) / GIB,
                "activations_gib": needed.activations / GIB,
                "estimated_card_gib": needed.total / GIB,
            }
        )
    return rows


def estimated_minutes(tflop: float) -> dict[str, float]:
    """Of a whole run, the networks' part alone. The paper's 119 minutes for its 10,000 steps, which
    are those of sdi_nerf, mean a speed that includes everything around the networks."""
    paper = PAPER_TFLOP / (60 * PAPER["minutes"])
    return {name: tflop / (speed or paper) / 60 for name, speed in SPEEDS.items()}


def matrix_product_tflops(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """What a plain half-precision matrix product reaches: the ceiling to compare with."""
    a = torch.randn(size, size, device=device, dtype=torch.float16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        a @ a
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - began) / 1e12


def measured(row: dict[str, Any], steps: int, ceiling: float) -> dict[str, Any]:
    """The preset of ``row`` on the card, ``steps`` steps spread over the whole schedule."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.diffusion.published import random_stable_diffusion
    from sdi_gs.diffusion.tuning import Tuning, tune
    from sdi_gs.trainer import train_step

    settings = [f"prompt={PROMPT}", *row["settings"], "device=cuda"]
    config = load(row["preset"], settings)
    how = config.model
    model = random_stable_diffusion(torch.device("cuda"))
    tune(model, Tuning(how.compile, how.rows, how.vae_memory))
    training = build.training(config, model=model)
    every = max(1, config.steps // steps)
    for _ in range(3):  # compilation, caches
        train_step(training, 0)
    torch.cuda.reset_peak_memory_stats()
    reports = [train_step(training, step) for step in range(0, config.steps, every)]
    stages = {
        name: statistics.mean(r.seconds.get(name, 0.0) for r in reports)
        for name in reports[0].seconds
    }
    seconds = sum(stages.values())
    return {
        **row,
        "steps": len(reports),
        "seconds_per_step": seconds,
        "seconds_by_stage": stages,
        "achieved_tflops": row["tflop_per_step"] / (stages["guidance"] + stages["encode"]),
        "matrix_product_tflops": ceiling,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "projected_minutes_10000_steps": seconds * 10_000 / 60,
        "size_at_end": reports[-1].refined.size,
    }


def reduced_step(preset: str) -> dict[str, Any]:
    """One step on the CPU with the real networks, pictures of 64 pixels and latents of 8."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.diffusion.published import random_stable_diffusion
    from sdi_gs.trainer import train_step

    began = time.perf_counter()
    model = random_stable_diffusion("cpu", torch.float32)
    model.image_size = 64
    built = time.perf_counter() - began
    config = load(preset, [f"prompt={PROMPT}", "batch=1", "resolution=64", "device=cpu"])
    report = train_step(build.training(config, model=model), 0)
    return {
        "preset": preset,
        "seconds_to_build": built,
        "seconds_by_stage": report.seconds,
        "denoiser_samples": report.evaluations,
        "loss": report.loss,
    }


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        samples, tflop = row["denoiser_samples_per_step"], row["tflop_per_step"]
        print(f"\n{row['preset']}, batch {row['batch']}")
        minutes = ", ".join(f"{m:.0f} min at {n}" for n, m in row["estimated_minutes"].items())
        print(f"  counted   {samples:.1f} denoiser samples a step; {tflop:.1f} TFLOP "
              f"(UNet {row['unet_tflop_per_step']:.1f}, VAE {row['vae_tflop_per_step']:.1f}); "
              f"{row['weights_gib']:.2f} GiB of weights, {row['activations_gib']:.2f} GiB of "
              "activations in half precision, about "
              f"{row['estimated_card_gib']:.1f} GiB of a card in all")  # fmt: skip
        print(f"  estimated {minutes} for all steps")
        if "seconds_per_step" in row:
            stages = ", ".join(f"{k} {1e3 * v:.0f}" for k, v in row["seconds_by_stage"].items())
            print(f"  measured  {1e3 * row['seconds_per_step']:.0f} ms a step ({stages}); "
                  f"{row['achieved_tflops']:.0f} TFLOP/s of {row['matrix_product_tflops']:.0f}; "
                  f"peak {row['peak_gib']:.1f} GiB; 10,000 steps in "
                  f"{row['projected_minutes_10000_steps']:.0f} min")  # fmt: skip
    print(f"\npaper: {PAPER['minutes']} min, {PAPER['gigabytes']} GB on an {PAPER['card']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="sdi_gaussians,sdi_nerf")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, help="views a step; default the preset's own")
    parser.add_argument("--no-step", action="store_true", help="without a card: count only")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("overrides", nargs="*", help="settings for every preset, key=value")
    args = parser.parse_args()
    rows = counted(args.presets.split(","), args.batch, args.overrides)
    report: dict[str, Any] = {"cpu": machine.cpu_name(), "torch": torch.__version__,
                              "paper": PAPER}  # fmt: skip
    if torch.cuda.is_available():
        report["card"] = torch.cuda.get_device_name()
        ceiling = matrix_product_tflops(torch.device("cuda"))
        rows = [measured(row, args.steps, ceiling) for row in rows]
    elif not args.no_step:
        report["reduced_step"] = reduced_step(rows[0]["preset"])
    report["rows"] = rows
    print(f"{report.get('card', report['cpu'])}, torch {report['torch']}")
    show(rows)
    if "reduced_step" in report:
        step = report["reduced_step"]
        print(f"no CUDA card: one step of {step['preset']} with pictures of 64 pixels and latents "
              f"of 8 x 8 took {sum(step['seconds_by_stage'].values()):.0f} s here, "
              f"{step['denoiser_samples']} denoiser samples, loss {step['loss']:.3g}")  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
