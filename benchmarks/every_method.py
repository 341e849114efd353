# SPDX-License-Identifier: Apache-2.0
"""Every method on the benchmark's eight prompts, at equal steps and at equal calls.

    python benchmarks/every_method.py --out DIR [--steps 150 | --nfe 2400] [--seeds 0,1,2]
                                      [--methods sdi,sds] [--prompts "gray cat"] [key=value ...]

What ``sdi-gs table1`` measures, in one process, without films and files: 700 runs are a matter of
hours. A line of JSON for each run in DIR/rows.jsonl; those that are there are not made again, and
several processes, each with methods or seeds of its own, may fill one DIR. A picture of each method
and seed in DIR, two sides of each prompt. The table has a line for each method: means and standard
deviations over prompts and seeds, and the standard deviation of the means of the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from quality3d import PROMPTS
from torch import Tensor

from sdi_gs import build
from sdi_gs.artefacts.media import psnr
from sdi_gs.config import Config, guidances, load
from sdi_gs.errors import RunFailure, UserError
from sdi_gs.evaluation.protocol import MINI_JUDGE, Judge, Judged, mostly_empty
from sdi_gs.evaluation.truth import RING, faces
from sdi_gs.experiments.compare import VIEWS, Row
from sdi_gs.experiments.price import samples_per_step, steps_for
from sdi_gs.experiments.study import Without
from sdi_gs.experiments.tables import summarise, text
from sdi_gs.mini.corpus import SIZE, render_truth
from sdi_gs.trainer import train

SIDES = (0, 3)  # of the views, on the picture of a method


@cache
def judge() -> Judge:
    return Judge.open(MINI_JUDGE, torch.device("cpu"))


@cache
def truth(color: str, kind: str, views: int, samples: int | None = None) -> Tensor:
    """The true object from ``views`` sides."""
    config = load("mini", ["prompt=a mug"])
    cameras = config.views.showcase(views, SIZE, config.output.turntable.elevation_deg)
    more = {} if samples is None else {"samples": samples}
    return render_truth(kind, color, cameras, **more)


@cache
def steps_at(method: str, nfe: int, overrides: tuple[str, ...]) -> int:
    return steps_for(samples_per_step(load("mini", ["prompt=a mug", *overrides], method)), nfe)


def measured(config: Config, color: str, kind: str) -> tuple[dict[str, Any], Tensor]:
    """Make a run; its line, and what it looks like from all sides."""
    training = build.training(config)
    began, spent, split = time.perf_counter(), 0, Counter[str]()
    for report in train(training):
        spent += report.evaluations
        split.update(report.seconds)
    seconds = time.perf_counter() - began
    elevation = config.output.turntable.elevation_deg
    with torch.no_grad():
        cameras = config.views.showcase(VIEWS, SIZE, elevation)
        drawn = training.renderer.render(cameras, torch.ones(VIEWS, 3))[0]
        ring = config.views.showcase(RING, SIZE, elevation)
        around = training.renderer.render(ring, torch.ones(RING, 3))[0].rgb.clamp(0, 1)
    seen, true = drawn.rgb.clamp(0, 1), truth(color, kind, VIEWS)
    found = faces(around, truth(color, kind, RING, 2), torch.arange(RING) * (360.0 / RING))
    row = {
        "steps": config.steps,
        "samples": spent,
        "seconds": round(seconds, 1),
        "psnr_db": round(float(psnr(seen, true).mean()), 3),
        "blank_db": round(float(psnr(torch.ones_like(true), true).mean()), 3),
        "empty": mostly_empty(seen, drawn.alpha),
        "faces": found,
        "judged": asdict(judge()(seen.nan_to_num(), config.prompt)),
        "split": {name: round(value / config.steps, 4) for name, value in split.items()},
    }
    return row, seen


def one(args: argparse.Namespace, method: str, color: str, kind: str, seed: int) -> dict[str, Any]:
    """The line of a run, made now."""
    prompt = f"a {color} {kind}"
    row: dict[str, Any] = {"method": method, "prompt": prompt, "seed": seed, "at": at(args)}
    if args.overrides:
        row["settings"] = list(args.overrides)
    try:
        steps = steps_at(method, args.nfe, tuple(args.overrides)) if args.nfe else args.steps
        words = [f"prompt={prompt}", f"seed={seed}", f"steps={steps}", f"threads={args.threads}"]
        made, seen = measured(load("mini", [*words, *args.overrides], method), color, kind)
    except (RunFailure, UserError) as error:
        print(f"{method:16} {prompt:18} {seed} {error}", flush=True)
        return row | {"failed": str(error), "diverged": isinstance(error, RunFailure)}
    pair = torch.cat([seen[side] for side in SIDES], dim=2)
    picture = (pair.permute(1, 2, 0) * 255 + 0.5).byte().numpy()
    name = f"{method}-{color}-{kind}-{seed}-{at(args)}.png".replace(" ", "-")
    Image.fromarray(picture).save(args.out / name)
    print(f"{method:16} {prompt:18} {seed} {made['psnr_db']:6.2f} dB "
          f"{100 * made['judged']['r_precision']:4.0f} % {made['faces']} faces "
          f"{made['steps']:4} steps {made['seconds']:4.0f} s", flush=True)  # fmt: skip
    return row | made


def at(args: argparse.Namespace) -> str:
    """What is equal."""
    return f"nfe {args.nfe}" if args.nfe else f"steps {args.steps}"


def outcome(line: dict[str, Any]) -> Row | Without:
    """A line as a table counts it."""
    if "failed" in line:
        return Without(line["failed"], line["diverged"])
    return Row(
        representation="gaussians", guidance=line["method"], seed=line["seed"],
        prompt=line["prompt"], run="", steps=line["steps"], seconds_per_step=line["split"],
        seconds_total=line["seconds"], evaluations_per_step=line["samples"] / line["steps"],
        peak_memory_mb=None, peak_cuda_memory_mb=None, parameters=0, size=0, unit="splats",
        files={}, psnr_db=line["psnr_db"], blank_db=line["blank_db"], empty=line["empty"],
        judged=Judged(**line["judged"]), faces=line["faces"],
    )  # fmt: skip


def report(lines: list[dict[str, Any]]) -> None:
    """A table for each condition."""
    for condition in dict.fromkeys(line["at"] for line in lines):
        some = [line for line in lines if line["at"] == condition]
        entries = []
        print(f"\n{condition}")
        for method in dict.fromkeys(line["method"] for line in some):
            own = [line for line in some if line["method"] == method]
            entries.append(summarise("gaussians", method, [outcome(line) for line in own]))
            seeds = [
                statistics.mean(values)
                for seed in sorted({line["seed"] for line in own})
                if (values := [x["psnr_db"] for x in own if x["seed"] == seed and "psnr_db" in x])
            ]
            print(f"{method:16} seeds: {', '.join(f'{value:.2f}' for value in seeds)} dB"
                  + (f" +- {statistics.stdev(seeds):.2f}" if len(seeds) > 1 else ""))  # fmt: skip
        entries.sort(key=lambda entry: -(entry.psnr_db or 0.0))
        print("\n" + text(entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--nfe", type=int, help="network samples of a run, in place of steps")
    parser.add_argument("--methods", help="commas between; default every method")
    parser.add_argument("--prompts", default="; ".join(" ".join(p) for p in PROMPTS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-report", action="store_true", help="make no run")
    parser.add_argument("overrides", nargs="*", help="settings of every run, key=value")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    log = args.out / "rows.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    made = {(row["method"], row["prompt"], row["seed"], row["at"]) for row in lines}
    prompts = [tuple(words.split()) for words in args.prompts.split(";")]
    methods = args.methods.split(",") if args.methods else list(guidances())
    for seed in [] if args.only_report else map(int, args.seeds.split(",")):
        for method in methods:
            for color, kind in prompts:
                if (method, f"a {color} {kind}", seed, at(args)) not in made:
                    lines.append(one(args, method, color, kind, seed))
                    with log.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
    report(lines)


if __name__ == "__main__":
    main()
