# SPDX-License-Identifier: Apache-2.0
"""Workers: what becomes of each line, and that nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.artefacts import holder
from sdi_gs.artefacts.holder import held
from sdi_gs.errors import RunFailure, UserError
from sdi_gs.stopping import Interrupted, stopping
from sdi_gs.sweep import manifest, plan, pool, status, work
from sdi_gs.sweep.engines import Options, local
from sdi_gs.sweep.manifest import Line, Sweep
from sdi_gs.sweep.states import Ledger
from sdi_gs.sweep.status import standing
from sdi_gs.sweep.work import NoRoom, Stopped, Unfit, Worker
from sdi_gs.sweep.worker import Sign

from ..sweeping import MUG, Stage, lines, planned, quiet, stage

__all__ = ["stage"]

Run = Callable[..., Any]
DEAD = 2**22 + 1  # no process has that number


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdi_gs.sweep.seek.BEAT", 0.05)
    monkeypatch.setattr("sdi_gs.sweep.worker.BEAT", 0.05)
    monkeypatch.setattr("sdi_gs.sweep.work.HELD_AGAIN", 0.05)


def serve(sweep: Sweep, index: int | None = None, of: int | None = None) -> None:
    pool.serve(sweep, index, of, quiet)


def words(sweep: Sweep) -> dict[str, str]:
    """The state of each line, by its sentence and seed."""
    seen = standing(sweep)
    return {f"{line.prompt} {line.seed}": seen.state(line).word for line in lines(sweep)}


def test_what_becomes_of_a_line(stage: Stage, tmp_path: Path) -> None:
    """A mistake is tried once, a crash three times, and a divergence is a result."""
    sweep = planned(tmp_path, MUG, "mistake mug", "wild mug", "crash mug")
    serve(sweep)
    assert words(sweep) == {f"{MUG} 0": "done", "mistake mug 0": "failed",
                            "wild mug 0": "diverged", "crash mug 0": "failed"}  # fmt: skip
    assert sorted(stage.begun.values()) == [1, 1, 1, 3]
    told = status.text(sweep, standing(sweep))
    assert "4 runs: 1 done, 1 diverged, 0 running, 0 waiting, 2 failed" in told
    assert "it cannot work" in told
    assert "really" not in told  # the first line of why
    assert "crashed 3 times: killed by SIGKILL" in told
    serve(sweep)
    assert sum(stage.begun.values()) == 6  # nothing is begun again
    assert not any((sweep.state / "workers").iterdir())


def test_what_failed_is_tried_again_when_somebody_says_so(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, MUG, "crash mug", "mistake mug")
    serve(sweep)
    stage.mended = True
    crash = next(line for line in lines(sweep) if "crash" in line.prompt)
    assert status.retry(sweep, [crash.name]) == (1, 0)
    assert status.retry(sweep, [crash.name]) == (0, 0)  # who asks twice asks once
    serve(sweep)
    assert words(sweep) == {f"{MUG} 0": "done", "crash mug 0": "done", "mistake mug 0": "failed"}


def test_a_finished_run_that_somebody_deleted_is_made_again_on_request(
    stage: Stage, tmp_path: Path
) -> None:
    sweep = planned(tmp_path, seeds=2)
    serve(sweep)
    gone = lines(sweep)[0]
    shutil.rmtree(sweep.run(gone))
    assert status.retry(sweep) == (0, 1)
    serve(sweep)
    assert stage.begun == {gone.name: 2, lines(sweep)[1].name: 1}
    assert (sweep.run(gone) / "summary.json").exists()


def test_many_workers_do_each_line_once(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, seeds=40)
    threads = [threading.Thread(target=work_through, args=(sweep,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(words(sweep).values()) == {"done"}
    assert set(stage.begun.values()) == {1}
    assert len(stage.begun) == 40


def work_through(sweep: Sweep) -> None:
    with Worker(sweep, quiet) as worker:
        worker.work()


def test_one_worker_keeps_the_order_of_the_manifest(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, MUG, "a blue car", seeds=3)
    serve(sweep)
    assert list(stage.begun) == [line.name for line in lines(sweep)]


def dead_claim(sweep: Sweep, line: Line, machine: str | None = None) -> None:
    """The claim of a worker that was killed."""
    sign = Sign(sweep, lambda: None)
    sign._write()
    there = json.loads(sign.path.read_text()) | {"pid": DEAD}
    sign.path.write_text(json.dumps(there | ({"machine": machine} if machine else {})))
    ledger = Ledger(sweep)
    assert ledger.claim(line, ledger.state(line).claim + 1, sign.path)


@pytest.mark.parametrize("machine", [None, "elsewhere"])
def test_the_line_of_a_dead_worker_is_taken_over_once(
    stage: Stage, tmp_path: Path, machine: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdi_gs.sweep.worker.SILENCE", 0.3)
    sweep = planned(tmp_path, seeds=3)
    line = lines(sweep)[1]
    dead_claim(sweep, line, machine)
    assert words(sweep)[f"{MUG} 1"] == "running"
    threads = [threading.Thread(target=work_through, args=(sweep,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(words(sweep).values()) == {"done"}
    assert set(stage.begun.values()) == {1}
    assert Ledger(sweep).state(line)[1:] == (2, 0, 1)


def test_a_line_over_which_worker_after_worker_dies_has_failed(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdi_gs.sweep.states.LOST", 4)
    sweep = planned(tmp_path)
    for _ in range(5):
        dead_claim(sweep, lines(sweep)[0])
    serve(sweep)
    assert words(sweep) == {f"{MUG} 0": "failed"}
    assert stage.begun == {}
    assert "5 workers died while they made it" in status.text(sweep, standing(sweep))


def test_who_was_silent_for_too_long_stops_its_run_and_writes_nothing(
    stage: Stage, tmp_path: Path
) -> None:
    sweep = planned(tmp_path, "slow mug")
    line, ends = lines(sweep)[0], []
    with Worker(sweep, quiet) as worker:
        claimed = worker.seeker.take(line)
        assert claimed is not None
        other = Sign(sweep, lambda: None)
        other._write()

        def do() -> None:
            ends.append(worker.do(claimed))

        thread = threading.Thread(target=do)
        thread.start()
        until(lambda: bool(stage.begun))
        assert Ledger(sweep).claim(line, 2, other.path)
        thread.join(10)
    assert ends == ["overtaken"]
    assert sorted(path.name for path in (sweep.state / "000").iterdir()) == [
        f"{line.digest}.1", f"{line.digest}.2",
    ]  # fmt: skip


def until(over: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not over() and time.monotonic() < end:
        time.sleep(0.01)
    assert over()


def test_ctrl_c_stops_every_run_and_puts_them_back(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, "slow mug", seeds=4)
    said: list[str] = []

    def interrupt() -> None:
        until(lambda: len(stage.begun) == 3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted) as told, stopping():
        local.run(sweep, Options(jobs=3), said.append)
    assert told.value.exit_code == 130
    assert set(words(sweep).values()) == {"waiting"}
    stage.hold.set()
    local.run(sweep, Options(jobs=3), quiet)
    assert set(words(sweep).values()) == {"done"}
    assert set(stage.finished.values()) == {1}
    assert not any((sweep.state / "workers").iterdir())


def elsewhere(sweep: Sweep, count: int) -> tuple[list[threading.Thread], list[BaseException]]:
    """So many workers in threads of their own, and what they raise."""
    failures: list[BaseException] = []

    def away() -> None:
        try:
            work_through(sweep)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=away) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, failures


def test_a_sweep_that_is_asked_to_stop_stops_everywhere(
    stage: Stage, sdi_gs: Run, tmp_path: Path
) -> None:
    sweep = planned(tmp_path, "slow mug", seeds=2)
    threads, failures = elsewhere(sweep, 2)
    until(lambda: len(stage.begun) == 2)
    said = sdi_gs("sweep", "stop", sweep.path)
    assert said.out.startswith("2 runs save their state")
    for thread in threads:
        thread.join(10)
    assert [type(failure) for failure in failures] == [Stopped, Stopped]
    assert set(words(sweep).values()) == {"waiting"}
    again = sdi_gs("sweep", "work", sweep.path)
    assert again.code == 1
    assert "to go on:" in again.err
    assert "asked to stop" in sdi_gs("sweep", "status", sweep.path).out
    stage.hold.set()
    assert sdi_gs("sweep", "stop", sweep.path, "--lift").code == 0
    assert sdi_gs("sweep", "run", sweep.path, "--jobs", 2).code == 0
    assert set(words(sweep).values()) == {"done"}


def test_a_worker_without_room_leaves_and_another_goes_on(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, "full mug", MUG)
    with pytest.raises(NoRoom, match=r"has no room for this sweep and leaves it.*No space left"):
        serve(sweep)
    assert set(words(sweep).values()) == {"waiting"}
    stage.mended = True  # another machine
    serve(sweep)
    assert set(words(sweep).values()) == {"done"}


def test_a_machine_on_which_everything_crashes_does_not_spend_the_tries_of_every_line(
    stage: Stage, tmp_path: Path
) -> None:
    sweep = planned(tmp_path, "crash mug", seeds=20)
    with pytest.raises(Unfit, match="5 different runs have crashed"):
        serve(sweep)
    assert set(stage.begun.values()) == {1}
    assert len(stage.begun) == 5
    assert set(words(sweep).values()) == {"waiting"}


def test_what_crashed_here_is_tried_again_when_nothing_else_is_left(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may do better meanwhile; in blocks of one line, so that each is listed."""
    monkeypatch.setattr(plan, "BLOCK", 1)
    sweep = planned(tmp_path, "crash mug", MUG, "a blue car")
    serve(sweep)
    assert [name.split("-")[0] for name in stage.order] == ["crash", "a", "a", "crash", "crash"]


