# SPDX-License-Identifier: Apache-2.0
"""What a visitor of ``generate --view`` costs the training.

    python benchmarks/watching.py [--preset mini] [--rounds 8] [--block 10] [--threads 1] [--still]

One headless Chromium looks at the page of a run, and its camera moves all the time (``--still``:
it rests). Blocks of steps with and without pictures for it alternate in one process; the medians of
the processor time a step are compared. The browser's own processor time is not counted; the page
stays open throughout, so what its messages cost is in both. Needs Chromium and the extra 'viewer'.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdi_gs import build, run
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.config import load
from sdi_gs.look import stage
from sdi_gs.trainer import Training, train_step
from sdi_gs.watch import viewer
from tests import browser


class Block(NamedTuple):
    """Means over a block of steps, seconds."""

    processor: float
    wall: float
    inside: float  # of the wall: spent on the page


class Blocks:
    """Steps of one training, watched or not."""

    def __init__(self, training: Training, live: viewer.LiveRun) -> None:
        self.training, self.live, self.step = training, live, 0

    def go(self, count: int, watched: bool) -> Block:
        processor, wall, inside = time.process_time(), time.perf_counter(), 0.0
        for _ in range(count):
            report = train_step(self.training, self.step)
            self.step += 1
            if watched:
                began = time.perf_counter()
                self.live.step(report)
                inside += time.perf_counter() - began
        spent = time.process_time() - processor, time.perf_counter() - wall, inside
        return Block(*(value / count for value in spent))


@contextmanager
def moving(page: viewer.Page, still: bool) -> Iterator[None]:
    """Every visitor walks around the shape."""
    stop = threading.Event()

    def walk() -> None:
        angle = 0.0
        while not stop.wait(0.1):
            angle += 0.0 if still else 0.03
            for client in page.server.get_clients().values():
                client.camera.position = (3 * math.cos(angle), 3 * math.sin(angle), 0.8)
                client.camera.look_at = (0.0, 0.0, 0.0)

    mover = threading.Thread(target=walk)
    mover.start()
    try:
        yield
    finally:
        stop.set()
        mover.join()


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[Block], list[Block]]:
    """Blocks alone and blocks watched, in turns."""
    config = load(args.preset, ["prompt=a red mug", "steps=100000", f"threads={args.threads}"])
    training = build.training(config)
    page = viewer.Page(args.port)
    live = viewer.LiveRun(page, print)
    nothing: Any = lambda *_: None  # noqa: E731
    live.begin(run.Scene(config, RunFolder(folder), stage(config, training.renderer), 0, nothing,
                         lambda: False, nothing))  # fmt: skip
    blocks = Blocks(training, live)
    blocks.go(12, watched=False)  # compilation, caches
    alone, watched = [], []
    with browser.tab(folder / "profile") as tab:
        tab.open(page.address)
        patience = time.monotonic() + 60
        while not page.looks() and time.monotonic() < patience:
            time.sleep(0.5)
        with moving(page, args.still):
            blocks.go(6, watched=True)
            for _ in range(args.rounds):
                alone.append(blocks.go(args.block, watched=False))
                watched.append(blocks.go(args.block, watched=True))
    page.close()
    return alone, watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--block", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, default=8770)
    parser.add_argument("--still", action="store_true", help="the camera rests")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "profile").mkdir()
        alone, watched = measure(args, Path(name))
    before, after = (statistics.median(b.processor for b in each) for each in (alone, watched))
    inside = statistics.median(b.inside / b.wall for b in watched)
    more = 100 * (after / before - 1)
    print(
        f"{args.preset}, camera {'still' if args.still else 'moving'}: processor time a step "
        f"{1e3 * before:.0f} ms alone, {1e3 * after:.0f} ms watched ({more:+.1f} %); "
        f"{100 * inside:.1f} % of the wall time of a step is spent on the page"
    )


if __name__ == "__main__":
    main()
