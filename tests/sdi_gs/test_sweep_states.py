# SPDX-License-Identifier: Apache-2.0
"""What became of a line: names of files, one claim for exactly one worker, and signs of life that
no clock can spoil."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.sweep import states, worker
from sdi_gs.sweep.manifest import Line, Sweep
from sdi_gs.sweep.states import Ledger, Overtaken
from sdi_gs.sweep.worker import Sign, Watch

KEY = "0123456789abcdef"
LINE = Line("a mug", "mini", "sdi", "gaussians", 0, (), 4, f"runs/000/a-mug-{KEY[:8]}", KEY)
DEAD = 2**22 + 1  # no process has that number


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    (tmp_path / "manifest.jsonl").write_text(LINE.text() + "\n")
    return Sweep(tmp_path, "0", 3)


@pytest.mark.parametrize(
    ("names", "word", "crashes", "lost"),
    [
        ("1", "running", 0, 0),
        ("1 1.done", "done", 0, 0),
        ("1 1.diverged", "diverged", 0, 0),
        ("1 1.failed", "failed", 0, 0),
        ("1 1.back", "waiting", 0, 0),
        ("1 1.back 2", "running", 0, 0),
        ("1 1.crash", "waiting", 1, 0),
        ("1 1.crash 2 2.crash 3 3.crash", "failed", 3, 0),
        ("1 1.crash 2 2.crash 3 3.crash 3.retry", "waiting", 0, 0),
        ("1 1.crash 2 2.crash 3 3.crash 3.retry 4 4.crash", "waiting", 1, 0),
        ("1 1.failed 1.retry 2 2.failed", "failed", 0, 0),
        ("1 2 3 3.done", "done", 0, 2),  # two workers died
        ("1 2 1.done", "running", 0, 0),  # overtaken, and came back: the higher number counts
        ("9 10 10.done", "done", 0, 1),  # numbers, not letters
        ("1 1.done 1.retry", "waiting", 0, 0),
        ("1 1.draft x 1.done.bak", "running", 0, 0),  # of others, passed over
    ],
)
def test_the_highest_claim_says_what_a_line_is(
    names: str, word: str, crashes: int, lost: int
) -> None:
    listed = [f"{KEY}.{name}" for name in names.split()]
    random.Random(0).shuffle(listed)  # a folder has no order
    state = states.states([*listed, "stop", ".hidden"], tries=3)[KEY]
    assert (state.word, state.crashes, state.lost) == (word, crashes, lost)


@pytest.mark.parametrize(
    "names", ["", "1", "1 1.done", "1 1.crash 2", "1 1.failed 1.retry", "1 2 2.back 3 3.diverged"]
)
def test_one_line_is_what_the_listing_of_its_block_says(sweep: Sweep, names: str) -> None:
    ledger = Ledger(sweep)
    ledger.folder("000").mkdir(parents=True)
    for name in names.split():
        (ledger.folder("000") / f"{KEY}.{name}").touch()
    assert ledger.state(LINE) == ledger.block("000").get(KEY, states.NEW)


def _race(sweep: Sweep, at: float, won: Any, links: bool, number: int) -> None:
    if not links:
        os.link = _no_links
    ledger, sign = Ledger(sweep), Sign(sweep, lambda: None)
    sign._write()
    while time.monotonic() < at:
        pass
    won.put(ledger.claim(LINE, number, sign.path))


def _no_links(*_: object) -> None:
    raise OSError(95, "Operation not supported")


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("number", [1, 2])
def test_of_workers_that_claim_at_one_instant_one_has_the_line(
    sweep: Sweep, links: bool, number: int
) -> None:
    """A new line, and one whose worker is dead; also where a file system has no links."""
    fork = multiprocessing.get_context("fork")
    won = fork.Queue()
    words = (sweep, time.monotonic() + 0.2, won, links, number)
    processes = [fork.Process(target=_race, args=words) for _ in range(6)]
    for process in processes:
        process.start()
    found = [won.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(found) == 1
    claim = worker.read_claim(Ledger(sweep).file(LINE, number))
    assert claim is not None
    assert claim.pid in [process.pid for process in processes]


def test_threads_of_one_worker_have_one_sign_and_never_the_same_line(sweep: Sweep) -> None:
    """Also where a server says of a claim that is ours that it exists already."""
    ledger, sign = Ledger(sweep), Sign(sweep, lambda: None)
    sign._write()
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(ledger.claim(LINE, 1, sign.path)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False] * 7 + [True]
    assert Ledger(sweep).claim(LINE, 1, sign.path)  # the answer was lost, and the client asks again
    other = Sign(sweep, lambda: None)
    other._write()
    assert not Ledger(sweep).claim(LINE, 1, other.path)


def test_who_was_overtaken_writes_no_more(sweep: Sweep) -> None:
    ledger, sign = Ledger(sweep), Sign(sweep, lambda: None)
    sign._write()
    assert ledger.claim(LINE, 1, sign.path)
    assert ledger.claim(LINE, 2, sign.path)
    with pytest.raises(Overtaken, match="taken over by another worker"):
        ledger.end(LINE, 1, states.DONE, {})
    ledger.end(LINE, 2, states.FAILED, {"why": "no\nroom"})
    state = ledger.state(LINE)
    assert (state.word, state.claim) == ("failed", 2)
    assert ledger.told(LINE, state) == {"why": "no\nroom"}


def test_an_end_without_room_for_its_words_is_still_an_end(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, sign = Ledger(sweep), Sign(sweep, lambda: None)
    sign._write()
    ledger.claim(LINE, 1, sign.path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    ledger.end(LINE, 1, states.DONE, {"why": ""})
    monkeypatch.undo()
    assert ledger.state(LINE).word == "done"
    assert ledger.told(LINE, ledger.state(LINE)) == {}


def test_half_of_a_deleted_sweep_does_not_come_back(sweep: Sweep) -> None:
    sweep.manifest.unlink()
    with pytest.raises(FileNotFoundError):
        Ledger(sweep).claim(LINE, 1, sweep.path / "sign")
    assert not sweep.state.exists()


def elsewhere(sweep: Sweep, sign: Sign) -> Path:
    """The claim of a worker of another machine."""
    text = json.dumps({**json.loads(sign.path.read_text()), "machine": "node7", "pid": DEAD})
    sign.path.write_text(text)
    assert Ledger(sweep).claim(LINE, 1, sign.path)
    return Ledger(sweep).file(LINE, 1)


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_sign_is_watched_by_the_clock_of_the_observer(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    real = time.time_ns()
    monkeypatch.setattr("sdi_gs.sweep.worker.time.time_ns", lambda: real + hours * 3600 * 10**9)
    sign = Sign(sweep, lambda: None)
    sign._write()
    claim = elsewhere(sweep, sign)
    now = 0.0
    watch = Watch(sweep, lambda: now)
    assert watch.dead(claim) is None  # nothing is known at first sight
    for _ in range(5):
        sign.beat()
        now += worker.SILENCE - 1.0
        assert watch.dead(claim) is False
    now += worker.SILENCE - 1.0
    assert watch.dead(claim) is False
    now += 1.0
    assert watch.dead(claim) is True
    sign.path.unlink()  # a change as well, once
    assert watch.dead(claim) is False
    now += worker.SILENCE
    assert watch.dead(claim) is True


def test_a_sign_moves_on_while_its_clock_goes_back(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10**18, 10**18 - 5 * 10**9, 10**18 - 3600 * 10**9])
    monkeypatch.setattr("sdi_gs.sweep.worker.time.time_ns", lambda: next(clock))
    sign = Sign(sweep, lambda: None)
    sign._write()
    seen = []
    for _ in range(2):
        sign.beat()
        seen.append(int(sign.path.stat().st_mtime))  # whole seconds, as some systems keep
    assert seen[0] < seen[1]
    assert seen[1] - 10**9 == 4


def test_a_sign_that_somebody_cleared_away_is_made_again(sweep: Sweep) -> None:
    sign = Sign(sweep, lambda: None)
    sign._write()
    sign.path.unlink()
    sign.beat()
    assert worker.read_claim(sign.path) == sign.who


def test_a_worker_of_this_machine_is_known_by_its_process(sweep: Sweep) -> None:
    sign = Sign(sweep, lambda: None)
    sign._write()
    ledger, watch = Ledger(sweep), Watch(sweep)
    ledger.claim(LINE, 1, sign.path)
    assert watch.dead(ledger.file(LINE, 1)) is False
    sign.path.write_text(json.dumps({**json.loads(sign.path.read_text()), "pid": DEAD}))
    assert watch.dead(ledger.file(LINE, 1)) is True
    (ledger.file(LINE, 2)).write_text("")  # by a worker that died between two words
    assert watch.dead(ledger.file(LINE, 2)) is None
