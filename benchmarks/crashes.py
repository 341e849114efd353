# SPDX-License-Identifier: Apache-2.0
"""Kill runs and tables, type the command that is named then, and compare every file bit for bit.

    python benchmarks/crashes.py [N] [--cases splats,field,vsd,stein,table] [--seed 0]

A run is killed (SIGKILL) in three ways: just before each call that changes a file or folder, each
one once where N allows; in the middle of a write, at a random length of the file; and at a random
moment. A table is killed in the same ways, while the run that it makes is left to save.
Afterwards the command that a user is told goes on: 'resume', or the first command again where
nothing was begun. It must end with exit code 0 and with the bytes of a run that nobody disturbed,
and leave no temporary file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import children
from children import Ended

CASES = ("splats", "field", "vsd", "stein", "table")
PROMPT = "a mug"
TRIES = 3  # commands until a run must be finished


class Case(NamedTuple):
    name: str
    words: tuple[object, ...]  # of the first command, without --out


class Whole(NamedTuple):
    """What nobody disturbed."""

    files: dict[str, Any]
    seconds: float
    changes: int


def cases(folder: Path, names: Sequence[str]) -> list[Case]:
    """The runs and tables that are killed; a tiny model of random weights sees them."""
    from tests.tiny import FIELD, FIELD_TERMS, save_model, save_settings

    model = save_model(folder / "model")
    splats = save_settings(folder / "fast.yaml", model)
    field = save_settings(folder / "field.yaml", model, representation=FIELD, terms=FIELD_TERMS)

    def run(config: Path, *more: str) -> tuple[object, ...]:
        return ("generate", PROMPT, "--config", config, "output.turntable.format=mp4", *more)

    words = {
        "splats": run(splats),
        "field": run(field),
        "vsd": run(splats, "--guidance", "vsd"),
        "stein": run(splats, "--guidance", "stein"),
        "table": ("table1", PROMPT, "--representations", splats, "--guidances", "sdi,sds",
                  "--steps", "4"),
    }  # fmt: skip
    return [Case(name, words[name]) for name in names]


def content(path: Path) -> Any:
    """What a file says about the result, without the seconds that it took."""
    import torch

    from sdi_gs.artefacts import checkpoint

    if path.suffix == ".pt":
        saved = checkpoint.load(path)
        buffer = [saved.step, saved.config, saved.rng.tolist()]
        return [*buffer, _plain(saved.renderer, torch), _plain(saved.guidance, torch)]
    if path.name == "stats.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(line["step"], line["losses"], line["size"]) for line in lines]
    if path.name == "table.json":
        report = json.loads(path.read_text())
        return [(e["variant"], e["runs"], e["not_run"]) for e in report["entries"]]
    if path.name == "compare.json":
        report = json.loads(path.read_text())
        return [[(row["guidance"], row["size"]) for row in report["rows"]], report["missing"]]
    return path.read_bytes()


def _plain(value: Any, torch: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(inner, torch) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, torch) for inner in value]
    return value


TIMED = ("summary.json", "report.html", "table.html", "table.csv", "table.svg", "compare.html",
         "study.json")  # fmt: skip
"""Files that hold seconds, or nothing of the result."""


def files(out: Path) -> dict[str, Any]:
    """Every file below ``out`` by its name, but those that hold seconds."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in TIMED and path.suffix != ".log":
            found[path.relative_to(out).as_posix()] = content(path)
    return found


def wait_for_orphans(out: Path) -> None:
    """A run whose table was killed saves and ends by itself, and must not do so in the next one's
    folder."""
    from sdi_gs.artefacts.holder import living

    until = time.monotonic() + children.LIMIT
    while time.monotonic() < until and any(living(run) for run in out.glob("runs/*/")):
        time.sleep(0.1)


def going_on(case: Case, out: Path) -> tuple[object, ...]:
    """What a user is told to type after a kill."""
    if case.name != "table" and (out / "config.yaml").is_file():
        return ("resume", out)
    return (*case.words, "--out", out)


def mend(case: Case, out: Path, log: Path) -> Ended:
    """Type the command that goes on, until it is done."""
    ended = Ended(1, "")
    for _ in range(TRIES):
        ended = children.run(going_on(case, out), log)
        if ended.code == 0:
            break
    return ended