def test_a_block_that_is_settled_is_not_listed_again(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until somebody reopens one of its lines, or adds one."""
    sweep = planned(tmp_path, seeds=2)
    serve(sweep)
    asked: list[str] = []
    real = Ledger.block

    def block(self: Ledger, name: str) -> Any:
        asked.append(name)
        return real(self, name)

    monkeypatch.setattr(Ledger, "block", block)
    serve(sweep)
    assert asked == []
    planned(tmp_path, seeds=3)
    serve(sweep)
    assert asked
    assert len(stage.begun) == 3


def test_a_note_about_a_block_does_not_hide_a_line_that_was_just_reopened(
    stage: Stage, tmp_path: Path
) -> None:
    """By one who had looked before."""
    sweep = planned(tmp_path, "mistake mug")
    serve(sweep)
    status.retry(sweep)
    ledger, some = Ledger(sweep), lines(sweep)
    ledger.settle("000", some)
    assert not ledger.is_settled("000", some)


def test_a_state_that_cannot_be_written_loses_nothing(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk of the sweep's own folder: the claim stays until the worker is gone."""
    sweep = planned(tmp_path)
    real = os.open

    def full(path: Any, flags: int, *more: int) -> int:
        if str(path).endswith(".done"):
            raise OSError(28, "No space left on device", str(path))
        return real(path, flags, *more)

    monkeypatch.setattr("os.open", full)
    with pytest.raises(NoRoom, match="No space left"):
        serve(sweep)
    monkeypatch.undo()
    line = lines(sweep)[0]
    claim = Ledger(sweep).file(line, 1)
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"pid": DEAD}))
    monkeypatch.setattr("sdi_gs.child.call", stage.call)
    serve(sweep)
    assert words(sweep) == {f"{MUG} 0": "done"}
    assert stage.begun[line.name] == 1  # it was finished, and is not made again


