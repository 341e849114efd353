# SPDX-License-Identifier: Apache-2.0
"""The process that makes a run: what it leaves for the studio, and that being watched is nothing to
the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sdi_gs
from sdi_gs.studio import jobs, outputs, worker
from sdi_gs.studio.jobs import DONE, FAILED, STOPPED, Job, Order, Outcome, Progress
from sdi_gs.studio.outputs import Outputs
from sdi_gs.trainer import StepReport
from sdi_gs.watch.progress import Silent

from .conftest import STEPS, lay

ORDER = Order("a red mug", "run:base", seed=5)


@pytest.fixture
def quick(tmp_path: Path, fast: Path) -> Outputs:
    """An outputs folder with settings that take no time."""
    found = outputs.opened(tmp_path / "outputs")
    lay(found.path / "base", fast)
    return found


def done(where: Outputs, job: Job) -> Outcome:
    """What is said of ``job`` once this process has worked on it."""
    if job.run is not None:
        (where.path / job.run).mkdir(exist_ok=True)
    jobs.write(where.jobs, job)
    code = worker.main([str(where.path), str(job.number)])
    outcome = jobs.read_outcome(jobs.folder(where.jobs, job.number))
    assert outcome is not None
    assert (code == 0) == (outcome.state == DONE)
    return outcome


def progress(where: Outputs, number: int) -> Progress:
    return jobs.read_progress(jobs.folder(where.jobs, number))


def test_a_run_is_the_same_bytes_as_without_a_studio(quick: Outputs) -> None:
    assert done(quick, Job(1, "generate", order=ORDER, run="mug")).message == "finished"
    base = quick.path / "base" / "config.yaml"
    plain = quick.path.parent / "plain"
    sdi_gs.generate("a red mug", str(base), seed=5, out=plain, watcher=Silent())
    names = ("final.ply", "config.yaml", "preview.png")
    for name in names:
        assert (quick.path / "mug" / name).read_bytes() == (plain / name).read_bytes(), name
    told = progress(quick, 1)
    assert (told.first, told.done, told.steps, told.unit) == (0, STEPS, STEPS, "splats")
    assert told.per_step is not None
    assert told.seconds_left() == 0.0
    with Image.open(jobs.folder(quick.jobs, 1) / "live.jpg") as shown:
        assert shown.size == (worker.SIDE, worker.SIDE)


def stopping_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The studio's Stop, right after a step."""
    real = worker.Teller.step

    def acting(self: worker.Teller, report: StepReport) -> None:
        real(self, report)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(worker.Teller, "step", acting)


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    quick: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quick.path.parent / "whole"
    base = quick.path / "base" / "config.yaml"
    sdi_gs.generate("a red mug", str(base), seed=5, out=whole, watcher=Silent())
    with monkeypatch.context() as patch:
        stopping_after(2, patch)
        outcome = done(quick, Job(1, "generate", order=ORDER, run="mug"))
    assert outcome == Outcome(STOPPED, f"stopped after step 3 of {STEPS}; the state is saved.")
    assert done(quick, Job(2, "resume", run="mug")).state == DONE
    told = progress(quick, 2)
    assert (told.first, told.done) == (3, STEPS)
    assert (quick.path / "mug" / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()
    assert done(quick, Job(3, "resume", run="mug", steps=STEPS + 2)).state == DONE
    assert progress(quick, 3).done == STEPS + 2
    made = done(quick, Job(4, "export", run="mug", kind="splat"))
    assert made.state == DONE
    assert made.message.startswith("final.splat: ")
    assert (quick.path / "mug" / "final.splat").stat().st_size % 32 == 0


def test_a_mistake_is_one_sentence(quick: Outputs) -> None:
    (quick.path / "base" / "config.yaml").write_text("schema_version: 1\nsteps: many\n")
    outcome = done(quick, Job(1, "generate", order=ORDER, run="mug"))
    assert outcome.state == FAILED
    assert "steps" in outcome.message


def test_a_mistake_of_ours_is_said_with_its_place(
    quick: Outputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("sdi_gs.api.generate", broken)
    outcome = done(quick, Job(1, "generate", order=ORDER, run="mug"))
    assert outcome.message == (
        "a mistake of this program: ZeroDivisionError: by nothing (all of it: log.txt)"
    )
    assert "Traceback" in capsys.readouterr().err


def test_code_that_came_with_a_run_is_not_run(quick: Outputs) -> None:
    config = quick.path / "base" / "config.yaml"
    trap = quick.path / "base" / "trap.py"
    trap.write_text(f"open({str(quick.path / 'sprung')!r}, 'w')")
    config.write_text(config.read_text().replace("plugins: []", f"plugins: [{trap}]"))
    assert "trap.py" in config.read_text()
    for job in (
        Job(1, "generate", order=ORDER, run="mug"),
        Job(2, "resume", run="base"),
        Job(3, "export", run="base", kind="ply"),
    ):
        outcome = done(quick, job)
        assert outcome.state == FAILED
        assert "plug-ins" in outcome.message
    assert not (quick.path / "sprung").exists()


class Hours:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_pictures_take_their_share_of_the_time_and_no_more(
    quick: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Hours()
    teller = worker.Teller(quick.own, clock)
    cost = 1.0  # second a picture

    def drawn(self: worker.Teller) -> None:
        clock.at += cost
        self.drawn += 1
        self._pictured = clock.at
        self.budget.spend(cost)

    monkeypatch.setattr(worker.Teller, "picture", drawn)
    scene: Any = type("Scene", (), {})()
    scene.first_step, scene.config = 0, type("C", (), {"steps": 1001})()
    teller.begin(scene)
    began, before = clock.at, teller.drawn
    report: Any = type("Report", (), {})()
    report.refined = type("Refined", (), {"size": 7, "unit": "splats"})()
    for step in range(1000):
        clock.at += 0.1
        report.step = step
        teller.step(report)
    share = (teller.drawn - before) * cost / (clock.at - began)
    assert 0.04 < share < 0.1


def test_progress_survives_a_torn_file(quick: Outputs) -> None:
    (quick.own / "progress.json").write_text('{"done": 3, "ste')
    assert jobs.read_progress(quick.own) == Progress()
    (quick.own / "progress.json").write_text('{"done": 3, "of_another_version": 1}')
    assert jobs.read_progress(quick.own) == Progress()
