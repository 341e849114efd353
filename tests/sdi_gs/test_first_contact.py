# SPDX-License-Identifier: Apache-2.0
"""The first things that somebody types."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from sdi_gs.build import check_prompt
from sdi_gs.config import guidances, load, presets
from sdi_gs.errors import UserError
from sdi_gs.mini.corpus import COLORS, KINDS


def test_the_name_alone_greets_with_commands_that_exist(sdi_gs: Any) -> None:
    said = sdi_gs()
    assert (said.code, said.err) == (0, "")
    typed = [line.strip() for line in said.out.splitlines() if line.startswith("  ")]
    assert len(typed) == 7
    assert "generate" in typed[0]
    for line in typed:
        words = shlex.split(re.split(r" {3,}", line)[0])
        verb = words[words.index("sdi-gs") + 1] if "sdi-gs" in words else words[1]
        if verb != "--help":
            assert sdi_gs(verb, "--help").code == 0, line


def test_help_begins_with_generate(sdi_gs: Any) -> None:
    commands = sdi_gs("--help").out.partition("Commands:")[2].split()
    assert commands[0] == "generate"


def test_words_are_those_of_mini(sdi_gs: Any) -> None:
    said = sdi_gs("words")
    assert said.code == 0
    objects, colors = re.split(r"^colours", said.out.partition("\n\n")[0], flags=re.MULTILINE)
    listed = objects.removeprefix("objects").replace("\n", " ").split(",")
    assert [word.strip() for word in listed] == sorted(KINDS)
    assert [word.strip() for word in colors.replace("\n", " ").split(",")] == list(COLORS)


@pytest.mark.parametrize("columns", [60, 100])
def test_the_list_of_presets_has_whole_sentences_and_fits(
    columns: int, sdi_gs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for reason in (*presets().values(), *guidances().values()):
        assert reason.endswith("."), reason
        assert reason.count("(") == reason.count(")")
    said = sdi_gs("config", "list").out
    assert max(len(line) for line in said.splitlines()) <= columns
    flat = " ".join(said.split())
    for reason in (*presets().values(), *guidances().values()):
        assert reason in flat


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red elefant", "never taught: elefant; it knows elephant; see"),
        ("a red mug on a tabel", "never taught: on, tabel; see"),
        ("a gray catt and a bule car", "it knows cat, blue; see"),
    ],
)
def test_an_unknown_word_is_told_with_the_nearest(prompt: str, said: str) -> None:
    note = check_prompt(load("mini", [f"prompt={prompt}"]))
    assert note is not None
    assert said in note


def test_an_experiment_of_whole_runs_takes_seeds_and_its_own_sentences(
    sdi_gs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdi_gs.experiments import tables
    from sdi_gs.experiments.chains import EXAMPLES

    asked: list[Any] = []
    drawn_on: list[tuple[str, ...]] = []

    def measure(variants: Any, plan: Any, prompts: Any, *_: Any) -> Any:
        asked.append((len(variants), plan.seeds, prompts))
        drawn_on.append(plan.representations)
        raise UserError("enough")

    monkeypatch.setattr(tables, "measure", measure)
    assert sdi_gs("experiment", "janus", "--seeds", 3).code == 2
    assert sdi_gs("experiment", "janus", "a gray cat").code == 2
    assert sdi_gs("experiment", "fig11").code == 2
    assert asked == [(4, 3, EXAMPLES["janus"]), (4, 1, ["a gray cat"]), (9, 1, ["a red mug"])]
    assert sdi_gs("experiment", "fig4_3d").code == 2
    assert sdi_gs("experiment", "fig4_3d", "--representation", "gaussians").code == 2
    assert drawn_on == [("gaussians",)] * 3 + [("instant_ngp",), ("gaussians",)]
