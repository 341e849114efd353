# SPDX-License-Identifier: Apache-2.0
"""What the page answers to what is pressed and typed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdi_gs.studio import jobs, shown
from sdi_gs.studio.answers import Answers
from sdi_gs.studio.desk import Studio
from sdi_gs.studio.gallery import Gallery
from sdi_gs.studio.jobs import Outcome, Progress
from sdi_gs.studio.outputs import Outputs
from sdi_gs.studio.queue import Hands, Queue

from .conftest import STEPS, lay, picture
from .test_gallery import finish

FORM = ("a red mug", "mini", "", "", "", "0", "")


@pytest.fixture
def page(runs: Outputs) -> Answers:
    """The page of a studio whose queue does not move by itself."""
    gr = pytest.importorskip("gradio")
    queue = Queue(runs, Hands(lambda outputs, job: 2**22 + job.number, lambda: ("",)))
    return Answers(gr, Studio(runs, queue, Gallery(runs)))


def text(made: Any) -> str:
    return " ".join(str(made).split())


def test_a_press_is_a_job(page: Answers) -> None:
    notes, confirmed, _ = page.make(
        "  a red\nmug ", "mini", "sds", "instant_ngp", "1,000", "", "", ""
    )
    assert "It begins." in notes
    assert confirmed == ""
    (job,) = page.queue.all()
    assert job.order == jobs.Order("a red mug", "mini", "sds", "instant_ngp", 1000, None, None)
    notes, _, _ = page.make(*FORM, "")
    assert "in the queue, behind 1." in notes


def test_what_is_worth_knowing_is_said_before_and_the_second_press_makes_it(page: Answers) -> None:
    typed = ("a red mugg", *FORM[1:])
    notes, confirmed, _ = page.make(*typed, "")
    assert "never taught: mugg; it knows mug" in notes
    assert "once more" in notes
    assert page.queue.all() == []
    page.make("a blue mugg", *FORM[1:], confirmed)  # something else was typed meanwhile
    assert page.queue.all() == []
    page.make(*typed, confirmed)
    assert [job.title for job in page.queue.all()] == ["a red mugg"]


@pytest.mark.parametrize(
    ("place", "typed", "told"),
    [
        (0, "", "the prompt is empty"),
        (4, "many", "steps: &#39;many&#39; is no whole number; write one, such as 400"),
        (4, "1.5", "steps"),
        (4, "0", "from 1 on"),
        (5, "-3", "seed: -3 was given"),
        (1, "nothing", "preset"),
        (1, "run:../..", "is not the name of anything"),
        (6, "/etc", "model_index.json"),
    ],
)
def test_a_mistake_is_said_on_the_page(page: Answers, place: int, typed: str, told: str) -> None:
    form = [*FORM]
    form[place] = typed
    notes, _, _ = page.make(*form, "")
    assert "st-error" in notes
    assert told in notes
    assert page.queue.all() == []


def test_anything_may_be_sent_in_place_of_words(page: Answers) -> None:
    for given in (None, 3, [], {}, True, float("nan")):
        page.make(*(given,) * 8)
        for verb in ("open", "stop", "resume", "?"):
            page.asked(verb, given)  # type: ignore[arg-type]
        page.fill(str(given))
        page.resume(str(given), given)
        page.compare(str(given), given)
        page.make_file(str(given), given)  # type: ignore[arg-type]
        page.describe(given, given)  # type: ignore[arg-type]
    assert page.queue.all() == []


def test_a_choice_is_explained(page: Answers) -> None:
    told = page.describe("mini", "sds")
    for part in ("plain CPU", "DreamFusion", "400 steps where you write none"):
        assert part in told, part
    assert f"{STEPS} steps" in page.describe("run:base", "")
    assert "steps" not in page.describe("nothing", "")


def test_the_parts_that_change_are_sent_once(page: Answers, runs: Outputs) -> None:
    first = page.tick({}, "")
    seen = first[-1]
    assert "Nothing runs" in first[0]
    assert all(part == page.gr.skip() for part in page.tick(seen, "")[:-1])
    page.make(*FORM, "")
    changed = page.tick(seen, "")
    assert "Take out" in changed[2]
    assert changed[0] == page.gr.skip()


def test_how_a_run_is_doing_is_told_truthfully() -> None:
    at = Progress("training", 0, 40, 400, 0.5, 3000, "splats", (), 1000.0)
    assert at.seconds_left() == 180.0
    assert shown.now(at, 1000.0).left == "about 3 min left"
    assert shown.now(at, 1030.0).left == "about 2 min left"  # half a minute has passed since
    assert shown.now(replace(at, done=390), 1000.0).left == "about 5 s left"
    assert shown.now(at, 1090.0).left == "no word for 90 s"
    assert shown.now(replace(at, per_step=None), 1000.0).left == "the time left is not known yet"
    assert "film" in shown.now(replace(at, done=400), 1000.0).left
    assert shown.now(Progress(), 1000.0).steps == 0
    assert [shown.spoken(s) for s in (0, 42, 94, 100, 5000, 7800)] == [
        "5 s", "40 s", "95 s", "2 min", "83 min", "2 h 10 min",
    ]  # fmt: skip


def test_a_run_is_shown_with_what_it_has_left(page: Answers, runs: Outputs) -> None:
    run = runs.path / "base"
    picture(run / "preview.png")
    (run / "final.ply").write_bytes(b"ply\n")
    (run / "turntable.gif").write_bytes(b"GIF8")
    (run / "stats.jsonl").write_text('{"step": 5}\n')
    (run / "secret.txt").symlink_to("/etc/passwd")
    lay(runs.path / "other", prompt="a duck")
    finish(run)
    told = page.asked("open", "base")
    whole = text(told)
    assert told[2] == "base"
    parts = ("a red mug", "finished", "turntable.gif", "/file/report.html?run=base", "a duck")
    for part in parts:
        assert part in whole, part
    assert "secret.txt" not in whole
    assert page.arrive("base")[2] == "base"
    assert page.arrive("")[2] == page.gr.skip()


def test_a_mesh_comes_once_its_place_is_in_sight(page: Answers, runs: Outputs) -> None:
    mesh = runs.path / "base" / "final.glb"
    mesh.write_bytes(b"glTF")
    opened = page.asked("open", "base")
    assert str(mesh) not in text(opened)
    assert opened[-1] == {}  # what was sent before is forgotten
    assert str(mesh) in text(page.tick(opened[-1], "base")[:-1])
    (runs.path / "base" / "final.ply").write_bytes(b"ply")  # which the report shows itself
    assert str(mesh) not in text(page.tick({}, "base"))


def test_a_run_that_is_damaged_or_not_there_is_said(page: Answers, runs: Outputs) -> None:
    (runs.path / "base" / "config.yaml").write_text("[")
    assert "config.yaml is damaged" in text(page.asked("open", "base"))
    for name in ("nothing", "../base", ".studio", "/etc"):
        assert "st-error" in text(page.asked("open", name))


def test_again_with_changes_fills_the_form(page: Answers, runs: Outputs) -> None:
    filled = page.fill("base")
    assert filled[2:] == ("a red mug", "mini", "", "", str(STEPS), "0", "")
    lay(runs.path / "other", "mini_nerf", prompt="a duck", seed=4, batch=2)
    filled = page.fill("other")
    assert filled[2:] == ("a duck", "run:other", "", "", str(STEPS), "4", "")
    page.make(*filled[2:], "")
    (job,) = page.queue.all()
    assert job.order is not None
    assert job.order.preset == "run:other"


def test_a_run_goes_on_from_its_page(page: Answers, runs: Outputs) -> None:
    assert "goes on when its turn comes" in page.resume("base", "")
    page.queue.stop(1)
    finish(runs.path / "base")
    assert f"such as {2 * STEPS}" in page.resume("base", "")
    assert "made longer only" in page.resume("base", "3")
    assert "goes on" in page.resume("base", str(STEPS + 1))
    assert [job.steps for job in page.queue.all()] == [None, STEPS + 1]
    assert "is waiting already" in page.resume("base", str(STEPS + 2))


def test_the_buttons_of_the_queue(page: Answers, runs: Outputs) -> None:
    page.make(*FORM, "")
    page.asked("stop", "1")
    assert page.queue.job(1).message == "taken out of the queue"
    assert "base goes on" in text(page.asked("resume", "base"))
    assert page.queue.job(2).verb == "resume"
    for verb, what in (("stop", "9"), ("resume", "../base"), ("resume", "base")):
        assert "st-error" in text(page.asked(verb, what))
    assert len(page.queue.all()) == 2


def test_a_file_is_made_of_a_run(page: Answers, runs: Outputs) -> None:
    assert "is not known" in page.make_file("base", "exe")
    assert "is being made" in page.make_file("base", "splat")
    assert "is being made" in text(page.tick({}, "base"))
    page.queue.look()
    jobs.write_outcome(jobs.folder(runs.jobs, 1), Outcome("done", "final.splat: 7 splats"))
    (runs.path / "base" / "final.splat").write_bytes(b"1234")
    page.queue.look()
    told = text(page.tick({}, "base"))
    assert "final.splat: 7 splats" in told
    assert "/file/base/final.splat?save=1" in told
    assert "final.splat" not in text(page.tick({}, "other"))


def test_two_runs_are_compared_on_one_page(page: Answers, runs: Outputs) -> None:
    lay(runs.path / "other", prompt="a duck")
    assert "/file/report.html?run=base&amp;run=other" in page.compare("base", "other")
    assert "st-error" in page.compare("base", "../other")


def test_the_list_is_shown_in_portions(page: Answers, runs: Outputs) -> None:
    settings = (runs.path / "base" / "config.yaml").read_text()
    for number in range(70):
        (runs.path / f"run-{number}").mkdir()
        (runs.path / f"run-{number}" / "config.yaml").write_text(settings)
    grid, more, most = page.list_runs("", "", "")
    assert grid.count("st-card") == most == shown.LISTED
    assert more["visible"]
    grid, more, most = page.list_more("", "", "", most)
    assert grid.count("st-card") == 71
    assert not more["visible"]
    grid, *_ = page.list_runs("nothing like it", "", "")
    assert "None of 71 runs fits" in grid


def test_who_runs_is_stopped_and_an_end_is_shown(page: Answers, runs: Outputs) -> None:
    assert "Nothing runs" in page.stop_all()
    page.make(*FORM, "")
    page.queue.look()
    job = page.queue.all()[0]
    jobs.write_outcome(jobs.folder(runs.jobs, 1), Outcome("stopped", "stopped after step 3 of 6"))
    lay(runs.path / "x")
    (runs.path / str(job.run) / "stats.jsonl").write_text("")
    picture(runs.path / str(job.run) / "preview.png")
    page.queue.look()
    told = text(page.tick({}, "")[0])
    assert "stopped after step 3 of 6" in told
    assert 'data-do="resume"' in told