def test_a_sweep_deleted_in_the_middle_is_one_message_and_stays_deleted(
    stage: Stage, tmp_path: Path
) -> None:
    sweep = planned(tmp_path, "slow mug", seeds=2)
    (thread,), failures = elsewhere(sweep, 1)
    until(lambda: bool(stage.begun))
    sweep.path.rename(tmp_path / "bin")  # at one instant, as it seems from elsewhere
    stage.hold.set()
    thread.join(10)
    assert len(failures) == 1
    assert isinstance(failures[0], RunFailure | UserError)
    assert "is gone" in str(failures[0]) or "cannot be read" in str(failures[0])
    assert not sweep.path.exists()


def test_the_state_may_be_lost_and_no_run_is_made_twice(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, seeds=3)
    serve(sweep)
    shutil.rmtree(sweep.state)
    serve(sweep)
    assert set(words(sweep).values()) == {"done"}
    assert set(stage.begun.values()) == {1}


def test_a_line_edited_by_hand_fails_alone(stage: Stage, sdi_gs: Run, tmp_path: Path) -> None:
    sweep = planned(tmp_path, seeds=3)
    text = sweep.manifest.read_text()
    first, second, third = text.splitlines(keepends=True)
    sweep.manifest.write_text(first.replace('"seed": 0', '"seed": 5') + second[:50] + "\n" + third)
    said = sdi_gs("sweep", "run", sweep.path, "--jobs", 1)
    assert said.code == 1
    assert "the line was edited" in said.out
    assert "1 damaged lines of the manifest left out (line 2: it is not JSON" in said.out
    assert "1 of 2 runs have no result" in said.err
    assert list(stage.begun) == [lines(sweep)[1].name]
    with pytest.raises(UserError, match="damaged lines of the manifest"):
        serve(sweep, 1)  # which line is the second is not known any more
    sweep.manifest.write_text(text)
    assert sdi_gs("sweep", "retry", sweep.path).code == 0
    assert sdi_gs("sweep", "run", sweep.path, "--jobs", 1).code == 0
    assert set(stage.begun.values()) == {1}


