# SPDX-License-Identifier: Apache-2.0
"""One run at a time for each card, and one where there is none: what waits, what runs, what ended.

Every change is on the disk before anything depends on it, so that a studio that is started again
finds what waits and the processes that went on without it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from representations.files import machine, started

from ..artefacts.claim import free_name
from ..artefacts.holder import glance
from ..errors import UserError
from . import jobs
from .jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, Order, Outcome
from .outputs import Outputs

LOOK = 0.3  # seconds between two looks at what runs
KEPT = 200  # jobs that have ended and are remembered
MOST_WAITING = 100
EXPORT = "export"
"""The slot of exports: one at a time, beside the runs."""

Start = Callable[[Outputs, Job], int]


def cards() -> tuple[str, ...]:
    """Names of the places in which a run has the machine for itself: the CUDA cards, or the CPU,
    which is called ""."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if count == 0:
        return ("",)
    named = [] if chosen is None else [name.strip() for name in chosen.split(",") if name.strip()]
    return tuple(named[:count]) or tuple(str(number) for number in range(count))


def start(outputs: Outputs, job: Job) -> int:
    """Begin the process of ``job``, which goes on without this one; its number."""
    folder = jobs.folder(outputs.jobs, job.number)
    environment = dict(os.environ)
    if job.slot not in ("", EXPORT):
        environment["CUDA_VISIBLE_DEVICES"] = job.slot
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with (folder / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "sdi_gs.studio.worker", str(outputs.path), str(job.number)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env=environment,
        )  # fmt: skip
    _children.append(child)
    return child.pid


_children: list[subprocess.Popen[bytes]] = []
"""Those of this process, which must be asked how they ended or stay as zombies."""


@dataclass(frozen=True)
class Hands:
    """What the queue does to the machine; other in tests."""

    start: Start = start
    cards: Callable[[], tuple[str, ...]] = cards


