# SPDX-License-Identifier: Apache-2.0
"""Planning: every combination once, every mistake before anything starts, and nothing touched that
is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.artefacts.claim import claimed
from sdi_gs.config import Config, load, to_plain
from sdi_gs.errors import UserError
from sdi_gs.evaluation.protocol import published_prompts
from sdi_gs.experiments import study
from sdi_gs.sweep import estimate, manifest, plan, words
from sdi_gs.sweep.manifest import open_sweep
from sdi_gs.sweep.plan import Plan
from sdi_gs.sweep.words import Given

from ..sweeping import MUG, lines, planned, small

Run = Callable[..., Any]


def test_every_combination_is_one_line_with_the_settings_that_a_run_has(
    sdi_gs: Run, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("# ours\na red mug\n\n  a blue car \na red mug\n")
    ramp = "guidance.t.high={start: 0.98, end: 0.3}"
    said = sdi_gs(
        "sweep", "plan", tmp_path / "prompts.txt", "--methods", "sdi,sds", "--representations",
        "gaussians,instant_ngp", "--seeds", "3", "steps=4", ramp, "batch=1,2",
        "--out", tmp_path / "s",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.out.startswith("48 runs; the new ones take about ")
    found = lines(open_sweep(tmp_path / "s"))
    kinds = {(x.prompt, x.method, x.representation, x.seed, x.overrides[-1]) for x in found}
    assert len(kinds) == len(found) == 2 * 2 * 2 * 3 * 2
    assert len({line.digest for line in found}) == len({line.folder for line in found}) == 48
    assert not any(Path(tmp_path / "s" / "runs").glob("*"))  # nothing was begun
    for line in found[::7]:
        preset = {"gaussians": "mini", "instant_ngp": "mini_nerf"}[line.representation]
        alone = load(
            preset, ["steps=4", ramp, line.overrides[-1], f"prompt={line.prompt}",
                     f"seed={line.seed}"], line.method,
        )  # fmt: skip
        assert to_plain(plan.configuration(line)) == to_plain(alone)
        assert line.steps == 4


def test_planning_again_adds_what_is_new_and_touches_nothing(tmp_path: Path) -> None:
    sweep = planned(tmp_path, MUG, seeds=2)
    before = sweep.manifest.read_bytes()
    assert planned(tmp_path, MUG, seeds=2).manifest.read_bytes() == before
    again = plan.write(
        Plan((MUG, "a car"), representations=(small(tmp_path),), seeds=(1, 2)), sweep.path
    )
    assert [(line.prompt, line.seed) for line in again.new] == [(MUG, 2), ("a car", 1),
                                                               ("a car", 2)]  # fmt: skip
    after = sweep.manifest.read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(again.lines) == 5
    assert len({line.folder for line in again.lines}) == 5


def test_a_block_has_so_many_runs_and_a_line_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "BLOCK", 3)
    sweep = planned(tmp_path, MUG, seeds=4)
    assert [line.block for line in lines(sweep)] == ["000"] * 3 + ["001"]
    planned(tmp_path, MUG, seeds=7)
    assert [line.block for line in lines(sweep)] == ["000"] * 3 + ["001"] * 3 + ["002"]


def test_a_line_that_was_lost_finds_its_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off, and planned again: in the same folder, or it would be made twice."""
    monkeypatch.setattr(plan, "BLOCK", 1)
    sweep = planned(tmp_path, MUG, seeds=3)
    first, *others = lines(sweep)
    sweep.run(first).mkdir(parents=True)
    text = sweep.manifest.read_text().splitlines(keepends=True)
    sweep.manifest.write_text("".join([text[0][:40] + "\n", *text[1:]]))
    found = sweep.read()
    assert found.lines == others
    assert "line 1: it is not JSON" in str(found.lost())
    planned(tmp_path, MUG, seeds=3)
    assert set(lines(sweep)) == {first, *others}


