# SPDX-License-Identifier: Apache-2.0
"""Tables of whole runs: Table 1 and the chains, what they count and the files they leave."""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from representations.interface import Cameras
from sdi_gs import build, child
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.cli.main import main
from sdi_gs.config import Config, dump, load
from sdi_gs.errors import RunFailure, UserError
from sdi_gs.evaluation.protocol import Judged
from sdi_gs.experiments import compare, price, sheet
from sdi_gs.experiments.chains import CHAINS, Variant, chain, methods
from sdi_gs.experiments.compare import Plan, Row, cells, configuration
from sdi_gs.experiments.study import Without
from sdi_gs.experiments.tables import (
    Shown,
    at_equal_calls,
    measure,
    missing,
    page,
    summarise,
    text,
    wanted,
)
from sdi_gs.experiments.tables import write as write_table
from sdi_gs.guidance.noise import DDIMInversion, IntervalInversion
from sdi_gs.origin import Origin
from sdi_gs.trainer import train

from ..markup import Page

Run = Callable[..., Any]


def row(psnr_db: float | None, **more: Any) -> Row:
    values: dict[str, Any] = {
        "representation": "gaussians", "guidance": "sdi", "seed": 0, "run": "r", "steps": 3,
        "prompt": "a red mug",
        "seconds_per_step": {"render": 0.1, "guidance": 0.3}, "seconds_total": 2.0,
        "evaluations_per_step": 8.0, "peak_memory_mb": 500.0, "peak_cuda_memory_mb": None,
        "parameters": 1, "size": 1, "unit": "splats", "files": {}, "psnr_db": psnr_db,
        "blank_db": 9.0,
    }  # fmt: skip
    return Row(**{**values, **more})


def judged(share: float) -> Judged:
    return Judged(8, 20.0 + share, 0.0, {"quality": share}, share, None, 1.0 - share)


@pytest.mark.parametrize(
    ("psnr_db", "seen", "diverged"),
    [(13.9, None, True), (14.1, None, False), (13.9, 0.0, True), (13.9, 0.125, False),
     (14.1, 0.0, False), (None, 0.0, False)],
)  # fmt: skip
def test_who_is_near_a_white_picture_and_seen_by_nobody_has_diverged(
    psnr_db: float | None, seen: float | None, diverged: bool
) -> None:
    one = row(psnr_db, blank_db=9.0, judged=None if seen is None else judged(seen))
    assert summarise("gaussians", "sdi", [one]).diverged_percent == 100.0 * diverged


@pytest.mark.parametrize("prompt", ["a blue camera", "a pink airplane"])
def test_no_shape_at_all_is_as_good_as_a_white_picture(prompt: str) -> None:
    def nothing(cameras: Cameras) -> torch.Tensor:
        return torch.ones((len(cameras), 3, cameras.height, cameras.width))

    config = load("mini", [f"prompt={prompt}"])
    white = SimpleNamespace(config=config, stage=SimpleNamespace(draw=nothing))
    against = compare._against_truth(white)  # type: ignore[arg-type]
    assert against is not None
    assert against[0] == against[1] < 16.0


def test_a_line_of_table1_leaves_diverged_runs_out_of_the_mean() -> None:
    rows = [row(20.0), row(24.0, peak_memory_mb=700.0), row(12.0), Without("inf", True)]
    entry = summarise("gaussians", "sdi", rows)
    assert (entry.runs, entry.diverged_percent) == (4, 50.0)
    assert entry.psnr_db == pytest.approx(22.0)
    assert entry.psnr_spread_db == pytest.approx(2.0)
    assert entry.ms_per_step == pytest.approx(400.0)
    assert entry.peak_memory_mb == 700.0
    assert summarise("gaussians", "sdi", rows[:1]).psnr_spread_db is None  # one has none
    nothing = summarise("gaussians", "sdi", [Without("inf", True)])
    assert (nothing.diverged_percent, nothing.psnr_db, nothing.seconds) == (100.0, None, None)
    assert "22.00" in text([entry, nothing])
    unknown = summarise("gaussians", "sdi", [row(None)])  # no truth, no verdict
    assert (unknown.diverged_percent, unknown.psnr_db) == (0.0, None)


