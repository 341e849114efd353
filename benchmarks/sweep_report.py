# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep of thousands of runs whose films and measures are made up.

    python benchmarks/sweep_report.py OUT [--runs 2000] [--seed 0]

Nothing is trained: a run is a film of coloured discs, a summary and a measure drawn at random; one
in fifty has failed, diverged or waits. What is timed is 'sweep report' itself, the first time with
every thumbnail, and again. OUT keeps the sweep, to open its report.html in a browser.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "teal")
THINGS = ("mug", "car", "boat", "chair", "house", "duck")
METHODS = ("sdi", "sds", "ism", "csd")
FRAMES, SIDE = 6, 128
WORDS = ("failed", "diverged", "waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    prompts = tuple(f"a {colour} {thing}" for colour in COLOURS for thing in THINGS)
    make(options.out, options.runs, prompts, rng)
    from sdi_gs.sweep import report
    from sdi_gs.sweep.manifest import open_sweep

    for which in ("the first time", "again"):
        began = time.perf_counter()
        made = report.write(open_sweep(options.out), None, lambda said: None)
        seconds = time.perf_counter() - began
        size = made.page.stat().st_size
        print(f"{options.runs:,} runs, {which}: {seconds:.1f} s, a page of {size / 2**20:.2f} MiB")


def make(out: Path, runs: int, prompts: tuple[str, ...], rng: random.Random) -> None:
    """A sweep with its runs, as they would be left."""
    from sdi_gs.experiments.compare import Row
    from sdi_gs.sweep import measured, plan
    from sdi_gs.sweep.plan import Plan

    seeds = -(-runs // (len(prompts) * len(METHODS) * 2))
    shapes = ("gaussians", "instant_ngp")
    sweep = plan.write(Plan(prompts, METHODS, shapes, tuple(range(seeds))), out).sweep
    lines = sweep.read().lines[:runs]
    sweep.manifest.write_text("".join(f"{line.text()}\n" for line in lines), encoding="utf-8")
    for number, line in enumerate(lines):
        word = WORDS[number // 50 % 3] if number % 50 == 49 else "done"
        if word == "waiting":
            continue
        state = sweep.state / line.block / f"{line.digest}.1"
        state.parent.mkdir(parents=True, exist_ok=True)
        state.touch()
        told = {"why": "step 7: the loss is inf" if word == "diverged" else "it cannot work"}
        Path(f"{state}.{word}").write_text(json.dumps(told if word != "done" else {"seconds": 9}))
        if word != "done":
            continue
        run = sweep.run(line)
        run.mkdir(parents=True)
        film(line.prompt, rng).save(run / "turntable.gif", save_all=True, append_images=FILM[1:])
        (run / "summary.json").write_text("{}")
        psnr = 9.0 + 3.0 * METHODS.index(line.method) + rng.gauss(3.0, 1.5)
        row = Row(
            line.representation, line.method, line.seed, line.prompt, line.folder, line.steps,
            {"guidance": rng.uniform(0.1, 0.4)}, rng.uniform(100, 400), 8.0,
            rng.uniform(800, 1200), None, 42195, 3000, "splats", {}, psnr, 8.0,
        )  # fmt: skip
        measured.keep(sweep, line, "default", row)


FILM: list[Image.Image] = []


def film(prompt: str, rng: random.Random) -> Image.Image:
    """A disc of the colour that the prompt names, in another place in each frame."""
    colour = prompt.split()[1]
    FILM.clear()
    for _ in range(FRAMES):
        frame = Image.new("RGB", (SIDE, SIDE), "white")
        x, y = rng.randint(20, 60), rng.randint(20, 60)
        ImageDraw.Draw(frame).ellipse((x, y, x + 50, y + 50), fill=colour)
        FILM.append(frame)
    return FILM[0]


if __name__ == "__main__":
    main()
