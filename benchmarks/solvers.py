# SPDX-License-Identifier: Apache-2.0
"""How an inversion should spend its questions: solvers of SDI's inversion judged by what they make.

    python benchmarks/solvers.py --out DIR [--variants paper,euler3,...] [--seeds 0,1,2]
                                 [--threads 1] [--benchmark]

Eight prompts of kinds that no benchmark uses, or with ``--benchmark`` the eight of quality3d.py,
which no setting may be chosen with; the seeds that are asked for; the preset mini. Each run
is judged in dB against the true object, by whether mini's own judge finds the sentence among all
others (R-precision), and by eye on a sheet for each variant. ``again`` is the paper's rule in
another order of summation (one thread more): two runs that differ by rounding alone, so that a
difference between variants can be held against it. Runs that are in DIR already are not made again;
DIR may be filled by several processes, one for each variant.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from quality3d import PROMPTS as BENCHMARK
from quality3d import run, sheet
from torch import Tensor

PROMPTS = (
    ("red", "mug"),
    ("yellow", "duck"),
    ("blue", "chair"),
    ("green", "turtle"),
    ("gray", "elephant"),
    ("teal", "fish"),
    ("purple", "car"),
    ("brown", "house"),
)
VARIANTS: dict[str, list[str]] = {
    "paper": [],
    "again": [],  # on another number of threads
    "euler3": ["noise.rho=3", "noise.steps=3"],
    "euler4": ["noise.rho=3", "noise.steps=4"],
    "ab2-4": ["noise.rho=3", "noise.steps=4", "noise.order=2"],
    "moving": ["noise.rho={start: 3, end: 1}", "noise.steps=3"],
    "even3": ["noise.steps=3"],
    "even2": ["noise.steps=2"],
    "two": ["noise.rho=3", "noise.steps=2"],
    "falling": ["noise.rho=3", "noise.steps_per_unit=5"],  # 4 steps at the start, 1 at the end
    # The words guide more at the end, where few steps blur.
    "euler3-cfg": ["noise.rho=3", "noise.steps=3", "guidance.cfg_scale={start: 1.5, end: 2.5}"],
    # Nothing is asked without words but by the inversion.
    "falling-1": ["noise.rho=3", "noise.steps_per_unit=5", "guidance.cfg_scale=1"],
    "two-1": ["noise.rho=3", "noise.steps=2", "guidance.cfg_scale=1"],
}
_MOVING = VARIANTS["moving"]
_VIEWS = ["model.source=mini_mv"]  # the sibling that sees the four views of a step together
VARIANTS |= {
    f"mv{'-moving' if solver else ''}-{scale}": [
        *_VIEWS, f"guidance.cfg_scale={scale}", *(_MOVING if solver else ())
    ]
    for solver in (False, True)
    for scale in ("1.5", "2", "2.5", "3", "4")
}  # fmt: skip


def made(out: Path) -> dict[tuple[str, str, int], dict]:
    """The rows that are there, by variant, prompt and seed."""
    lines = [line for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    return {(row["variant"], row["prompt"], row["seed"]): row for row in rows}


def retrieved(pictures: Tensor, prompt: str) -> float:
    """The share of views in which mini's judge takes the sentence for the one of the picture."""
    from sdi_gs.evaluation.protocol import MINI_JUDGE, Judge

    judge = Judge.open(MINI_JUDGE, torch.device("cpu"))
    return judge(pictures, prompt).r_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default="paper,euler3,euler4,ab2-4,moving")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between")
    parser.add_argument("--benchmark", action="store_true", help="the prompts of quality3d.py")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="settings of every run, key=value")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.variants.split(",")
    for seed in map(int, args.seeds.split(",")):
        for color, kind in BENCHMARK if args.benchmark else PROMPTS:
            for name in names:
                if (name, f"a {color} {kind}", seed) not in made(args.out):
                    one(args, name, color, kind, seed)
    report(args.out, names)


def one(args: argparse.Namespace, name: str, color: str, kind: str, seed: int) -> None:
    """Make a run and note it."""
    threads = args.threads + (name == "again")
    torch.set_num_threads(threads)
    settings = [f"threads={threads}", *VARIANTS[name], *args.overrides]
    row, pair = run("mini", color, kind, seed, settings)
    row |= {"variant": name, "r_precision": retrieved(pair[0], row["prompt"])}
    torch.save(pair.half(), args.out / f"{name}-{color}-{kind}-{seed}.pt")
    with (args.out / f"{name}.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(f"{name:8} {row['prompt']:18} seed {seed}  {row['psnr_db']:6.2f} dB  "
          f"{row['seconds']:5.0f} s", flush=True)  # fmt: skip


def report(out: Path, names: list[str]) -> None:
    """A line for each variant, and a sheet for each of its seeds."""
    found = made(out)
    print(f"{'variant':8} {'runs':>4} {'mean dB':>8} {'sd':>5} {'lowest':>7} {'R-prec.':>8} "
          f"{'recognised':>10} {'samples/step':>12} {'s/run':>6}")  # fmt: skip
    for name in names:
        rows = [row for key, row in found.items() if key[0] == name]
        if not rows:
            continue
        seeds = sorted({row["seed"] for row in rows})
        by_seed = [statistics.mean(r["psnr_db"] for r in rows if r["seed"] == s) for s in seeds]
        spread = statistics.stdev(by_seed) if len(by_seed) > 1 else float("nan")
        print(f"{name:8} {len(rows):>4} {statistics.mean(r['psnr_db'] for r in rows):>8.2f} "
              f"{spread:>5.2f} {min(r['psnr_db'] for r in rows):>7.2f} "
              f"{100 * statistics.mean(r['r_precision'] for r in rows):>7.0f}% "
              f"{sum(r['r_precision'] > 0.5 for r in rows):>10} "
              f"{statistics.mean(r['denoiser_samples_per_step'] for r in rows):>12.1f} "
              f"{statistics.median(r['seconds'] for r in rows):>6.0f}")  # fmt: skip
        for seed in seeds:
            paths = sorted(out.glob(f"{name}-*-{seed}.pt"))
            sheet([torch.load(path).float() for path in paths], out / f"{name}-{seed}.png")


if __name__ == "__main__":
    main()