def test_a_worker_of_another_version_claims_nothing(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = planned(tmp_path)
    monkeypatch.setattr(manifest, "version", lambda: "9.9.9")
    with pytest.raises(UserError, match=r"this is sdi-gs 9\.9\.9, whose runs may differ"):
        serve(sweep)
    assert stage.begun == {}
    assert list(sweep.state.iterdir()) == []


def test_a_run_that_somebody_else_holds_is_waited_for(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdi_gs.child.PATIENCE", 0.05)
    monkeypatch.setattr("sdi_gs.sweep.work.HELD_AGAIN", 0.5)
    monkeypatch.setattr(holder, "_LOOK", 0.02)
    sweep = planned(tmp_path, seeds=2)
    folder = sweep.run(lines(sweep)[0])
    folder.mkdir(parents=True)
    thread = threading.Thread(target=work_through, args=(sweep,))
    with held(folder, "generate"):
        thread.start()
        until(lambda: words(sweep)[f"{MUG} 1"] == "done")
        time.sleep(1.0)
    thread.join(10)
    assert Ledger(sweep).state(lines(sweep)[0]).claim < 6  # and not asked for all the time
    assert set(words(sweep).values()) == {"done"}
    assert set(stage.begun.values()) == {1}


def test_the_task_of_an_array_sees_its_own_line_to_the_end(
    stage: Stage, sdi_gs: Run, tmp_path: Path
) -> None:
    sweep = planned(tmp_path, MUG, "mistake mug", "crash mug", "wild mug")
    codes = [sdi_gs("sweep", "work", sweep.path, "--index", index).code for index in range(4)]
    assert codes == [0, 2, 1, 0]
    assert list(stage.begun.values()) == [1, 1, 3, 1]
    assert [sdi_gs("sweep", "work", sweep.path, "--index", index).code for index in range(4)] == (
        codes
    )
    assert sum(stage.begun.values()) == 6
    beyond = sdi_gs("sweep", "work", sweep.path, "--index", 4)
    assert beyond.code == 2
    assert "--index 4: allowed are 0 to 3" in beyond.err


def test_a_few_tasks_share_many_lines(stage: Stage, sdi_gs: Run, tmp_path: Path) -> None:
    sweep = planned(tmp_path, seeds=7)
    for index in range(3):
        assert sdi_gs("sweep", "work", sweep.path, "--index", index, "--of", 3).code == 0
    assert set(words(sweep).values()) == {"done"}
    assert len(stage.begun) == 7
    assert sdi_gs("sweep", "work", sweep.path, "--of", 3).code == 2
    assert sdi_gs("sweep", "work", sweep.path, "--index", 3, "--of", 3).code == 2


def test_runs_that_were_added_meanwhile_are_made_too(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, "slow mug")
    thread = threading.Thread(target=work_through, args=(sweep,))
    thread.start()
    until(lambda: bool(stage.begun))
    planned(tmp_path, "slow mug", MUG)
    stage.hold.set()
    thread.join(10)
    assert set(words(sweep).values()) == {"done"}


def test_status_shows_the_step_and_the_time_that_is_left(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, "slow mug", MUG)
    line = lines(sweep)[0]
    thread = threading.Thread(target=work_through, args=(sweep,))
    thread.start()
    until(lambda: bool(stage.begun))
    steps = [{"step": k, "seconds": {"a": 20.0, "b": 10.0}} for k in range(2)]
    text = "".join(json.dumps(step) + "\n" for step in steps) + '{"step": 2, "sec'
    (sweep.run(line) / "stats.jsonl").write_text(text)
    told = status.text(sweep, standing(sweep)).splitlines()
    row = next(row for row in told if row.startswith("slow-mug"))
    assert row.split()[1:4] == ["2/4", "60", "s"]
    assert row.endswith(f" {os.getpid()}")
    shown: list[str] = []
    watching = threading.Thread(target=status.watch, args=(sweep, shown.append, 0.05))
    watching.start()
    stage.hold.set()
    thread.join(10)
    watching.join(10)
    assert "2 done" in shown[-1]


def test_slots_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card each, or so many cores each, and the threads that go with that."""

    def shown(**options: Any) -> list[tuple[str | None, str]]:
        slots = local.slots(Options(**options))
        return [(e.get("CUDA_VISIBLE_DEVICES"), e["OMP_NUM_THREADS"]) for _, e in slots]

    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setattr(local, "visible_cards", list)
    assert shown() == [(None, "1")] * 8
    assert shown(cores=3) == [(None, "3")] * 2
    assert shown(jobs=2) == [(None, "4")] * 2
    assert shown(jobs=3, cores=1) == [(None, "1")] * 3
    assert shown(jobs=20) == [(None, "1")] * 20
    monkeypatch.setattr(local, "visible_cards", lambda: ["2", "5"])
    assert shown() == [("2", "4"), ("5", "4")]
    assert shown(jobs=4) == [("2", "2"), ("5", "2"), ("2", "2"), ("5", "2")]
    assert shown(any_card=False, jobs=1) == [("", "8")]
    with pytest.raises(UserError, match="jobs=0"):
        local.slots(Options(jobs=0))


def test_an_unknown_engine_or_option_is_told(stage: Stage, sdi_gs: Run, tmp_path: Path) -> None:
    sweep = planned(tmp_path)
    said = sdi_gs("sweep", "run", sweep.path, "--on", "locl")
    assert said.code == 2
    assert "--on locl: did you mean 'local'" in said.err
    with pytest.raises(UserError, match="the engine local has no such option"):
        local.run(sweep, Options(settings=(("partition", "gpu"),)), quiet)
    assert stage.begun == {}


def test_a_part_of_the_lines(tmp_path: Path) -> None:
    some = lines(planned(tmp_path, seeds=5))
    assert [line.seed for line in work.part(some, 1, 2)] == [1, 3]
    assert work.part(some, 4, None) == [some[4]]
    for index, of in ((5, None), (-1, None), (2, 2)):
        with pytest.raises(UserError, match="allowed are 0 to"):
            work.part(some, index, of)
