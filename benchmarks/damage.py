# SPDX-License-Identifier: Apache-2.0
"""Damaged files by the thousand: what do the readers say?

    python benchmarks/damage.py [-n 20000] [--seed 0] [--only PART]      e.g. --only splats

Each mutation is drawn from a seed of its own, so that a line of the output can be made again. It is
read in a child with a limit on time and memory. What may come out: the same, other values that make
sense, or one message that names a file. What must not: an internal error, a message without a file,
NaN or a number out of its range, more than 1 GB beyond what the imports hold, more than 10 seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import victims
import wounds
from victims import Nonsense, Victim, digest

from sdi_gs.errors import UserError

SECONDS, MEGABYTES = 10.0, 1000
SPARE = 2 * 2**30  # bytes of address space beyond MEGABYTES, so that the excess can be measured
BATCH = 100  # mutations of a child
GOOD = ("same", "other", "refused")
BAD = ("unnamed", "internal", "nonsense", "memory", "hang")


class Hang(BaseException):
    """Ten seconds are over; no reader catches that."""


class Outcome(NamedTuple):
    number: int  # the seed of the mutation
    kind: str  # one of GOOD and BAD
    what: str  # which file, which wound
    said: str
    seconds: float
    megabytes: float


def damaged(victim: Victim, number: int, seed: int, target: Path) -> str:
    """Links to the whole files at ``target``, one of them damaged; what was done."""
    rng = random.Random(f"{seed} {victim.name} {number}")
    wounds.mirrored(victim.whole, target)
    name = rng.choice(sorted(victim.wounds))
    path = target / name
    if rng.random() < 0.03:
        wounds.in_folder(path, rng)
        return f"{name}: in_folder"
    data, done = path.read_bytes(), []
    path.unlink()
    for _ in range(rng.choice((1, 1, 1, 2))):
        wound = rng.choice(victim.wounds[name])
        try:
            data = wound(data, rng)
            done.append(wound.__name__)
        except Exception:  # a second wound may find nothing that it understands
            continue
    path.write_bytes(data)
    return f"{name}: {', '.join(done)}"


def attempt(
    victim: Victim, number: int, seed: int, folder: Path, whole: str, seconds: float = 0.0
) -> Outcome:
    """One mutation, read in this process; ``seconds`` sets an alarm, 0 none."""
    target = folder / "damaged"
    what = damaged(victim, number, seed, target)
    began = time.perf_counter()
    kind, said = "internal", ""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        found = _sum(victim.read(target))
        kind = "same" if found == whole else "other"
    except UserError as error:
        said = str(error)
        names = [str(target), *(Path(name).name for name in victim.wounds)]
        kind = "refused" if any(name in said for name in names) else "unnamed"
    except Nonsense as error:
        kind, said = "nonsense", str(error)
    except Hang:
        kind = "hang"
    except Exception:
        said = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome(number, kind, what, said, time.perf_counter() - began, 0.0)


def _sum(found: Any) -> str:
    return hashlib.sha1(digest(found).encode()).hexdigest()


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def _child(
    victim: Victim, numbers: list[int], seed: int, folder: Path, whole: str, out: int
) -> None:
    """Write one line of JSON per mutation."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEGABYTES * 2**20 + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # What readers print is not what they say.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    Path("/proc/self/clear_refs").write_text("5")
    held = _peak_mb()
    for number in numbers:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        outcome = attempt(victim, number, seed, folder, whole, SECONDS)
        outcome = outcome._replace(megabytes=_peak_mb() - held)
        if outcome.megabytes > MEGABYTES and outcome.kind in GOOD:
            outcome = outcome._replace(kind="memory")
        os.write(out, (json.dumps(outcome) + "\n").encode())


def batch(victim: Victim, numbers: list[int], seed: int, folder: Path, whole: str) -> list[Outcome]:
    """A child does these; the one that kills it or holds it up is found out."""
    done: list[Outcome] = []
    while len(done) < len(numbers):
        inlet, outlet = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(inlet)
            code = 1
            try:
                _child(victim, numbers[len(done) :], seed, folder, whole, outlet)
                code = 0
            finally:
                os._exit(code)
        os.close(outlet)
        done += _listen(inlet, child)
        os.close(inlet)
        _, status = os.waitpid(child, 0)
        if status != 0 and len(done) < len(numbers):
            late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            said = f"the process ended with {status}"
            kind = "hang" if late or status == signal.SIGKILL else "internal"
            done.append(Outcome(numbers[len(done)], kind, "?", said, SECONDS, 0.0))
    return done


def _apart(victim: Victim, folder: Path) -> str:
    """What the whole files are, found in a child: libraries with threads must not be used on both
    sides of a fork."""
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(
                outlet, hashlib.sha1(digest(victim.read(folder)).encode()).hexdigest().encode()
            )
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(outlet)
    with os.fdopen(inlet, "rb") as stream:
        found = stream.read().decode()
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(f"{victim.name}: the whole files are not read")
    return found


def _listen(inlet: int, child: int) -> Iterator[Outcome]:
    text = b""
    while True:
        ready, _, _ = select.select([inlet], [], [], 3 * SECONDS)
        if not ready:  # code that never comes back to Python
            os.kill(child, signal.SIGKILL)
            return
        piece = os.read(inlet, 65536)
        if not piece:
            return
        text += piece
        *rows, text = text.split(b"\n")
        yield from (Outcome(*json.loads(row)) for row in rows)


def table(counts: dict[str, Counter[str]], worst: dict[str, tuple[float, float]]) -> str:
    head = ["reader", "mutations", *GOOD, *BAD, "longest s", "most MB"]
    rows = [head]
    for name, found in counts.items():
        figures = [str(found[kind]) for kind in (*GOOD, *BAD)]
        seconds, megabytes = worst[name]
        rows.append(
            [name, str(sum(found.values())), *figures, f"{seconds:.1f}", f"{megabytes:.0f}"]
        )
    total = sum(counts.values(), Counter())
    rows.append(["all", str(sum(total.values())), *(str(total[k]) for k in (*GOOD, *BAD)), "", ""])
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) if k else cell.ljust(width)
                  for k, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=20_000, help="mutations of these readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only readers with this in their name")
    parser.add_argument("--show", type=int, default=5, help="bad ones that are shown, of a reader")
    args = parser.parse_args()
    # Imported once, not by every child.
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer  # noqa: F401

    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    worst: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    try:
        found = [v for v in victims.victims(folder) if (args.only or "") in v.name]
        everyone = sum(victim.share for victim in found)
        for victim in found:
            wounds.mirrored(victim.whole, folder / "whole")
            whole = _apart(victim, folder / "whole")
            amount = max(1, round(args.n * victim.share / everyone))
            shown = 0
            for first in range(0, amount, BATCH):
                numbers = list(range(first, min(amount, first + BATCH)))
                for outcome in batch(victim, numbers, args.seed, folder, whole):
                    counts[victim.name][outcome.kind] += 1
                    seconds, megabytes = worst[victim.name]
                    worst[victim.name] = (max(seconds, outcome.seconds),
                                          max(megabytes, outcome.megabytes))  # fmt: skip
                    slow = outcome.seconds > SECONDS / 3
                    if (outcome.kind in BAD or slow) and shown < args.show:
                        shown += 1
                        print(f"{victim.name} {outcome.number} {outcome.kind}, "
                              f"{outcome.seconds:.1f} s: {outcome.what}\n"
                              f"    {outcome.said}", flush=True)  # fmt: skip
            print(victim.name, dict(counts[victim.name]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + table(counts, worst))
    bad: Any = sum(count[kind] for count in counts.values() for kind in BAD)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