def test_all_mistakes_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(UserError) as told:
        plan.write(
            Plan(
                (MUG, "a zeppelin", ""), methods=("sdi", "sdx"),
                representations=("gaussian", "gaussians"),
                grid=(("batch", ("1", "none")),),
            ),
            out,
        )  # fmt: skip
    for part in ("methods=sdx: did you mean", "'gaussian' is no preset", "batch",
                 "knows no word of the prompt 'a zeppelin'", "the prompt is empty"):  # fmt: skip
        assert part in str(told.value)
    assert not out.exists()
    with pytest.raises(UserError, match="model folder '/nowhere' does not exist"):
        plan.write(Plan((MUG,), settings=("model.source=/nowhere",)), out)
    one_of_two = (("model.layout", ("null", "elsewhere")),)  # of one source
    with pytest.raises(UserError, match=r"model\.layout=elsewhere is for a model that is one"):
        plan.write(Plan((MUG,), grid=one_of_two), out)
    with pytest.raises(UserError, match="family=midi: did you mean 'mini'"):
        plan.write(Plan((MUG,), family="midi"), out)
    assert not out.exists()


def test_a_card_that_is_too_small_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[str] = []

    def require(config: Config, free: int) -> None:
        counted.append(config.update.kind)
        if free < 4 * 2**30:
            raise UserError("this run needs about 4.4 GiB on the card")

    monkeypatch.setattr("sdi_gs.budget.require_card", require)
    what = Plan(
        ("a corgi",), methods=("sdi", "sds", "csd"), representations=("sdi_gaussians",),
        card_bytes=2 * 2**30,
    )  # fmt: skip
    mistakes: list[str] = []
    plan._check_cards(what, plan.variants(what, mistakes), mistakes, [])
    assert mistakes == [
        f"{method}, sdi_gaussians: this run needs about 4.4 GiB on the card"
        for method in what.methods
    ]
    assert len(counted) == 2  # sdi and sds have the same memory, and counting takes seconds
    roomy = Plan(("a corgi",), representations=("sdi_gaussians",), card_bytes=24 * 2**30)
    mistakes = []
    plan._check_cards(roomy, plan.variants(roomy, mistakes), mistakes, [])
    assert mistakes == []


