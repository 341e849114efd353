# SPDX-License-Identifier: Apache-2.0
"""Settings of methods for mini, tried on prompts that no benchmark uses.

    python benchmarks/tuning.py --out DIR --methods pfd,gcs
                                [--settings "own; guidance.cfg_scale=1.5"]
                                [--prompts "gray elephant"] [--seeds 0] [key=value ...]

Each method with its own settings for mini ("own") and with each other list of settings, judged in
dB against the true object and by whether mini's judge finds the sentence among all others. A line
of JSON for each run; those that are in DIR already are not made again, and one that loses its
numbers or is refused is a line too. The last table has a line for each method and list of settings,
means over prompts and seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from zlib import crc32

import torch
from quality3d import run, sheet
from solvers import PROMPTS, retrieved

from sdi_gs.errors import RunFailure, UserError

USUAL = (
    "own; guidance.cfg_scale=1.5; guidance.cfg_scale=3; "
    "guidance.t.high={start: 0.98, end: 0.3} guidance.t.low=null"
)


def settings_of(text: str) -> list[str]:
    """key=value words; a value in braces may hold spaces."""
    words: list[str] = []
    for word in text.split():
        if words and words[-1].count("{") > words[-1].count("}"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return [] if words == ["own"] else words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", required=True, help="commas between")
    parser.add_argument("--settings", default=USUAL, help="lists, semicolons between")
    parser.add_argument("--prompts", default="; ".join(" ".join(p) for p in PROMPTS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="settings of every run, key=value")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    log = args.out / "rows.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    rows = {
        (r["guidance"], r["settings"], r["prompt"], r["seed"]): r for r in map(json.loads, lines)
    }
    prompts = [tuple(text.split()) for text in args.prompts.split(";")]
    lists = [text.strip() for text in args.settings.split(";")]
    for method in args.methods.split(","):
        for color, kind in prompts:
            for text in lists:
                for seed in map(int, args.seeds.split(",")):
                    key = (method, text, f"a {color} {kind}", seed)
                    if key not in rows:
                        rows[key] = one(args, key, color, kind)
                        with log.open("a") as file:
                            file.write(json.dumps(rows[key]) + "\n")
    report(rows)


def one(args: argparse.Namespace, key: tuple[str, str, str, int], color: str, kind: str) -> dict:
    """Make a run; its line."""
    method, text, prompt, seed = key
    row = {"guidance": method, "settings": text, "prompt": prompt, "seed": seed}
    words = [f"threads={args.threads}", *args.overrides, *settings_of(text)]
    try:
        made, pair = run(f"mini/{method}", color, kind, seed, words)
    except (RunFailure, UserError) as error:
        print(f"{method:16} {prompt:18} {text}: {error}", flush=True)
        return row | {"failed": str(error)}
    row = made | row | {"r_precision": retrieved(pair[0], prompt)}
    name = f"{method}-{color}-{kind}-{seed}-{crc32(text.encode()):08x}"
    sheet([pair], args.out / f"{name}.png")
    print(f"{method:16} {prompt:18} {row['psnr_db']:6.2f} dB {100 * row['r_precision']:4.0f} % "
          f"{row['seconds']:4.0f} s  {text}", flush=True)  # fmt: skip
    return row


def report(rows: dict[tuple[str, str, str, int], dict]) -> None:
    head = ("runs", "failed", "dB", "R-prec.", "samples")
    print(f"\n{'method':16} " + " ".join(f"{name:>7}" for name in head) + "  settings")
    for method, text in dict.fromkeys(key[:2] for key in rows):
        some = [row for key, row in rows.items() if key[:2] == (method, text)]
        good = [row for row in some if "failed" not in row]
        if not good:
            print(f"{method:16} {len(some):>7} {len(some):>7}" + f" {'-':>7}" * 3 + f"  {text}")
            continue
        db, found, samples = (
            statistics.mean(row[name] for row in good)
            for name in ("psnr_db", "r_precision", "denoiser_samples_per_step")
        )
        print(f"{method:16} {len(some):>7} {len(some) - len(good):>7} {db:>7.2f} "
              f"{100 * found:>6.0f}% {samples:>7.1f}  {text}")  # fmt: skip


if __name__ == "__main__":
    main()