def undisturbed(case: Case, folder: Path) -> Whole:
    """The whole thing once here to warm up, and in a fork to count its changes."""
    out, log = folder / "whole", folder / "log"
    words = (*case.words, "--out", out)
    if children.warm(words, log) != 0:
        raise SystemExit(f"{case.name} does not run at all:\n{log.read_text()}")
    children.empty(out).rmdir()
    counter = children.count_changes(out, folder / "changes")
    began = time.perf_counter()
    ended = children.run(words, log, counter)
    seconds = time.perf_counter() - began
    if ended.code != 0:
        raise SystemExit(f"{case.name} does not run in a fork:\n{ended.said}")
    return Whole(files(out), seconds, len((folder / "changes").read_bytes()))


def kill(case: Case, whole: Whole, out: Path, log: Path, way: tuple[str, float]) -> str:
    """Kill it once; what it died of."""
    kind, where = way
    words = (*case.words, "--out", out)
    hooks = {
        "change": lambda: children.die_at(int(where), out),
        "write": lambda: children.die_beyond(int(where)),
        "moment": lambda: None,
    }
    pid = children.start(words, log, hooks[kind]())
    if kind == "moment":
        time.sleep(where * whole.seconds)
        os.kill(pid, signal.SIGKILL)
    code = children.wait(pid)
    return children.STUCK if code is None else str(code)


def difference(whole: Whole, out: Path) -> str:
    """Why the folder is not the undisturbed one; "" where it is."""
    found = files(out)
    if found.keys() != whole.files.keys():
        return f"other files: {sorted(found.keys() ^ whole.files.keys())}"
    differing = [name for name in found if found[name] != whole.files[name]]
    return f"other content: {differing}" if differing else ""


def ways(whole: Whole, count: int, rng: random.Random) -> list[tuple[str, float]]:
    """``count`` kills: three of four before changes, each change once where there are so many."""
    changes = list(range(whole.changes))
    rng.shuffle(changes)
    at = changes[: max(1, count - count // 4)]
    rest = count - len(at)
    writes = [
        rng.choice((40, 200, 900, 3000, 20000)) * rng.uniform(0.5, 2) for _ in range(rest // 2)
    ]
    moments = [rng.random() for _ in range(rest - len(writes))]
    return [
        *(("change", float(k)) for k in sorted(at)),
        *(("write", size) for size in writes),
        *(("moment", share) for share in moments),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=200)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    children.load()
    rng, outcomes, bad = random.Random(args.seed), Counter[tuple[str, str, str]](), []
    with tempfile.TemporaryDirectory(prefix="sdi-gs-crashes-") as name:
        folder = Path(name)
        names = args.cases.split(",")
        for index, case in enumerate(cases(folder, names)):
            share = args.count // len(names) + (index < args.count % len(names))
            below = children.empty(folder / case.name)
            whole = undisturbed(case, below)
            print(
                f"{case.name}: {whole.seconds:.1f} s, {whole.changes} changes of files", flush=True
            )
            for way in ways(whole, share, rng):
                why = one(case, whole, below, way)
                outcomes[case.name, way[0], "ok" if not why else "BAD"] += 1
                if why:
                    bad.append(f"{case.name}, {way[0]} {way[1]:g}: {why}")
                    print(bad[-1], flush=True)
    print()
    for (case_name, kind, word), number in sorted(outcomes.items()):
        print(f"{case_name:<8} {kind:<8} {word:<4} {number:>5}")
    print(f"{sum(outcomes.values())} kills, {len(bad)} not mended")
    return 1 if bad else 0


def one(case: Case, whole: Whole, below: Path, way: tuple[str, float]) -> str:
    """Kill, go on, compare; why it is not as if nothing had happened."""
    out, log = below / "killed", below / "log"
    wait_for_orphans(out)
    children.empty(out).rmdir()
    died = kill(case, whole, out, log, way)
    if died == children.STUCK:
        return "the killed command was stuck"
    try:
        ended = mend(case, out, log)
    except TimeoutError as error:
        return str(error)
    if ended.code != 0:
        return f"exit {ended.code} of the command that goes on: {ended.said[-400:]}"
    return difference(whole, out)


if __name__ == "__main__":
    sys.exit(main())