def test_a_folder_belongs_to_one_kind_of_work(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        plan.write(Plan((MUG,)), tmp_path / "thesis")
    with study.opened(tmp_path / "t", "table"):
        pass
    with pytest.raises(UserError, match="not empty"):
        plan.write(Plan((MUG,)), tmp_path / "t")
    sweep = planned(tmp_path)
    with pytest.raises(UserError, match="not empty"), study.opened(sweep.path, "table"):
        pass
    with pytest.raises(UserError, match="not empty"), claimed(sweep.path, "x", "generate"):
        pass
    with pytest.raises(UserError, match=r"no sweep\.json, so it is not the folder of a sweep"):
        open_sweep(tmp_path / "thesis")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": "sdi-gs sweep", "version": 2, "planned_by": "9.9"}', "use the sdi-gs 9.9"),
        ('{"format": "sdi-gs sweep", "version": 1, "planned_by": "0", "tries": 0}', "tries=0"),
        ('{"format": "sdi-gs sweep", "version": 1, "tries": 3}', "which sdi-gs planned it"),
    ],
)
def test_a_damaged_mark_is_one_message(tmp_path: Path, content: str, why: str) -> None:
    sweep = planned(tmp_path)
    (sweep.path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=why):
        open_sweep(sweep.path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": "1"}, "seed='1' is not of the type int"),
        ({"seed": True}, "seed='True' is not of the type int"),
        ({"folder": "../../etc"}, "is not that of the digest"),
        ({"folder": "runs/000/other-00000000"}, "is not that of the digest"),
        ({"digest": "x"}, "digest='x' is none"),
        ({"overrides": [1]}, "overrides are not all key=value"),
        ({"more": 1}, "allowed are exactly the keys"),
    ],
)
def test_a_line_edited_by_hand_is_named_and_the_others_are_believed(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    sweep = planned(tmp_path, MUG, seeds=2)
    first, second = sweep.manifest.read_text().splitlines()
    sweep.manifest.write_text(json.dumps({**json.loads(first), **change}) + f"\n{second}\n")
    found = sweep.read()
    assert [line.seed for line in found.lines] == [1]
    assert f"line 1: {why}" in str(found.lost()) or why in str(found.lost())


def test_a_line_that_was_copied_is_one_run(tmp_path: Path) -> None:
    sweep = planned(tmp_path)
    sweep.manifest.write_text(2 * sweep.manifest.read_text())
    found = sweep.read()
    assert len(found.lines) == 1
    assert "stands there twice" in str(found.lost())


def test_a_line_of_other_settings_is_not_made_in_their_name(tmp_path: Path) -> None:
    line = lines(planned(tmp_path))[0]
    with pytest.raises(UserError, match=f"{line.digest} was planned: the line was edited"):
        plan.configuration(line._replace(seed=7))
    Path(line.representation).write_text("# Changed since.\nbase: mini\nsteps: 5\n")
    with pytest.raises(UserError, match="has changed since"):
        plan.configuration(line)


def test_a_file_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        "prompts: [a red mug, a blue car]\nmethods: [sdi, sds]\nseeds: [4, 8]\n"
        "settings:\n  steps: 4\n  batch: [1, 2]\n  guidance.t.high: {start: 0.98, end: 0.3}\n"
    )
    read = words.read([str(tmp_path / "plan.yaml")], Given())
    (tmp_path / "prompts.txt").write_text("a red mug\na blue car\n")
    typed = words.read(
        [str(tmp_path / "prompts.txt"), "steps=4", "batch=1,2",
         'guidance.t.high={"start": 0.98, "end": 0.3}'],
        Given(methods="sdi,sds", seeds="4,8"),
    )  # fmt: skip
    assert read == typed
    assert words.read([str(tmp_path / "plan.yaml")], Given(seeds="2")).seeds == (0, 1)
    assert words.read(["paper"], Given()).prompts == published_prompts()
    assert len(published_prompts()) == 43
    assert words.read(["a red mug"], Given(seeds="10-12")).seeds == (10, 11, 12)


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (["steps=3"], "no prompts"),
        ([MUG, "a blue car"], "several sentences go into a file"),
        (["gone.yaml"], "is not a file"),
        (["gone.txt"], "cannot be read as text"),
        ([MUG, "=3"], "is no setting"),
    ],
)
def test_words_that_mean_nothing(typed: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        words.read(typed, Given())


@pytest.mark.parametrize("seeds", ["0", "x", "5-2", "-3", "1-", ","])
def test_seeds_that_mean_nothing(seeds: str) -> None:
    with pytest.raises(UserError, match="allowed are how many"):
        words.read([MUG], Given(seeds=seeds))


def test_an_unknown_key_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("prompts: paper\nmethod: sdi\n")
    with pytest.raises(UserError, match="unknown key 'method'; did you mean 'methods'"):
        words.read([str(tmp_path / "plan.yaml")], Given())


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("3", ["3"]),
        ("a, b,c", ["a", "b", "c"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[1, 2],[3, 4]", ["[1, 2]", "[3, 4]"]),
        ("{a: {b: 1, c: 2}},x", ["{a: {b: 1, c: 2}}", "x"]),
        ("'ugly, blurry',none", ["'ugly, blurry'", "none"]),
        ("", [""]),
    ],
)
def test_commas_separate_values_except_inside_brackets_and_quotes(
    value: str, parts: list[str]
) -> None:
    assert words.split(value) == parts


def test_another_version_does_not_add_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(tmp_path)
    for module in (manifest, plan):
        monkeypatch.setattr(module, "version", lambda: "9.9.9")
    with pytest.raises(UserError, match=r"planned by sdi-gs .*, and this is sdi-gs 9\.9\.9"):
        planned(tmp_path, "a blue car")


@pytest.mark.parametrize(
    ("settings", "time"),
    [(("steps=900",), "12 min"), (("steps=900", "batch=8"), "24 min"), (("steps=30",), "24 s")],
)
def test_a_plan_says_how_long_it_takes(
    tmp_path: Path, settings: tuple[str, ...], time: str
) -> None:
    """Two runs, 0.4 s a step of four views, until some are done."""
    what = Plan((MUG,), representations=("gaussians",), seeds=(0, 1), settings=settings)
    told = estimate.text(plan.write(what, tmp_path / "s"))
    assert told.startswith(f"2 runs; the new ones take about {time} of a machine (a guess: 0.4 s")
    size = re.search(r"and (\d+) MiB of disk", told)
    assert size is not None
    assert 5 <= int(size[1]) <= 100


def test_a_plan_for_cards_goes_by_the_papers_time(tmp_path: Path) -> None:
    """119 minutes for 10,000 steps of one view."""
    done = plan.write(Plan((MUG,), family="sdi", settings=("model.source=mini/x",)), tmp_path / "s")
    assert "about 2.0 h of a machine (a guess: the paper's 119 minutes" in estimate.text(done)
