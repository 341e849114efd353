# SPDX-License-Identifier: Apache-2.0
"""Several runs at a time in one worker, and a stop that reaches all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from ..errors import RunFailure, UserError, command
from ..stopping import Interrupted, Stop
from .manifest import Line, Sweep
from .states import FAILED, State
from .work import Worker, part

LOOK = 0.2  # seconds between two looks at the threads


def pool(worker: Worker, environments: Sequence[Mapping[str, str]]) -> None:
    """A thread for each slot that makes runs until none is left. A stop lets all of them save; a
    second Ctrl-C waits for nothing, and the runs then end by themselves.

    Raises:
        Interrupted: we were asked to stop.
        RunFailure: of a slot that could not go on, once the others have ended.
    """
    together(worker, [lambda e=e: worker.work(e) for e in environments])  # type: ignore[misc]


def together(worker: Worker, tasks: Sequence[Callable[[], None]]) -> None:
    """Do all ``tasks`` of a worker at once, in threads; see :func:`pool`."""
    failures: list[BaseException] = []

    def guarded(task: Callable[[], None], over: threading.Event) -> None:
        try:
            task()
        except BaseException as error:
            failures.append(error)
            if not isinstance(error, RunFailure):  # a mistake, of ours or the user's: for all slots
                worker.stop()
        finally:
            over.set()

    # Daemons: after a second Ctrl-C nobody waits for them.
    ends = [threading.Event() for _ in tasks]
    threads = [
        threading.Thread(target=guarded, args=pair, daemon=True)
        for pair in zip(tasks, ends, strict=True)
    ]
    try:
        for thread in threads:
            thread.start()
        _wait(ends)
    except Stop as stop:
        worker.say("stopping: the runs save their state")
        worker.stop(stop.number)
        _wait([end for thread, end in zip(threads, ends, strict=True) if thread.ident])
        raise Interrupted(
            "stopped; the runs have saved their state and are put back", stop.number
        ) from None
    _raise_worst(failures)


def _wait(ends: Sequence[threading.Event]) -> None:
    """Not ``join``: one that a signal interrupts takes its thread for ended, up to Python 3.12."""
    for end in ends:
        while not end.wait(LOOK):
            pass


def _raise_worst(failures: Sequence[BaseException]) -> None:
    """The one that says most: what is no stop comes before a stop."""
    for failure in sorted(failures, key=lambda one: isinstance(one, Interrupted)):
        raise failure


def serve(sweep: Sweep, index: int | None, of: int | None, say: Callable[[str], None]) -> None:
    """Be one worker: of all lines, of line ``index``, or with ``of`` of every ``of``-th line from
    there.

    Raises:
        UserError: there is no such line; or, of a single line, it cannot work as it was asked for.
        RunFailure: of a single line, it crashed too often; or this machine has no room.
        Interrupted: we were asked to stop; what was ours is put back.
        Stopped: the sweep was asked to stop.
    """
    if of is not None and (index is None or of < 1):
        raise UserError(f"of={of}: it goes with --index, and allowed is 1 or more")
    with Worker(sweep, say) as worker:
        if index is None:
            together(worker, [worker.work])
            say(_told(worker))
            return
        manifest = worker.manifest()
        if manifest.damage:  # which line has which number is not known any more
            raise UserError(str(manifest.lost()))
        ends: list[tuple[Line, State]] = []

        def each() -> None:
            ends.extend((one, worker.one(one)) for one in part(manifest.lines, index, of))

        together(worker, [each])
        for line, state in ends:
            say(f"{line.name}: {state.word}")
        if of is None:
            _require_result(worker, *ends[0])


def _told(worker: Worker) -> str:
    counted = ", ".join(f"{count} {end}" for end, count in sorted(worker.tally.items()))
    return f"nothing is left to claim; by this worker: {counted or 'nothing'}"


def _require_result(worker: Worker, line: Line, state: State) -> None:
    """The exit code of a single line is that of its run, for whoever counts tries by it."""
    if state.word != FAILED:
        return
    why = str(worker.ledger.told(line, state).get("why", "see its log"))
    again = command("sweep", "retry", worker.sweep.path, line.name)
    if state.crashes:
        raise RunFailure(f"{line.name} crashed {state.crashes} times: {why}; again: {again}")
    raise UserError(f"{line.name}: {why}; once that is mended: {again}")
