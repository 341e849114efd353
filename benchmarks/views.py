# SPDX-License-Identifier: Apache-2.0
"""What more views a step cost: together, in portions, and shared by processes.

    python benchmarks/views.py [--config mini] [--batches 1,2,4,8] [--steps 8] [key=value ...]
    torchrun --nproc-per-node 2 benchmarks/views.py       # the same, shared

Milliseconds of a step and of a view, the shortest of several steps in the middle of the schedule,
and the peak of memory so far; a line per batch, then the largest batch in portions of one view.
"""

from __future__ import annotations

import argparse
import resource
import time

import machine
import torch

PROMPT = "a red mug"


def measure(args: argparse.Namespace, settings: list[str], team):  # type: ignore[no-untyped-def]
    """Shortest step in ms, denoiser samples of it, and peak memory in MB."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.trainer import train_step

    config = load(args.config, [f"prompt={PROMPT}", *args.overrides, *settings])
    training = build.training(config, team=team)
    middle = config.steps // 2
    times = []
    for step in range(middle, middle + args.steps + 2):
        began = time.perf_counter()
        report = train_step(training, step)
        if training.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    if training.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return 1e3 * min(times[2:]), report.evaluations, peak  # the first two compile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="mini")
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("overrides", nargs="*", help="settings, key=value")
    args = parser.parse_args()
    from sdi_gs.team import joined

    with joined() as team:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else machine.cpu_name()
        if team.leads:
            print(f"{where}, torch {torch.__version__}, {team.count} process(es) of "
                  f"{torch.get_num_threads()} threads, {args.config}")  # fmt: skip
            print(f"{'views':>6} {'at once':>8} {'ms/step':>8} {'ms/view':>8} {'samples':>8} "
                  f"{'peak MB':>8}")  # fmt: skip
        batches = [int(word) for word in args.batches.split(",")]
        lines = [(batch, batch // team.count) for batch in batches if batch % team.count == 0]
        if lines and lines[-1][1] > 1:
            lines.append((lines[-1][0], 1))
        for batch, at_once in lines:
            settings = [f"batch={batch}", f"micro_batch={at_once}"]
            ms, samples, peak = measure(args, settings, team)
            if team.leads:
                print(f"{batch:>6} {at_once:>8} {ms:>8.0f} {ms / batch:>8.1f} {samples:>8} "
                      f"{peak:>8.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