@pytest.mark.usefixtures("programs_here")
def test_table1_from_the_command_line(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    said = sdi_gs(
        "table1", "a mug", "--representations", fast, "--guidances", "sdi,sds", "--steps", 3,
        "--out", out,
    )  # fmt: skip
    assert said.code == 0, said.err
    report = json.loads((out / "table.json").read_text())
    assert [e["variant"] for e in report["entries"]] == ["sdi", "sds"]
    calls = [e["network_samples_per_step"] for e in report["entries"]]
    assert calls[0] > calls[1] > 0  # inversion costs what it costs
    assert said.out.count("fast") >= 2
    with (out / "table.csv").open(newline="") as file:
        assert [line["variant"] for line in csv.DictReader(file)] == ["sdi", "sds"]
    for run in report["runs"]:
        assert (out / run["run"] / "preview.png").is_file()
    page = Page((out / "table.html").read_text())
    assert len(page.urls) == 2  # both sheets are in the page, which is one file
    assert all(url.startswith("data:image/jpeg") for url in page.urls)
    assert page.text.count("3 steps a run") == 1
    assert page.row("fast")[0] == "sdi"
    with Image.open(out / "table.png") as drawn:
        assert drawn.height == sheet.HEAD + 2 * sheet.TILE  # a line for each method
    assert sdi_gs("table1", "a mug", "--guidances", "sdss", "--out", tmp_path / "n").code == 2
    both = sdi_gs("table1", "a mug", "--nfe", 64, "--steps", 3, "--out", tmp_path / "n")
    assert both.code == 2
    assert "leave steps out, or nfe" in both.err
    # A longer table takes over what is there.
    more = sdi_gs(
        "table1", "a mug", "a cup", "--representations", fast, "--guidances", "sds", "--steps", 3,
        "--out", out,
    )  # fmt: skip
    assert more.code == 0, more.err
    assert more.out.count("finished before") == 1
    (entry,) = json.loads((out / "table.json").read_text())["entries"]
    assert entry["runs"] == 2


@pytest.mark.parametrize(
    ("words", "steps"), [((), 150), (("--steps", "7"), 7), (("steps=9",), None)]
)
@pytest.mark.parametrize("verb", [("table1",), ("experiment", "fig8")])
def test_runs_of_mini_are_short_unless_something_is_said(
    sdi_gs: Run, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...],
    words: tuple[str, ...], steps: int | None,
) -> None:  # fmt: skip
    plans: list[Plan] = []

    def measured(variants: Any, plan: Plan, prompts: Any, *_: Any) -> Any:
        plans.append(plan)
        assert prompts == ["a red mug"]
        raise RunFailure("that is all")

    if verb[0] == "experiment" and "--steps" in words:
        words = ("steps=7",)
        steps = None
    monkeypatch.setattr("sdi_gs.experiments.tables.measure", measured)
    said = sdi_gs(*verb, *words)
    assert said.code == 1, said.err
    assert plans[0].steps == steps
    family = sdi_gs(*verb, "--family", "sdi")
    assert family.code == 1
    assert plans[1].steps is None  # of the preset


def test_plots_of_a_table_leave_out_what_nobody_measured(tmp_path: Path) -> None:
    one = summarise("gaussians", "a <b>", [row(21.0)])
    paths = write_table("t", [one], [], "m", tmp_path)
    assert {path.name for path in paths} == {
        "table.html", "table.csv", "table.svg", "table.json",
    }  # fmt: skip
    drawn = ElementTree.fromstring((tmp_path / "table.svg").read_text())
    assert "21 dB" in "".join(drawn.itertext())
    assert "R-precision" not in (tmp_path / "table.html").read_text().split("<svg")[1]
    failed = summarise("gaussians", "sdi", [Without("killed", False)])
    assert "svg" not in {path.suffix[1:] for path in write_table("t", [failed], [], "m", tmp_path)}


def test_quality_stands_before_time_and_the_steps_are_said(tmp_path: Path) -> None:
    judged = Judged(8, 30.0, 1.0, {"quality": 0.5}, 0.75, None, 0.25)
    entry = summarise("gaussians", "sdi", [dataclasses.replace(row(20.0), judged=judged)])
    shown = Page(page("t", [entry], [], "m", tmp_path))
    head = shown.rows[0]
    assert max(map(head.index, ("PSNR dB", "R-prec. %", "CLIP"))) < head.index("seconds")
    assert shown.rows[1][head.index("steps")] == str(row(20.0).steps)
    assert "stopped being numbers" in shown.text


