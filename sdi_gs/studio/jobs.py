# SPDX-License-Identifier: Apache-2.0
"""What the studio was asked to make, and what became of it: a folder for each, so that a studio
that is started again knows.

::

    outputs/.studio/jobs/000007/
      job.json        what was asked, its state, and which process does it
      progress.json   how far that process is, by itself
      live.jpg        the shape as it is now
      outcome.json    how it ended, by itself
      log.txt         everything that it said
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from representations.files import alive, machine, write_bytes

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
STATES = (WAITING, RUNNING, DONE, STOPPED, FAILED)
VERBS = ("generate", "resume", "export")


@dataclass(frozen=True)
class Order:
    """What a new run is made of; None is the preset's own."""

    prompt: str
    preset: str = "mini"  # a name, or run:NAME for the settings of that run
    method: str | None = None
    representation: str | None = None  # "gaussians" or "instant_ngp"
    steps: int | None = None
    seed: int | None = None
    model: str | None = None  # a folder with a diffusion model


@dataclass(frozen=True)
class Job:
    """One thing that a child process does."""

    number: int
    verb: str  # one of VERBS
    state: str = WAITING  # one of STATES
    order: Order | None = None  # of a new run
    run: str | None = None  # name of its folder; of a new run known once it has begun
    steps: int | None = None  # of the whole run, for a resume that makes it longer
    kind: str | None = None  # of an export: one of assets.FORMATS
    message: str = ""  # how it ended
    pid: int | None = None
    started: str = ""  # of the process, in the system's words
    machine: str = ""  # see representations.files.machine
    slot: str = ""  # the card that it has; "" on a CPU
    asked_to_stop: bool = False

    @property
    def title(self) -> str:
        """What people call it."""
        if self.verb == "generate" and self.order is not None:
            return self.order.prompt
        if self.verb == "export":
            return f"{self.run} as {self.kind}"
        return f"{self.run}, going on"

    @property
    def ended(self) -> bool:
        return self.state not in (WAITING, RUNNING)

    def lives(self) -> bool:
        """Whether the process that does it is there."""
        if self.pid is None or self.machine != machine():
            return False
        return alive(self.pid, self.started)


@dataclass(frozen=True)
class Progress:
    """How far a run is, as it says itself."""

    stage: str = "starting"  # what it does, for people
    first: int = 0  # steps that were done when it began
    done: int = 0
    steps: int = 0  # of the whole run; 0: not known yet
    per_step: float | None = None  # seconds, smoothed; None: not known yet
    size: int = 0
    unit: str = ""
    notes: tuple[str, ...] = ()  # what it said that is worth reading
    at: float = 0.0  # time.time() of this

    def seconds_left(self) -> float | None:
        """Of the steps alone; None before the pace is known."""
        return None if self.per_step is None else self.per_step * max(0, self.steps - self.done)


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    state: str
    message: str


def folder(jobs: Path, number: int) -> Path:
    return jobs / f"{number:06d}"


def write(jobs: Path, job: Job) -> None:
    """Keep ``job``; its folder is made."""
    write_bytes(folder(jobs, job.number) / "job.json", _text(job))


def read_all(jobs: Path) -> list[Job]:
    """Every job that is kept, in the order of their numbers; a damaged one is passed over."""
    found = [read(path) for path in sorted(jobs.glob("[0-9]*"))]
    return [job for job in found if job is not None]


def read(path: Path) -> Job | None:
    """The job in the folder ``path``."""
    tree = _tree(path / "job.json")
    order = tree.get("order")
    if isinstance(order, dict):
        tree["order"] = _made(Order, order)
    job = _made(Job, tree)
    if job is None or job.state not in STATES or job.verb not in VERBS:
        return None
    return job if folder(path.parent, job.number) == path else None


def write_progress(path: Path, progress: Progress) -> None:
    write_bytes(path / "progress.json", _text(progress))


def read_progress(path: Path) -> Progress:
    tree = _tree(path / "progress.json")
    tree["notes"] = tuple(tree.get("notes") or ())
    return _made(Progress, tree) or Progress()


def write_outcome(path: Path, outcome: Outcome) -> None:
    write_bytes(path / "outcome.json", _text(outcome))


def read_outcome(path: Path) -> Outcome | None:
    outcome = _made(Outcome, _tree(path / "outcome.json"))
    return outcome if outcome is not None and outcome.state in STATES else None


_Record = TypeVar("_Record", Job, Order, Progress, Outcome)


def _made(cls: type[_Record], tree: dict[str, Any]) -> _Record | None:
    """None where the record of another version, or of nobody, lies there."""
    try:
        return cls(**tree)
    except TypeError:
        return None


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _text(record: Job | Progress | Outcome) -> bytes:
    return (json.dumps(dataclasses.asdict(record), indent=1) + "\n").encode()
