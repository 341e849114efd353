# SPDX-License-Identifier: Apache-2.0
"""One run at a time, in the order in which they were asked for, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sdi_gs.errors import UserError
from sdi_gs.studio import jobs, queue
from sdi_gs.studio.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, Order, Outcome
from sdi_gs.studio.outputs import Outputs
from sdi_gs.studio.queue import Hands, Queue

from ...browser import until


class Crew:
    """Stands in for the runs: processes that sleep until they are told to end."""

    def __init__(self) -> None:
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.began: list[Job] = []

    def start(self, outputs: Outputs, job: Job) -> int:
        child = subprocess.Popen(["sleep", "60"])
        self.children[job.number] = child
        self.began.append(job)
        return child.pid

    def ends(self, outputs: Outputs, number: int, outcome: Outcome | None) -> None:
        if outcome is not None:
            jobs.write_outcome(jobs.folder(outputs.jobs, number), outcome)
        self.children[number].kill()
        self.children[number].wait()


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    for child in made.children.values():
        child.kill()
        child.wait()


@pytest.fixture
def hands(crew: Crew) -> Hands:
    return Hands(crew.start, lambda: ("",))


def states(waiting: Queue) -> list[str]:
    return [job.state for job in waiting.all()]


def test_one_at_a_time_in_order(runs: Outputs, crew: Crew, hands: Hands) -> None:
    asked = Queue(runs, hands)
    for prompt in ("a red mug", "a red mug", "a duck"):
        asked.make(Order(prompt))
    for _ in range(2):
        asked.look()
        assert states(asked) == [RUNNING, WAITING, WAITING]
    assert [job.run for job in crew.began] == ["a-red-mug-1"]
    crew.ends(runs, 1, Outcome(DONE, "finished"))
    asked.look()
    assert states(asked) == [DONE, RUNNING, WAITING]
    (runs.path / "a-red-mug-1" / "config.yaml").write_text("")
    crew.ends(runs, 2, None)
    asked.look()
    assert states(asked) == [DONE, FAILED, RUNNING]
    assert "memory runs out" in asked.job(2).message
    assert str(runs.jobs / "000002" / "log.txt") in asked.job(2).message
    # The second name was taken away again with its empty folder; the first run is kept.
    assert [job.run for job in crew.began] == ["a-red-mug-1", "a-red-mug-2", "a-duck-1"]
    assert (runs.path / "a-red-mug-1").is_dir()
    assert not (runs.path / "a-red-mug-2").exists()


def test_each_card_has_one(runs: Outputs, crew: Crew) -> None:
    asked = Queue(runs, Hands(crew.start, lambda: ("0", "3")))
    for _ in range(3):
        asked.make(Order("a duck"))
    asked.look()
    assert [job.slot for job in crew.began] == ["0", "3"]
    crew.ends(runs, 2, Outcome(DONE, ""))
    asked.look()
    assert [job.slot for job in crew.began] == ["0", "3", "3"]


def test_an_export_does_not_wait_for_a_run(runs: Outputs, crew: Crew, hands: Hands) -> None:
    asked = Queue(runs, hands)
    asked.make(Order("a duck"))
    asked.export("base", "glb")
    asked.look()
    assert states(asked) == [RUNNING, RUNNING]
    with pytest.raises(UserError, match="base is running already"):
        asked.export("base", "ply")


def test_a_studio_that_is_started_again_finds_everything(
    runs: Outputs, crew: Crew, hands: Hands
) -> None:
    first = Queue(runs, hands)
    order = Order("a duck", "mini", "sds", "gaussians", 7, 3, "/models/x")
    first.make(order)
    first.make(Order("a chair"))
    first.look()
    (runs.jobs / "000003").mkdir()
    (runs.jobs / "000003" / "job.json").write_text('{"number": 3')  # a power cut
    again = Queue(runs, hands)
    again.look()
    assert states(again) == [RUNNING, WAITING]
    assert again.job(1).order == order
    assert len(crew.began) == 1
    crew.ends(runs, 1, Outcome(STOPPED, "stopped after step 3"))
    third = Queue(runs, hands)  # it ended while no studio was there
    third.look()
    assert states(third) == [STOPPED, RUNNING]
    assert third.job(1).message == "stopped after step 3"


def test_a_number_that_another_process_has_now_is_not_taken_for_the_run(
    runs: Outputs, crew: Crew, hands: Hands
) -> None:
    asked = Queue(runs, hands)
    asked.make(Order("a duck"))
    asked.look()
    jobs.write(runs.jobs, replace(asked.job(1), pid=os.getpid()))  # alive, and not that one
    again = Queue(runs, hands)
    again.look()
    assert states(again) == [FAILED]


def test_what_waits_is_taken_out_and_what_runs_is_asked(
    runs: Outputs, crew: Crew, hands: Hands
) -> None:
    asked = Queue(runs, hands)
    for _ in range(2):
        asked.make(Order("a duck"))
    asked.look()
    asked.stop(2)
    asked.stop(1)
    assert crew.children[1].wait(timeout=10) == -signal.SIGTERM
    assert asked.job(1).asked_to_stop
    asked.look()
    assert states(asked) == [STOPPED, STOPPED]
    assert asked.job(1).message == "stopped before it began"
    assert asked.stop(1).state == STOPPED  # twice is nothing
    assert len(crew.began) == 1
    with pytest.raises(UserError, match="no job 9"):
        asked.stop(9)


def test_a_run_goes_on_once_at_a_time(runs: Outputs, hands: Hands) -> None:
    asked = Queue(runs, hands)
    assert asked.resume("base", 20).steps == 20
    with pytest.raises(UserError, match="base is waiting already, as job 1"):
        asked.resume("base")
    with pytest.raises(UserError, match="is not in"):
        asked.resume("nothing")
    with pytest.raises(UserError, match="is not the name"):
        asked.export("../base", "ply")


def test_a_queue_has_an_end(runs: Outputs, hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MOST_WAITING", 2)
    monkeypatch.setattr(queue, "KEPT", 1)
    asked = Queue(runs, hands)
    asked.make(Order("a duck"))
    asked.make(Order("a duck"))
    with pytest.raises(UserError, match="2 jobs wait already"):
        asked.make(Order("a duck"))
    asked.stop(1)
    asked.stop(2)
    asked.make(Order("a chair"))
    assert [job.number for job in asked.all()] == [2, 3]
    assert sorted(path.name for path in runs.jobs.iterdir()) == ["000002", "000003"]


def test_a_program_that_cannot_be_started_is_said(runs: Outputs) -> None:
    def refuse(outputs: Outputs, job: Job) -> int:
        raise OSError(12, "Cannot allocate memory")

    asked = Queue(runs, Hands(refuse, lambda: ("",)))
    asked.make(Order("a duck"))
    asked.look()
    assert asked.job(1).message == "could not be started: Cannot allocate memory"
    assert not (runs.path / "a-duck-1").exists()


def test_the_child_has_its_card_and_no_parent(
    runs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Child:
        pid = 7

        def __init__(self, words: list[str], **more: Any) -> None:
            seen.update(more, words=words)

    monkeypatch.setattr(queue.subprocess, "Popen", Child)
    jobs.write(runs.jobs, Job(1, "generate", order=Order("a duck")))
    assert queue.start(runs, Job(1, "generate", slot="3")) == 7
    queue._children.clear()
    assert seen["words"][1:] == ["-m", "sdi_gs.studio.worker", str(runs.path), "1"]
    assert seen["start_new_session"]
    assert seen["env"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert "SDI_GS_PARENT" not in seen["env"]


@pytest.mark.parametrize(
    ("count", "told", "slots"),
    [(0, None, ("",)), (2, None, ("0", "1")), (2, "5,GPU-ab", ("5", "GPU-ab")), (1, "4", ("4",))],
)
def test_the_cards_that_the_studio_was_given(
    count: int, told: str | None, slots: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if told is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert queue.cards() == slots


def test_it_moves_on_by_itself(runs: Outputs, crew: Crew, hands: Hands) -> None:
    asked = Queue(runs, hands)
    asked.begin()
    asked.make(Order("a duck"))
    until(lambda: states(asked) == [RUNNING], 10)
    crew.ends(runs, 1, Outcome(DONE, ""))
    until(lambda: states(asked) == [DONE], 10)
    asked.end()