def test_a_table_counts_what_ended_and_says_what_did_not(
    fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs of a method: one is killed, one loses its numbers, one ends. Only the last two are
    results, and the killed one changes no figure."""
    whole = row(20.0)

    def obtained(
        name: str, config: Config, out: Path, say: Callable[[str], None], origin: Origin
    ) -> RunFolder:
        if config.seed == 0:
            raise child.NotRun("killed by SIGKILL")
        if config.seed == 1:
            raise child.Diverged("step 1: the loss is inf")
        return RunFolder(out)

    monkeypatch.setattr("sdi_gs.experiments.study.obtain", obtained)
    monkeypatch.setattr("sdi_gs.experiments.compare.measure", lambda *_: whole)
    said: list[str] = []
    plan = Plan("x", representations=(str(fast),), guidances=("sdi",), seeds=3)
    (entry,), shown = measure(methods(["sdi"]), plan, ["a mug"], tmp_path / "t", said.append)
    assert (entry.runs, entry.not_run, entry.diverged_percent) == (2, 1, 50.0)
    assert entry == dataclasses.replace(
        summarise(entry.representation, "sdi", [whole]), runs=2, not_run=1, diverged_percent=50.0
    )
    assert "  not run: killed by SIGKILL" in said
    assert "  diverged: step 1: the loss is inf" in said
    runs = json.loads((tmp_path / "t" / "table.json").read_text())["runs"]
    assert runs[0]["not_run"] == "killed by SIGKILL"
    assert runs[1]["diverged"] == "step 1: the loss is inf"
    html = page("t", [entry], shown, "m", tmp_path / "t")
    assert "not run: killed by SIGKILL" in html
    assert "diverged: step 1" in html
    lacking = missing(shown)
    assert lacking is not None
    assert lacking.startswith("1 of 3 runs are not in the table")
    assert missing(shown[1:]) is None
    lost = summarise("gaussians", "sdi", [Without("killed", False)])
    assert (lost.runs, lost.diverged_percent) == (0, None)
    assert text([lost]).splitlines()[1].split()[:4] == ["gaussians", "sdi", "0", "1"]


@pytest.mark.parametrize(
    "verb",
    [("table1", "a mug", "--guidances", "sdi", "--steps", 3, "--representations"),
     ("experiment", "fig14", "a mug", "steps=3", "--representation"),
     ("compare", "a mug", "--guidances", "sdi", "--steps", 3, "--representations")],
)  # fmt: skip
def test_a_killed_child_makes_the_verb_fail_and_the_same_command_mends_it(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    verb: tuple[object, ...],
) -> None:  # fmt: skip
    """A child that kills itself, as the system does when memory runs out; then one that lives."""
    out = tmp_path / "t"
    real = child.call

    def killed(run: RunFolder, words: list[str], orders: child.Orders) -> None:
        start = subprocess.Popen
        with monkeypatch.context() as patch:
            patch.setattr(
                "subprocess.Popen",
                lambda argv, **more: start(["sh", "-c", "kill -9 $$"], **more),
            )
            real(run, words, orders)

    def here(run: RunFolder, words: list[str], orders: child.Orders) -> None:
        assert main(words) == 0

    monkeypatch.setattr(child, "call", killed)
    said = sdi_gs(*verb, fast, "--out", out)
    assert said.code == 1, said.err
    assert "killed by SIGKILL, as the system does when memory runs out" in said.err
    assert "The same command with --out" in said.err
    html = next(out.glob("*.html")).read_text()
    assert "not run" in html
    monkeypatch.setattr(child, "call", here)
    again = sdi_gs(*verb, fast, "--out", out)
    assert again.code == 0, again.err
    assert "not run" not in again.out


def test_a_sentence_that_mini_does_not_know_is_told_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> RunFolder:
        raise child.NotRun("enough")

    monkeypatch.setattr("sdi_gs.experiments.study.obtain", stopped)
    plan = Plan("", representations=("gaussians",))
    said: list[str] = []
    measure(methods(["sdi"]), plan, ["a red mug", "a white chair"], tmp_path / "t", said.append)
    assert said[0].startswith("note: mini was never taught: white; see ")
    with pytest.raises(UserError, match="knows no word of the prompt 'a zeppelin'"):
        measure(methods(["sdi"]), plan, ["a red mug", "a zeppelin"], tmp_path / "u", said.append)
    assert not (tmp_path / "u").exists()


def test_an_empty_shape_has_diverged_and_recognition_is_counted_by_run() -> None:
    rows = [row(20.0, judged=judged(1.0)), row(20.0, judged=judged(0.5)),
            row(None, empty=True, judged=judged(1.0))]  # fmt: skip
    entry = summarise("gaussians", "sdi", rows)
    assert entry.diverged_percent == pytest.approx(100 / 3)
    assert entry.recognised == 1  # half of the views are not most
    assert entry.r_precision == pytest.approx(0.75)
    assert entry.drift == pytest.approx(0.25)  # of 0 and 0.5
    assert entry.clip_score == pytest.approx(20.75)
    assert entry.clip_spread == pytest.approx(0.25)  # of 20.5 and 21; the empty one has no say
    assert summarise("gaussians", "sdi", rows[:1]).clip_spread is None
    assert "recognised" in text([entry])
    assert "recognised" not in text([summarise("gaussians", "sdi", [row(20.0)])])


def test_long_sentences_that_begin_alike_have_folders_of_their_own(fast: Path) -> None:
    start = "a very long sentence about a mug that stands on a table in"
    plan = Plan("", representations=(str(fast),))
    (line,) = wanted(methods(["sdi"]), plan, [f"{start} spring", f"{start} autumn"])
    assert len({run.name for run in line}) == 2
    assert all(len(run.name) < 80 for run in line)


def test_janus_is_about_the_models_that_ship() -> None:
    with pytest.raises(UserError, match="write --family mini"):
        chain("janus", "sdi")
    assert {v.settings for v in chain("janus", "mini")} == {
        ("model.source=mini",), ("model.source=mini_mv",)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "family"),
    [(n, f) for n in CHAINS for f in ("mini", "sdi") if (n, f) != ("janus", "sdi")],
)
def test_every_line_of_a_chain_is_a_configuration_of_its_own(name: str, family: str) -> None:
    made = []
    for variant in chain(name, family):
        plan = Plan("a red mug", family, ("gaussians",), (variant.guidance,),
                    settings=variant.settings)  # fmt: skip
        made.append(configuration(plan, next(cells(plan))))
    assert len({dump(config) for config in made}) == len(made)
    if name == "fig14":
        assert isinstance(made[0].noise, IntervalInversion)
        assert isinstance(made[-1].noise, DDIMInversion)
        ours, before = made[-1].guidance.t, made[-2].guidance.t  # one for all views, as it falls
        assert (ours.high, ours.low) == (before.high, before.low)
        assert made[-1].noise.cfg_scale == made[-2].noise.cfg_scale < 0  # type: ignore[union-attr]
    if name == "fig11":
        assert [config.noise.steps_per_unit for config in made] == [2, 3, 4, 5, 8, 10, 16, 20, 30]  # type: ignore[union-attr]


PRICES = {
    # Two samples a view: with words and without.
    "sds": 2.0,
    # And two for each of the ten iterations.
    "fixed_point": 22.0,
    # Three sets of words: the sentence, none, and a negative one.
    "csd": 3.0,
}


@pytest.mark.parametrize(("method", "a_view"), PRICES.items())
def test_a_method_is_priced_by_what_it_asks(method: str, a_view: float) -> None:
    config = load("mini", ["prompt=a mug", "steps=100", "batch=2"], method)
    assert price.samples_per_step(config, 2) == 2 * a_view


def test_a_price_is_what_a_run_spends(fast: Path) -> None:
    """The inversion takes int(10 t) steps, and t falls over the run."""
    config = load(str(fast), ["prompt=a mug", "steps=40", "noise.steps=null"])
    made = [report.evaluations for report in train(build.training(config))]
    assert price.samples_per_step(config) == pytest.approx(statistics.mean(made), rel=0.03)


def test_equal_calls_are_equal(fast: Path) -> None:
    lines = wanted(
        methods(["sds", "fixed_point"]), Plan("", representations=(str(fast),)), ["a mug", "a cup"]
    )
    batch, told = lines[0][0].config.batch, list[str]()
    made = [at_equal_calls(line, 60 * batch, told.append) for line in lines]
    assert [[run.config.steps for run in line] for line in made] == [[30] * 2, [3] * 2]
    assert told[0] == f"sds: 30 steps of {2 * batch:.1f} network samples"
    assert [run.config.prompt for run in made[0]] == ["a mug", "a cup"]


@pytest.mark.usefixtures("programs_here")
def test_table1_at_equal_calls_from_the_command_line(
    sdi_gs: Run, fast: Path, tmp_path: Path
) -> None:
    nfe = 2 * 3 * load(str(fast), ["prompt=a mug"]).batch  # three steps of SDS
    said = sdi_gs("table1", "a mug", "--representations", fast, "--guidances", "sds", "--nfe", nfe,
                  "--out", tmp_path / "t")  # fmt: skip
    assert said.code == 0, said.err
    (entry,) = json.loads((tmp_path / "t" / "table.json").read_text())["entries"]
    assert (entry["steps"], entry["network_samples"]) == (3, nfe)


def test_calls_that_pay_for_no_step_are_refused() -> None:
    assert price.steps_for(12.5, 13) == 1
    with pytest.raises(UserError, match=r"^nfe=12: one step takes 12\.5; allowed is 13 or more$"):
        price.steps_for(12.5, 12)
    for both in ({"steps": 3}, {"settings": ("steps=3",)}):
        with pytest.raises(UserError, match="leave steps out, or nfe"):
            Plan("", nfe=60, **both)  # type: ignore[arg-type]


@pytest.mark.usefixtures("programs_here")
def test_a_chain_from_the_command_line(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its two ends, 2 and 30 inversion steps."""
    ends = chain("fig11", "mini")[:: len(chain("fig11", "mini")) - 1]
    monkeypatch.setattr("sdi_gs.experiments.chains.chain", lambda name, family: ends)
    out = tmp_path / "c"
    said = sdi_gs("experiment", "fig11", "a mug", "steps=2", "noise.steps=null",
                  "--representation", fast, "--out", out)  # fmt: skip
    assert said.code == 0, said.err
    entries = json.loads((out / "table.json").read_text())["entries"]
    calls = [entry["network_samples_per_step"] for entry in entries]
    assert len(calls) == 2
    assert calls[0] < calls[1]


@pytest.mark.parametrize(("names", "blocks"), [(["sdi", "sds", "ism"], 1), (["sdi"] * 9, 2)])
def test_the_sheet_shows_the_first_side_and_the_one_behind_it(
    fast: Path, tmp_path: Path, names: list[str], blocks: int
) -> None:
    """Grey says which view of which run; the last run of the first line was not made."""
    plan = Plan("", representations=(str(fast),))
    variants = [Variant(f"{name} {i}", name) for i, name in enumerate(names)]
    shown, lost = [], Without("killed", False)
    for line in wanted(variants, plan, ["a mug", "a cup"]):
        for run in line:
            number = len(shown)
            tiles = np.concatenate([np.full((32, 32), 8 * k + number) for k in range(8)], axis=1)
            picture = np.concatenate([tiles[:, :128], tiles[:, 128:]]).astype(np.uint8)
            (tmp_path / run.name).mkdir()
            Image.fromarray(picture).save(tmp_path / run.name / "preview.png")
            shown.append(Shown(run, lost if number == 1 else row(20.0, run=run.name)))
    paths = sheet.write(shown, tmp_path)
    assert [path.name for path in paths] == ["table.png", "failures.png"][: 1 + (len(shown) > 8)]
    with Image.open(paths[0]) as opened:
        drawn = np.array(opened.convert("L"))
    lines = -(-len(names) // blocks)
    assert drawn.shape[0] == sheet.HEAD + lines * sheet.TILE
    for number in range(len(shown)):
        block, line = divmod(number // 2, lines)
        for side in (0, 1):
            x = block * drawn.shape[1] // blocks + sheet.WORDS
            x += (2 * (number % 2) + side) * sheet.TILE + sheet.TILE // 2
            y = sheet.HEAD + line * sheet.TILE + sheet.TILE // 4
            assert drawn[y, x] == (255 if number == 1 else 32 * side + number)
    assert drawn[: sheet.HEAD].min() < 100  # the sentences, which differ


def test_failures_are_the_worst_runs_the_worst_first(fast: Path, tmp_path: Path) -> None:
    """Grey says which view of which run. One was not made, of one nothing is known, and two of one
    PSNR are told apart by whether CLIP knows them."""
    plan = Plan("", representations=(str(fast),))
    ((first, *others),) = wanted(
        [Variant("sdi", "sdi")], dataclasses.replace(plan, seeds=11), ["a mug"]
    )
    psnr = [None, 18.0, None, 24.0, 9.0, 30.0, 21.0, 15.0, 12.0, 27.0, 15.0]
    shown = []
    for number, run in enumerate((first, *others)):
        tiles = np.concatenate([np.full((32, 32), 20 * k + number) for k in range(8)], axis=1)
        picture = np.concatenate([tiles[:, :128], tiles[:, 128:]]).astype(np.uint8)
        (tmp_path / run.name).mkdir()
        Image.fromarray(picture).save(tmp_path / run.name / "preview.png")
        known = judged(0.25) if number == 10 else None
        made = row(psnr[number], run=run.name, judged=known)
        shown.append(Shown(run, Without("killed", False) if number == 0 else made))
    assert sheet.worst(shown[:8]) == []
    order = [4, 8, 7, 10, 1, 6, 3, 9]
    assert sheet.worst(shown) == [shown[number] for number in order]
    drawn = np.array(sheet.failures(sheet.worst(shown), tmp_path).convert("L"))
    for line, number in enumerate(order):
        for turn in range(4):
            x = 2 * sheet.WORDS + turn * sheet.TILE + sheet.TILE // 2
            assert drawn[line * sheet.TILE + sheet.TILE // 2, x] == 40 * turn + number
        assert drawn[line * sheet.TILE : (line + 1) * sheet.TILE, : sheet.WORDS].min() < 100


def test_how_shapes_came_about_is_a_line_of_fronts_for_each_that_left_pictures(
    fast: Path, tmp_path: Path
) -> None:
    """Grey says which run and which step. Of 21 pictures ten are shown, the first and the last
    among them; two pictures are not worth a line."""
    plan = Plan("", representations=(str(fast),))
    line, counts, shown = [], [21, 3, 2], []
    for name in ("sdi", "sds", "ism"):
        line += wanted([Variant(name, name)], plan, ["a mug"])[0]
    for number, (run, count) in enumerate(zip(line, counts, strict=True)):
        folder = tmp_path / run.name / "previews"
        folder.mkdir(parents=True)
        for k in range(count):
            front = np.full((32, 32), 100 * number + 4 * k)
            side = np.full((32, 96), 255)
            picture = np.concatenate([front, side], axis=1).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"step_{15 * (k + 1):07d}.png")
        shown.append(Shown(run, row(20.0, run=run.name)))
    assert sheet.evolution(shown[2:], tmp_path) is None
    drawn = np.array(sheet.evolution(shown, tmp_path).convert("L"))  # type: ignore[union-attr]
    assert drawn.shape == (2 * (sheet.TILE + sheet.HEAD), sheet.WORDS + 10 * sheet.TILE)
    chosen = [[0, 2, 4, 7, 9, 11, 13, 16, 18, 20], [0, 1, 2]]
    for number, steps in enumerate(chosen):
        y = number * (sheet.TILE + sheet.HEAD) + sheet.HEAD + sheet.TILE // 2
        for column, k in enumerate(steps):
            x = sheet.WORDS + column * sheet.TILE + sheet.TILE // 2
            assert drawn[y, x] == 100 * number + 4 * k
    assert drawn[sheet.HEAD :, sheet.WORDS + 3 * sheet.TILE :][-sheet.TILE :].min() == 255


def test_the_head_of_a_column_says_what_differs() -> None:
    place = sheet.Place
    assert sheet.titles([place("gaussians", "a mug", 0)]) == [""]
    assert sheet.titles([place("gaussians", "a mug", 0), place("instant_ngp", "a mug", 1)]) == [
        "gaussians, seed 0", "instant_ngp, seed 1",
    ]  # fmt: skip