class Queue:
    """All jobs of one outputs folder. Any thread may ask; one thread of its own moves it on."""

    def __init__(self, outputs: Outputs, hands: Hands | None = None) -> None:
        self.outputs, self.hands = outputs, hands or Hands()
        self.slots = self.hands.cards()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._jobs = {job.number: job for job in jobs.read_all(outputs.jobs)}
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Move on by itself from now on."""
        self._thread = threading.Thread(target=self._turn, daemon=True, name="sdi-gs queue")
        self._thread.start()

    def end(self) -> None:
        """Leave everything as it is: what runs goes on, what waits is on the disk."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def all(self) -> list[Job]:
        with self._lock:
            return [self._jobs[number] for number in sorted(self._jobs)]

    def job(self, number: int) -> Job:
        with self._lock:
            found = self._jobs.get(number)
        if found is None:
            raise UserError(f"there is no job {number}")
        return found

    def of_run(self, name: str) -> Job | None:
        """The job that works in the folder of that run now, or is about to."""
        mine = [job for job in self.all() if job.run == name and not job.ended]
        return mine[-1] if mine else None

    def numbers(self, name: str) -> list[int]:
        """Of the jobs that made something of that run, the newest first."""
        mine = [job.number for job in self.all() if job.run == name and job.verb != "export"]
        return mine[::-1]

    def make(self, order: Order) -> Job:
        """A new run, when its turn comes."""
        return self._add(Job(0, "generate", order=order))

    def resume(self, name: str, steps: int | None = None) -> Job:
        """Let a stopped run go on, or make a finished one longer."""
        return self._add(Job(0, "resume", run=self.outputs.run(name).name, steps=steps))

    def export(self, name: str, kind: str) -> Job:
        """Have a file made of a run."""
        return self._add(Job(0, "export", run=self.outputs.run(name).name, kind=kind))

    def stop(self, number: int) -> Job:
        """Take away what waits; ask what runs to save its state and end."""
        with self._lock:
            job = self.job(number)
            if job.state == WAITING:
                return self._keep(replace(job, state=STOPPED, message="taken out of the queue"))
            if job.state == RUNNING and job.pid is not None and job.lives():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(job.pid, signal.SIGTERM)
                return self._keep(replace(job, asked_to_stop=True))
            if job.state == RUNNING:
                raise UserError(f"{job.title}: its process is on another machine; stop it there")
            return job

    def look(self) -> None:
        """See who has ended, and begin whoever's turn it is."""
        with self._lock:
            for child in list(_children):
                if child.poll() is not None:
                    _children.remove(child)
            for job in self.all():
                if job.state == RUNNING and not self._lives(job):
                    self._settle(job)
            for job in self.all():
                slot = self._free(job) if job.state == WAITING else None
                if slot is not None:
                    self._start(job, slot)

    def _turn(self) -> None:
        while not self._over.wait(LOOK):
            try:
                self.look()
            except OSError as error:  # a full disk; there may be room later
                print(f"sdi-gs studio: the queue waits: {error}", file=sys.stderr, flush=True)
                self._over.wait(5.0)

    def _add(self, job: Job) -> Job:
        with self._lock:
            if sum(other.state == WAITING for other in self._jobs.values()) >= MOST_WAITING:
                raise UserError(
                    f"{MOST_WAITING} jobs wait already: let some of them finish, or take some out"
                )
            busy = self.of_run(job.run) if job.run is not None else None
            if busy is not None:
                raise UserError(f"{job.run} is {busy.state} already, as job {busy.number}")
            self._forget()
            number = max(self._jobs, default=0) + 1
            return self._keep(replace(job, number=number))

    def _keep(self, job: Job) -> Job:
        jobs.write(self.outputs.jobs, job)
        self._jobs[job.number] = job
        return job

    def _forget(self) -> None:
        """The oldest of those that have ended."""
        import shutil

        ended = [job.number for job in self.all() if job.ended]
        for number in ended[:-KEPT]:
            shutil.rmtree(jobs.folder(self.outputs.jobs, number), ignore_errors=True)
            del self._jobs[number]

    def _free(self, job: Job) -> str | None:
        """The slot that is free for ``job``, if any."""
        taken = {other.slot for other in self._jobs.values() if other.state == RUNNING}
        slots = (EXPORT,) if job.verb == "export" else self.slots
        return next((slot for slot in slots if slot not in taken), None)

    def _lives(self, job: Job) -> bool:
        """Whether it goes on, here or on a machine that shares the folder."""
        if job.machine == machine() or job.run is None:
            return job.lives()
        return glance(self.outputs.path / job.run) is not None

    def _start(self, job: Job, slot: str) -> None:
        """Begin it; the folder of a new run is made here, so that its name is known."""
        if job.verb == "generate" and job.order is not None and job.run is None:
            path = free_name(job.order.prompt, self.outputs.path)
            path.mkdir()
            job = self._keep(replace(job, run=path.name))
        job = self._keep(replace(job, slot=slot))
        try:
            pid = self.hands.start(self.outputs, job)
        except OSError as error:
            self._settle(job, f"could not be started: {error.strerror or error}")
            return
        running = replace(job, state=RUNNING, pid=pid, started=started(pid), machine=machine())
        self._keep(running)

    def _settle(self, job: Job, why: str = "") -> None:
        """Write down how it ended."""
        folder = jobs.folder(self.outputs.jobs, job.number)
        outcome = jobs.read_outcome(folder)
        if outcome is None and why:
            outcome = Outcome(FAILED, why)
        if outcome is None and job.asked_to_stop:
            outcome = Outcome(STOPPED, "stopped before it began")
        if outcome is None:
            outcome = Outcome(
                FAILED, "ended without a word, as when memory runs out or the machine is switched "
                f"off; what it said is in {folder / 'log.txt'}",
            )  # fmt: skip
        if outcome.state != DONE and job.verb == "generate" and job.run is not None:
            with contextlib.suppress(OSError):  # not empty: the run has begun
                (self.outputs.path / job.run).rmdir()
        self._keep(replace(job, state=outcome.state, message=outcome.message))
