# SPDX-License-Identifier: Apache-2.0
"""Tasks of a Ray cluster. Each is a worker that claims one run after the other, with CPUs and
shares of cards that Ray counts.

A task whose process dies is tried again by Ray; one that ends in another way is replaced by the
driver. When the driver dies, Ray ends its tasks, whose runs save by themselves; the same command
starts new ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...child import PATIENCE
from ...errors import UserError, first_line
from ...stopping import Interrupted, Stop
from ..manifest import Sweep
from . import Options, hidden, require, shared, threads, whole
from .driver import Driver
from .program import Program

KNOWN = ("address", "cpus", "gpus", "memory", "parallelism", "retries")
RETRIES = 3  # of a task whose process died, where nobody says
GIB = 2**30
KNOCK = 10.0  # seconds for a connection


@dataclass(frozen=True)
class Asked:
    """What each task gets, and where."""

    address: str | None  # None: RAY_ADDRESS, a cluster of this machine, or one made here
    cpus: int
    gpus: float  # below 1: a share of a card, whose memory nobody counts
    memory: int | None  # bytes, which Ray counts and does not enforce
    parallelism: int | None  # tasks at a time; None: as many as fit into the cluster
    retries: int
    environment: dict[str, str]

    @classmethod
    def read(cls, options: Options) -> Asked:
        """UserError for an option that Ray's engine does not know or could not use."""
        named = require(options, KNOWN, "ray")
        cpus = shared(named, "cpus", "cores", options.cores) or 1
        gpus = _share(named["gpus"]) if "gpus" in named else 0.0
        if gpus and not options.any_card:
            raise UserError(f"gpus={gpus:g}: --no-cards says the opposite; keep one of them")
        memory = whole(named, "memory")
        retries = whole(named, "retries", 0)
        return cls(
            address=named.get("address"),
            cpus=cpus,
            gpus=gpus,
            memory=None if memory is None else memory * GIB,
            parallelism=shared(named, "parallelism", "jobs", options.jobs),
            retries=RETRIES if retries is None else retries,
            environment={**hidden(options), **threads(cpus)},
        )


def _share(text: str) -> float:
    """Cards of a task: whole ones, or a part of one."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0.0 <= value <= 1.0 or (value > 1.0 and value.is_integer()):
            return value
    raise UserError(
        f"gpus={text}: allowed are whole cards, and parts of one between 0 and 1, as in gpus=0.25"
    )


def run(sweep: Sweep, options: Options, say: Callable[[str], None]) -> None:
    """See :class:`sdi_gs.sweep.engines.Engine`."""
    asked = Asked.read(options)
    sweep.require_version()
    with connected(asked.address) as ray:
        tasks = Tasks(ray, sweep, asked)
        most = asked.parallelism or tasks.fitting()
        try:
            Driver(sweep, tasks, most, say).go()
        except Stop as stop:
            say("stopping: the runs save their state")
            tasks.end()
            raise Interrupted(
                "stopped; the runs have saved their state and are put back", stop.number
            ) from None


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ray, connected. UserError where it is not installed or nobody answers."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"on=ray needs Ray ({first_line(error)}): pip install 'sdi-gs[ray]', or start "
            "'sdi-gs sweep work' on each machine, which needs nothing"
        ) from error
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=True, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"the cluster at {address}" if address else "Ray"
        raise UserError(
            f"on=ray: {where} does not answer ({first_line(error)}); nothing was started. See "
            "whether 'ray status' does, name another with address=, or leave address= away to use "
            "this machine"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """OSError where nobody listens at ``host:port``: Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d{1,5})", address or "")
    if found is not None:
        socket.create_connection((found[1], int(found[2])), KNOCK).close()


def work(folder: str, environment: dict[str, str]) -> None:
    """What Ray calls on a machine: be a worker until nothing is left. A cancelled task has its run
    save and be put back."""
    program = Program(folder, environment)
    try:
        program.wait()
    except KeyboardInterrupt:
        program.interrupt()


class Tasks:
    """The tasks of a sweep; a :class:`sdi_gs.sweep.engines.driver.Cluster`."""

    def __init__(self, ray: Any, sweep: Sweep, asked: Asked) -> None:
        self._ray, self._asked = ray, asked
        self._folder = str(sweep.path.resolve())
        # A process of its own for each task: one that was killed takes no other with it.
        self._task = ray.remote(
            num_cpus=asked.cpus, num_gpus=asked.gpus, memory=asked.memory,
            max_retries=asked.retries, max_calls=1,
        )(work)  # fmt: skip
        self._open: list[Any] = []
        self._last = "they said nothing"

    def fitting(self) -> int:
        """Tasks that fit into the cluster as it is. UserError where not even one does."""
        there = self._ray.cluster_resources()
        wanted = {"CPU": self._asked.cpus, "GPU": self._asked.gpus,
                  "memory": self._asked.memory or 0}  # fmt: skip
        for name, value in wanted.items():
            if value > there.get(name, 0):
                raise UserError(
                    f"a task wants {value:g} of {name}, and the whole cluster has "
                    f"{there.get(name, 0):g}: ask for less with cpus=, gpus= or memory=, or name "
                    "parallelism= where the cluster grows with what is asked of it"
                )
        return int(min(there[name] // value for name, value in wanted.items() if value))

    def living(self) -> list[str]:
        done, self._open = self._ray.wait(
            self._open, num_returns=len(self._open), timeout=0
        ) if self._open else ([], [])  # fmt: skip
        for one in done:
            try:
                self._ray.get(one)
            except Exception as error:  # whatever a task ended with; the lines say what is left
                self._last = _told(error)
        return ["asked for"] * len(self._open)

    def start(self, count: int) -> str:
        self._open += [
            self._task.remote(self._folder, self._asked.environment) for _ in range(count)
        ]
        return f"asked Ray for {count} tasks"

    def last_words(self) -> str:
        return self._last

    def end(self) -> None:
        """Have every task put its run back; wait for that as long as a run may take to save."""
        for one in self._open:
            self._ray.cancel(one, force=False, recursive=False)
        until = time.monotonic() + PATIENCE
        while self.living() and time.monotonic() < until:
            time.sleep(0.2)


def _told(error: Exception) -> str:
    """The last line: Ray's messages begin with whole tracebacks."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
