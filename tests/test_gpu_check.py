# SPDX-License-Identifier: Apache-2.0
"""The check of a machine with a card, as far as it goes without one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(name="check")
def _check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    return module


def test_parts_run_and_leave_a_page(check: ModuleType, tmp_path: Path) -> None:
    code = check.main(["--device", "cpu", "--quick", "--parts", "kernels,precision",
                       "--out", str(tmp_path)])  # fmt: skip
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert code == 0, report
    assert [part["passed"] for part in report["parts"].values()] == [True, True]
    figures = report["parts"]["precision"]["figures"]
    assert set(figures) == {"mini, t = 0.98", "mini, t = 0.2"}
    assert all(0 < error < 2e-2 for error in figures.values())  # bfloat16 is not float32
    page = (tmp_path / "gpu_check.html").read_text()
    assert "kernels: passed" in page
    assert "mini, t = 0.2" in page


def test_what_fails_is_said_and_the_rest_still_runs(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def broken(args):  # type: ignore[no-untyped-def]
        raise check.Failed("two pictures differ", {"error": 0.5})

    def crashing(args):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("nothing there")

    parts = {"one": broken, "two": crashing, "three": lambda args: {"fine": 1.0}}
    monkeypatch.setattr(check, "PARTS", parts)
    code = check.main(["--device", "cpu", "--parts", "one,two,three", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 1
    assert "one        FAILED" in said
    assert "ZeroDivisionError: nothing there" in said
    report = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert [part["passed"] for part in report.values()] == [False, False, True]
    assert report["one"]["figures"] == {"error": 0.5}
    assert "two pictures differ" in (tmp_path / "gpu_check.html").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a card")
def test_without_a_card_it_says_so(check: ModuleType, tmp_path: Path, capsys) -> None:
    assert check.main(["--out", str(tmp_path)]) == 2
    assert "--device cpu --quick" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_program_that_fails_shows_its_last_words(check: ModuleType) -> None:
    with pytest.raises(check.Failed, match="boom"):
        check.run("-c", "raise SystemExit('boom')")
