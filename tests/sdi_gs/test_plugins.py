# SPDX-License-Identifier: Apache-2.0
"""Kinds from outside of the package: known everywhere, or one message that says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

import sdi_gs as face
from sdi_gs import plugins
from sdi_gs.config import dump, from_plain, guidances, load
from sdi_gs.errors import UserError

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]

DOUBLED = '''
from dataclasses import dataclass
from typing import Literal

import sdi_gs


@dataclass(frozen=True)
class Doubled:
    """Random noise, twice as strong (arXiv 0000.00000)."""

    kind: Literal["doubled"] = "doubled"
    factor: float = 2.0

    def __post_init__(self):
        if self.factor <= 0:
            raise ValueError(f"noise.factor={self.factor} must be positive")

    def __call__(self, given):
        return given.noised(self.factor * given.normal())


sdi_gs.register("noise", Doubled)
'''


@pytest.fixture(autouse=True)
def _no_traces(foreign_kinds: None) -> None:
    """What is registered here is forgotten afterwards."""


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    path = tmp_path / "doubled.py"
    path.write_text(DOUBLED)
    return path


def test_a_word_works_as_an_override_in_yaml_and_as_a_method(doubled: Path) -> None:
    named = f"plugins={doubled}"
    by_override = load("mini", [named, "noise=doubled", "noise.factor=3"])
    assert (by_override.noise.kind, by_override.noise.factor) == ("doubled", 3.0)  # type: ignore
    path = doubled.with_name("a.yaml")  # names the plug-in that lies beside it
    path.write_text("base: mini\nplugins: [doubled.py]\nnoise: {kind: doubled, factor: 3}\n")
    assert load(str(path)) == by_override
    assert load("mini", [named], guidance="doubled").noise.factor == 2.0  # type: ignore[attr-defined]
    assert guidances()["doubled"] == "Random noise, twice as strong (arXiv 0000.00000)."


def test_settings_of_a_foreign_kind_are_as_strict_as_ours(doubled: Path) -> None:
    named = f"plugins={doubled}"
    for assignment, expected in (
        ("noise.facto=3", "did you mean 'factor'"),
        ("noise.factor=much", "noise.factor"),
        ("noise.factor=0", r"noise.factor=0.0 must be positive"),
    ):
        with pytest.raises(UserError, match=expected):
            load("mini", [named, "noise=doubled", assignment])


def test_a_run_remembers_its_plugin_from_anywhere(
    doubled: Path, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(str(fast), ["plugins=doubled.py", "noise=doubled"])
    tree = yaml.safe_load(dump(config))
    assert tree["plugins"] == [str(doubled)]
    assert from_plain(tree) == config
    saved = tmp_path / "config.yaml"
    saved.write_text(dump(config))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "sdi_gs", "config", "show", str(saved)],
        cwd=elsewhere, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout) == tree


def test_a_run_of_a_foreign_kind_is_stopped_and_goes_on(
    sdi_gs: Run, interrupted: Run, doubled: Path, fast: Path, tmp_path: Path
) -> None:
    words = ("--config", fast, f"plugins={doubled}", "--guidance", "doubled")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert sdi_gs("generate", "a mug", *words, "--out", whole).code == 0
    interrupted("generate", "a mug", *words, "--out", cut)
    assert sdi_gs("resume", cut).code == 0
    assert (whole / "final.ply").read_bytes() == (cut / "final.ply").read_bytes()
    doubled.unlink()
    plugins._loaded.clear()
    said = sdi_gs("export", cut, "--format", "splat")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert f"{doubled}: no such file" in said.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nothing_of_that_name", "does not import: No module named 'nothing_of_that_name'"),
        ("def broken(:\n    pass", "does not import: SyntaxError"),
        ("x = 1\n1 / 0", r"does not import: ZeroDivisionError: division by zero \(line 2 of it\)"),
        (
            DOUBLED.replace('"doubled"', '"random"'),
            "'random' is registered twice: by sdi_gs",
        ),
        (DOUBLED + DOUBLED.partition("import sdi_gs")[2], "'doubled' is registered twice"),
        (DOUBLED.replace("@dataclass(frozen=True)", ""), "is no dataclass"),
        (DOUBLED.replace("kind:", "word:"), "does not say what it is called"),
        (DOUBLED.replace('register("noise"', 'register("noize"'), "did you mean 'noise'"),
    ],
)
def test_a_broken_plugin_is_one_message(
    sdi_gs: Run, tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    said = sdi_gs("generate", "a mug", f"plugins={path}")
    assert said.code == 2
    assert said.err.startswith(f"sdi-gs: plugins: {path}")
    assert said.err.count("\n") == 1
    with pytest.raises(UserError, match=expected):
        load("mini", [f"plugins={path}"])


@pytest.mark.parametrize("name", ["nothing.py", "no_such_module", "."])
def test_a_plugin_that_is_not_there(sdi_gs: Run, name: str) -> None:
    said = sdi_gs("config", "show", "mini", f"plugins={name}")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert said.err.startswith(f"sdi-gs: plugins: {name}")


def test_an_installed_plugin_is_found_by_its_entry_point(
    doubled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(doubled.parent)
    point = EntryPoint("twice", "doubled", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    assert load("mini", ["noise=doubled"]).noise.kind == "doubled"
    bad = EntryPoint("gone", "no_such_module", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [bad])
    with pytest.raises(UserError, match="the installed plug-in 'gone'"):
        load("mini")
    del sys.modules["doubled"]


def test_an_update_that_learns_is_made_by_its_function(fast: Path) -> None:
    from sdi_gs import build
    from tests.sdi_gs.learning_rule import Learning, LearningConfig, make

    face.register("update", LearningConfig, make)
    config = load(str(fast), ["update=learning"])
    config = config.model_copy(update={"prompt": "a mug"})
    training = build.training(config)
    assert isinstance(training.guidance, Learning)


def test_a_kind_that_is_no_rule_says_so(fast: Path) -> None:
    from sdi_gs import build
    from tests.sdi_gs.learning_rule import LearningConfig

    face.register("update", LearningConfig)
    config = load(str(fast), ["update=learning"]).model_copy(update={"prompt": "a mug"})
    with pytest.raises(UserError, match=r"update\.kind=learning: LearningConfig is no rule"):
        build.training(config)
