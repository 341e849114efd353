# SPDX-License-Identifier: Apache-2.0
"""Does a test notice when a formula is wrong? One mistake at a time, on a copy of the sources.

    python benchmarks/mutations.py [--files sdi_gs/views.py ...] [--out .cache/mutations.jsonl]
                                   [--list] [--again]

A mutant is the source with one small change: a comparison shifted or turned around, a sign, a
number, a condition negated, ``and`` for ``or``, two arguments swapped, a step such as ``.abs()``
left out, a result replaced by None. The oracle tests of guidance run on each until the first one
fails. A mutant that no test notices is a survivor: either no test says what the line means, or the
change means nothing. Those are listed with their reasons in ``equivalent_mutants.tsv``.

Results are appended to ``--out``, a line of JSON each. A run that was stopped goes on where it
stood, and a change of the sources asks for the mutants of the changed lines only. ``--again`` runs
the survivors once more, after tests were added. ``--list`` prints the mutants and runs nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from mutants import Mutant, mutants

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "sdi_gs" / "guidance").glob("*.py")), ROOT / "sdi_gs" / "views.py"]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.tsv")
ORACLES = ("published_settings", "words", "views", "draws", "oracles_denoiser", "oracles_noise",
           "oracles_guidance", "methods", "seams", "counts", "taught", "sampling", "flat", "stein",
           "monocular", "variational")  # fmt: skip
"""Closed forms only: each file takes a few seconds."""
NEAREST = {
    "distillation": ("oracles_guidance", "methods"),
    "draws": ("draws",),
    "image_space": ("methods",),
    "monocular": ("monocular",),
    "noise": ("oracles_noise", "oracles_denoiser", "methods"),
    "predict": ("words", "oracles_guidance", "methods"),
    "sampling": ("sampling",),
    "stein": ("stein", "monocular"),
    "update": ("methods",),
    "variational": ("variational",),
}
"""The oracles that are most likely to notice a mistake in a module, and run first."""
COPIED = ("sdi_gs", "representations", "tests", "configs", "examples", "pyproject.toml")
PATIENCE = 120  # seconds of processor time; all tests take a quarter of it
LARGEST = 200_000  # bytes; larger files of the copy are links


class Outcome(NamedTuple):
    status: str  # killed, survived, timeout
    by: str  # the first test that failed
    seconds: float


def copy_tree(folder: Path) -> None:
    """The tree that tests run on; large files are links."""

    def take(source: str, target: str) -> None:
        if os.path.getsize(source) > LARGEST:
            os.symlink(source, target)
        else:
            shutil.copy2(source, target)

    unwanted = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, copy_function=take, ignore=unwanted)
        else:
            take(str(source), str(folder / name))


def run_tests(folder: Path, tests: list[str], seconds: int) -> Outcome:
    """Run the tests in a child of this process, which has torch loaded already; it may use
    ``seconds`` of processor time, whatever else the machine is doing."""
    log, began = folder / "log.txt", time.perf_counter()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os._exit(_child(folder, tests))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    spent = time.perf_counter() - began
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome("timeout", "", spent)
    said = log.read_text(encoding="utf-8", errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.M)
    return Outcome("killed" if status else "survived", failed[1] if failed else "", spent)


class WithoutNetworks:
    """Leaves out the tests that need a model folder: they are slow, and no oracles."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if "tiny_model" not in item.fixturenames]


def _child(folder: Path, tests: list[str]) -> int:
    os.chdir(folder)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    import pytest

    words = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist",
             *tests]  # fmt: skip
    try:
        return int(pytest.main(words, plugins=[WithoutNetworks()]))
    except BaseException:
        return 1


def known_equivalents() -> dict[tuple[str, str, str, str], str]:
    """The reasons why mutants mean nothing, by file, place, before and after."""
    if not EQUIVALENT.is_file():
        return {}
    with EQUIVALENT.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {(r["file"], r["where"], r["before"], r["after"]): r["reason"] for r in rows}


def read(path: Path) -> dict[str, dict[str, object]]:
    """The newest result of each mutant."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["key"]: row for row in map(json.loads, lines)}


def summary(every: list[Mutant], results: dict[str, dict[str, object]]) -> str:
    """Counts by file, survivors, and equivalents that are listed but do not survive."""
    known = known_equivalents()
    counts: dict[str, Counter[str]] = {}
    survivors, met = [], set()
    for mutant in every:
        row = counts.setdefault(mutant.file, Counter())
        place = (mutant.file, mutant.where, mutant.before, mutant.after)
        status = str(results.get(mutant.key, {}).get("status", "not run"))
        if status == "survived":
            met.add(place)
            status = "equivalent" if place in known else "survived"
        if status == "survived":
            survivors.append(mutant.shown())
        row["mutants"] += 1
        row["killed" if status == "timeout" else status] += 1
    columns = ("mutants", "killed", "equivalent", "survived", "not run")
    total = sum(counts.values(), Counter[str]())
    lines = [f"{'file':40}" + "".join(f"{column:>12}" for column in columns)]
    for name, row in (*counts.items(), ("together", total)):
        lines.append(f"{name:40}" + "".join(f"{row[column]:12}" for column in columns))
    ours = {mutant.file for mutant in every}
    gone = [place for place in known if place[0] in ours and place not in met]
    if gone and not total["not run"]:
        lines += ["listed as equivalent, but no survivor:", *("  " + " | ".join(p) for p in gone)]
    return "\n".join([*lines, *(["survivors:"] if survivors else []), *survivors])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", nargs="+", type=Path, default=FILES)
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "mutations.jsonl")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--again", action="store_true", help="run the survivors again")
    args = parser.parse_args()
    every = [mutant for path in args.files for mutant in mutants(path.resolve(), ROOT)]
    if args.list:
        print("\n".join(mutant.shown() for mutant in every))
        return
    results = read(args.out)
    again = ("survived", "timeout") if args.again else ()
    open_ = [m for m in every if m.key not in results or results[m.key]["status"] in again]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if open_:
        measure(open_, args.out)
    print(summary(every, read(args.out)))


def oracles(file: str) -> list[str]:
    """All oracle tests, those that are nearest to ``file`` first."""
    near = NEAREST.get(Path(file).stem, ())
    order = [*near, *(name for name in ORACLES if name not in near)]
    return [f"tests/sdi_gs/test_{name}.py" for name in order]


def measure(open_: list[Mutant], out: Path) -> None:
    """Run the tests on each mutant and write down what came of it."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONHASHSEED="0")
    os.environ["PYTHONPATH"] = ""
    import diffusers.models  # noqa: F401  loaded once, for all children
    import hypothesis  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mutations-") as name, out.open("a") as stream:
        folder = Path(name)
        copy_tree(folder)
        whole = run_tests(folder, oracles(""), 600)
        if whole.status != "survived":
            raise SystemExit(f"the tests fail on the unchanged sources: {whole.by or whole}")
        print(
            f"{len(open_)} mutants; the tests take {whole.seconds:.0f} s on the whole", flush=True
        )
        for k, mutant in enumerate(open_):
            target = folder / mutant.file
            original = target.read_text(encoding="utf-8")
            target.write_text(mutant.source, encoding="utf-8")
            outcome = run_tests(folder, oracles(mutant.file), PATIENCE)
            target.write_text(original, encoding="utf-8")
            row = {**mutant._asdict(), **outcome._asdict()}
            del row["source"]
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            if outcome.status != "killed":
                print(f"{k + 1}/{len(open_)} {outcome.status}: {mutant.shown()}", flush=True)


if __name__ == "__main__":
    main()
