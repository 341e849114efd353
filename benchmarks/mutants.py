# SPDX-License-Identifier: Apache-2.0
"""Sources with one small mistake each, for :mod:`mutations`.

Annotations and messages are left alone: what stands in a ``raise``, and all arguments of
``require`` but its first.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


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


def mutants(path: Path, root: Path) -> Iterator[Mutant]:
    """Every mutant of a file below ``root``."""
    text = path.read_text(encoding="utf-8")
    tree, lines, seen = ast.parse(text), text.splitlines(), Counter[str]()
    name = path.relative_to(root).as_posix()
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
