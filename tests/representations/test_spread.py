# SPDX-License-Identifier: Apache-2.0
"""Work in parts: every job once, by as many threads as torch uses, and errors arrive."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from representations.ops import cpu_jit


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 7, 19, 1000])
def test_every_job_is_done_once(threads: int, jobs: int) -> None:
    done = np.zeros(jobs, np.int64)

    def kernel(first: int, last: int, out: np.ndarray, by: int) -> None:
        out[first:last] += by

    cpu_jit.spread(kernel, jobs, done, 3)
    assert (done == 3).all()


def test_as_many_threads_work_as_torch_has(threads: int) -> None:
    """All meet at one place, which fewer would never leave."""
    meeting, seen = threading.Barrier(threads), set()

    def kernel(first: int, last: int) -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            meeting.wait(timeout=20)

    cpu_jit.spread(kernel, 100)
    assert len(seen) == threads
    assert threading.get_ident() in seen


def test_a_slow_part_does_not_hold_up_the_others(threads: int) -> None:
    """The one who has the slow part does nothing else meanwhile."""
    if threads == 1:
        pytest.skip("there are no others")
    by: dict[int, int] = {}

    def kernel(first: int, last: int) -> None:
        by[first] = threading.get_ident()
        if first == 0:
            time.sleep(0.2)

    cpu_jit.spread(kernel, 100)
    slow = by[0]
    assert len(by) == threads * cpu_jit.PARTS
    assert list(by.values()).count(slow) == 1


@pytest.mark.parametrize("failing", [0, 7])
def test_an_error_arrives_after_all_have_stopped(threads: int, failing: int) -> None:
    running: list[int] = []

    def kernel(first: int, last: int) -> None:
        running.append(first)
        time.sleep(0.01)
        running.remove(first)
        if first <= failing < last:
            raise ValueError(f"job {failing}")

    with pytest.raises(ValueError, match=f"job {failing}"):
        cpu_jit.spread(kernel, 8)
    assert not running


def test_several_may_ask_at_once(threads: int) -> None:
    """A viewer draws while a run does."""
    done = np.zeros((4, 500), np.int64)

    def kernel(first: int, last: int, out: np.ndarray) -> None:
        time.sleep(0.001)
        out[first:last] += 1

    askers = [threading.Thread(target=cpu_jit.spread, args=(kernel, 500, row)) for row in done]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(30)
    assert (done == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads
def test_a_forked_process_has_threads_of_its_own(threads: int) -> None:
    def kernel(first: int, last: int, out: np.ndarray) -> None:
        out[first:last] += 1

    cpu_jit.spread(kernel, 10, np.zeros(10))  # the pool is there
    child = os.fork()
    if child == 0:
        done = np.zeros(10)
        cpu_jit.spread(kernel, 10, done)
        os._exit(0 if (done == 1).all() else 1)
    deadline = time.monotonic() + 20.0
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for threads that it does not have")
    assert ended[1] == 0
