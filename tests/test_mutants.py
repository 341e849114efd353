# SPDX-License-Identifier: Apache-2.0
"""The maker of mutants: which mistakes it makes, and what it leaves alone."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = '''"""Says 1 + 1."""

WIDTH: "Literal[3]" = 3


@dataclass(frozen=True)
class Box:
    def inside(self, x, y):
        require(0 < x, "x", x, "above 0", 5)
        if x >= WIDTH and not y:
            raise ValueError(f"{x + 1} is too wide" + str(2))
        return scaled(x, -y).abs()
'''


@pytest.fixture(name="mutants")
def _mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "mutants.py"
    spec = importlib.util.spec_from_file_location("mutants", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutants", module)
    spec.loader.exec_module(module)
    return module


def test_every_small_mistake_is_made_once(mutants: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "box.py"
    path.write_text(SOURCE)
    found = list(mutants.mutants(path, tmp_path))
    assert sorted((m.kind, m.before, m.after) for m in found) == sorted(
        [
            ("number", "3", "4"), ("number", "3", "2"),
            ("compare", "0 < x", "0 <= x"), ("compare", "0 < x", "0 > x"),
            ("number", "0", "1"), ("number", "0", "-1"),
            ("condition", "if x >= WIDTH and (not y):", "if not (x >= WIDTH and (not y)):"),
            ("and/or", "x >= WIDTH and (not y)", "x >= WIDTH or not y"),
            ("compare", "x >= WIDTH", "x > WIDTH"), ("compare", "x >= WIDTH", "x <= WIDTH"),
            ("not", "not y", "y"),
            ("return", "return scaled(x, -y).abs()", "return None"),
            ("step", "scaled(x, -y).abs()", "scaled(x, -y)"),
            ("arguments", "scaled(x, -y)", "scaled(-y, x)"),
            ("sign", "-y", "y"),
        ]
    )  # fmt: skip
    assert {m.where for m in found if m.kind != "number"} == {"Box.inside"}
    assert len({m.key for m in found}) == len(found)
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        changed = [(a, b) for a, b in zip(whole, mutant.source.splitlines(), strict=True) if a != b]
        assert len(changed) == 1, mutant.shown()


def test_a_mutant_keeps_its_name_when_other_lines_move(mutants: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "box.py"
    path.write_text(SOURCE)
    before = {m.key: m.line for m in mutants.mutants(path, tmp_path)}
    path.write_text(SOURCE.replace("WIDTH: ", "DEPTH = 9.0\nWIDTH: "))
    after = {m.key: m.line for m in mutants.mutants(path, tmp_path)}
    assert len(after) == len(before) + 2
    assert all(after[key] == line + 1 for key, line in before.items())
