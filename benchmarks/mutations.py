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

Messages are left alone: what stands in a ``raise``, and all arguments of ``require`` but its first.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import hashlib
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "sdi_gs" / "guidance").glob("*.py")), ROOT / "sdi_gs" / "views.py"]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.tsv")
ORACLES = ("published_settings", "words", "views", "draws", "oracles_denoiser", "oracles_guidance", "methods", "seams",
           "counts", "taught", "flat", "stein", "variational")  # fmt: skip
"""Closed forms only: each file takes a few seconds."""
NEAREST = {
    "draws": ("draws",), "image_space": ("methods",), "noise": ("oracles_denoiser", "methods"),
    "sampling": ("flat",), "stein": ("stein",), "update": ("methods",),
    "variational": ("variational",), "distillation": ("oracles_guidance", "methods"),
    "predict": ("words", "oracles_guidance", "methods"),
}  # fmt: skip
"""The oracles that are most likely to notice a mistake in a module, and run first."""
COPIED = ("sdi_gs", "representations", "tests", "configs", "examples", "pyproject.toml")
PATIENCE = 120  # seconds of processor time; all tests take a quarter of it
LARGEST = 200_000  # bytes; larger files of the copy are links


class Mutant(NamedTuple):
    """One change, and what it was before."""

    file: str  # from the root of the repository
    line: int
    where: str  # function or class that holds it
    kind: str
    before: str
    after: str
    key: str  # the same as long as its line is
    source: str  # the whole changed file

    def shown(self) -> str:
        return f"{self.file}:{self.line} {self.where}: {self.before}  ->  {self.after}"


Change = tuple[str, Callable[[ast.AST], ast.AST]]
"""Kind of a change, and what makes the changed node of a copy of the old one."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
STEPS = {
    "abs", "ceil", "clamp", "clamp_min", "deg2rad", "exp", "long", "max", "mean", "min", "rad2deg",
    "round", "sqrt", "square", "sum",
}  # fmt: skip
"""Methods that may be left out."""


def changes(node: ast.AST) -> Iterator[Change]:
    """Every small change of one node."""
    match node:
        case ast.Compare(ops=ops):
            for k, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield "compare", _setting_item("ops", k, other())
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield "operator", _setting("op", OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "sign" if isinstance(node.op, ast.USub) else "not", lambda n: n.operand  # type: ignore[attr-defined]
        case ast.BoolOp(op=op):
            yield "and/or", _setting("op", ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Constant(value=bool() as value):
            yield "number", _setting("value", not value)
        case ast.Constant(value=int() as value):
            yield "number", _setting("value", value + 1)
            yield "number", _setting("value", value - 1)
        case ast.Constant(value=float() as value):
            yield "number", _setting("value", 1.5 * value if value else 1.0)
            if value:
                yield "number", _setting("value", 0.0)
        case ast.If() | ast.IfExp() | ast.While():
            yield "condition", _negated
        case ast.comprehension(ifs=[_, *_]):
            yield "condition", _setting_item("ifs", 0, ast.UnaryOp(ast.Not(), node.ifs[0]))
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield "return", _setting("value", ast.Constant(None))
        case ast.Call():
            yield from _changes_of_call(node)


def _changes_of_call(node: ast.Call) -> Iterator[Change]:
    swappable = len(node.args) if ast.unparse(node.func) != "require" else 0
    for k in range(swappable - 1):
        one, other = node.args[k], node.args[k + 1]
        starred = isinstance(one, ast.Starred) or isinstance(other, ast.Starred)
        if not starred and ast.dump(one) != ast.dump(other):
            yield "arguments", _swapping(k)
    if isinstance(node.func, ast.Attribute) and node.func.attr in STEPS:
        yield "step", lambda n: n.func.value  # type: ignore[attr-defined]


def _setting(field: str, value: object) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        setattr(node, field, value)
        return node

    return change


def _setting_item(field: str, k: int, value: object) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        getattr(node, field)[k] = value
        return node

    return change


def _swapping(k: int) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Call)
        node.args[k], node.args[k + 1] = node.args[k + 1], node.args[k]
        return node

    return change


def _negated(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.If | ast.IfExp | ast.While)
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return node


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _code(node: ast.AST, where: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Every node that is computed, with the function or class around it: no annotations, no
    messages."""
    yield node, where
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_params", "decorator_list"):
            continue
        children = value if isinstance(value, list) else [value]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
            children = node.args[:1] if field == "args" else []
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                continue
            inside = where
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inside = f"{where}.{child.name}".lstrip(".")
            yield from _code(child, inside)


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    text = path.read_text(encoding="utf-8")
    tree, lines, seen = ast.parse(text), text.splitlines(), Counter[str]()
    name = path.relative_to(ROOT).as_posix()
    nodes = list(_code(tree))
    for index, (node, where) in enumerate(nodes):
        if _is_an_alias_of_a_type(node):
            continue
        for kind, change in changes(node):
            mutated = copy.deepcopy(tree)
            old, _ = list(_code(mutated))[index]
            before = _head(old)
            new = change(old)
            after = _head(new)
            if new is not old:
                mutated = _Replacing(old, new).visit(mutated)
            line = getattr(node, "lineno", getattr(getattr(node, "target", None), "lineno", 0))
            place = f"{name}|{where}|{lines[line - 1].strip()}|{kind}|{before}|{after}"
            seen[place] += 1
            key = hashlib.sha1(f"{place}|{seen[place]}".encode()).hexdigest()[:16]
            source = ast.unparse(ast.fix_missing_locations(mutated))
            yield Mutant(name, line, where, kind, before, after, key, source)


def _head(node: ast.AST) -> str:
    """A node as text; of a statement that holds others its first line."""
    if isinstance(node, ast.comprehension):
        return f"for {ast.unparse(node.target)} ... " + " ".join(
            f"if {ast.unparse(test)}" for test in node.ifs
        )
    return re.sub(r"\s+", " ", ast.unparse(node).partition("\n")[0])


def _is_an_alias_of_a_type(node: ast.AST) -> bool:
    """``X | None`` is no sum."""
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)


class _Replacing(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else super().visit(node)


# --- running --------------------------------------------------------------------------------------


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
    every = [mutant for path in args.files for mutant in mutants(path.resolve())]
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
