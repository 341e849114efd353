# SPDX-License-Identifier: Apache-2.0
"""An array of SLURM, by submitit. Each task of it is a worker that claims one run after the other.

Workers that claim survive preemption better than a task for each run: a run that was put back is
continued by whichever task is free, while its own task may be held back for minutes (SLURM waits
two before it starts a requeued one) or be cancelled for good. A task whose time is over saves, puts
its run back and is queued again by itself.

Tasks are found by the name of their job, which depends on the sweep's folder alone, so that a
driver that was killed leaves nothing behind that the next one would have to find.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import UserError, command, first_line
from ...stopping import Interrupted, Stop
from ..manifest import Sweep
from . import Options, hidden, require, shared, threads, whole
from .driver import Driver
from .program import Program

KNOWN = ("partition", "time", "gpus", "memory", "cpus", "parallelism", "account", "qos",
         "constraint")  # fmt: skip

MINUTES = 60
"""Of a task, where nobody says: short enough to be fitted in between longer jobs. Nothing is lost
at its end."""
LEAST_MINUTES = 5
SAVE_SECONDS = 90
"""Before the end of its time that a task is told; SLURM may be a minute early."""
TASKS = 16  # at a time, where nobody says
ENDLESS = 10**6  # times that submitit queues a task again whose time is over
PATIENCE = 60.0  # seconds for an answer of SLURM's


@dataclass(frozen=True)
class Asked:
    """What each task of the array gets. None: the cluster's own choice."""

    partition: str | None
    minutes: int
    gpus: int  # of a task
    memory: str | None  # as SLURM writes it: 24G
    cpus: int  # of a task
    parallelism: int  # tasks at a time
    account: str | None
    qos: str | None
    constraint: str | None
    environment: dict[str, str]

    @classmethod
    def read(cls, options: Options) -> Asked:
        """UserError for an option that SLURM's engine does not know or could not use."""
        named = require(options, KNOWN, "slurm")
        cpus = shared(named, "cpus", "cores", options.cores) or 1
        gpus = whole(named, "gpus", 0) or 0
        if gpus and not options.any_card:
            raise UserError(f"gpus={gpus}: --no-cards says the opposite; keep one of them")
        return cls(
            partition=named.get("partition"),
            minutes=minutes(named["time"]) if "time" in named else MINUTES,
            gpus=gpus,
            memory=_memory(named["memory"]) if "memory" in named else None,
            cpus=cpus,
            parallelism=shared(named, "parallelism", "jobs", options.jobs) or TASKS,
            account=named.get("account"),
            qos=named.get("qos"),
            constraint=named.get("constraint"),
            environment={**hidden(options), **threads(cpus)},
        )

    def parameters(self, name: str) -> dict[str, Any]:
        """As submitit takes them."""
        given = {"partition": self.partition, "account": self.account, "qos": self.qos,
                 "constraint": self.constraint, "mem": self.memory,
                 "gpus_per_node": self.gpus or None}  # fmt: skip
        return {
            "job_name": name,
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            # Since 22.05 a step does not inherit that number from its job.
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            "signal_delay_s": SAVE_SECONDS,
            "stderr_to_stdout": True,
            "array_parallelism": self.parallelism,
            "additional_parameters": {"requeue": True},
            **{key: value for key, value in given.items() if value is not None},
        }


_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(\d+)(?::(\d+))?(?::(\d+))?)")


def minutes(text: str) -> int:
    """As SLURM reads a time: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.
    UserError for anything else, and for less than a task needs."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise UserError(
            f"time={text}: allowed are minutes, hours:minutes:seconds and days-hours, as in "
            "time=90, time=4:00:00 or time=1-12"
        )
    days, hours, mins, secs, first, second, third = (int(part or 0) for part in found.groups())
    if found[1] is not None:
        seconds = 86400 * days + 3600 * hours + 60 * mins + secs
    elif found[7] is not None:
        seconds = 3600 * first + 60 * second + third
    else:
        seconds = 60 * first + second
    if seconds < 60 * LEAST_MINUTES:
        raise UserError(
            f"time={text}: allowed are {LEAST_MINUTES} minutes or more, since a task is told "
            f"{SAVE_SECONDS} s before its end, to save its run"
        )
    return -(-seconds // 60)


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMGT]?", text):
        raise UserError(f"memory={text}: allowed is a number with K, M, G or T, as in memory=24G")
    return text


def job_name(sweep: Sweep) -> str:
    """Of all tasks of a sweep, and of no other's."""
    return "sdi-gs-" + hashlib.sha256(str(sweep.path.resolve()).encode()).hexdigest()[:12]


class Task:
    """What submitit pickles, and calls on a node."""

    def __init__(self, folder: str, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._program: Program | None = None

    def __call__(self, number: int) -> None:
        """Be a worker until nothing is left. RunFailure where it ends otherwise."""
        self._program = Program(self._folder, self._environment)
        self._program.wait()

    def checkpoint(self, number: int) -> Any:
        """Called by submitit when the task is preempted or its time is over: save, put back, and be
        queued again."""
        from submitit.helpers import DelayedSubmission

        if self._program is not None:
            self._program.interrupt()
        return DelayedSubmission(Task(self._folder, self._environment), number)


def run(sweep: Sweep, options: Options, say: Callable[[str], None]) -> None:
    """See :class:`sdi_gs.sweep.engines.Engine`. A Ctrl-C ends the driver alone: the tasks are
    SLURM's by then."""
    asked = Asked.read(options)
    _require_installed()
    sweep.require_version()
    array = Array(sweep, asked)
    array.require_answer()
    try:
        Driver(sweep, array, asked.parallelism, say).go()
    except Stop as stop:
        raise Interrupted(
            f"the tasks go on without this command, which follows them again when it is typed "
            f"again; to end them: {command('sweep', 'stop', sweep.path)}, or "
            f"scancel --name={array.name}",
            stop.number,
        ) from None


def _require_installed() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"on=slurm needs submitit ({first_line(error)}): pip install 'sdi-gs[sweep]', or send "
            "the script of docs/sweep.md with sbatch, which needs nothing"
        ) from error
    missing = [name for name in ("sbatch", "squeue", "srun") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"on=slurm: there is no {missing[0]} here, so this is no machine of a SLURM cluster: "
            "type the command on one of its login nodes, or leave the engine away to use this "
            "machine"
        )


class Array:
    """The tasks of a sweep; a :class:`sdi_gs.sweep.engines.driver.Cluster`."""

    def __init__(self, sweep: Sweep, asked: Asked) -> None:
        self.name = job_name(sweep)
        self._folder, self._asked = sweep.path.resolve(), asked
        self._logs = self._folder / "state" / "slurm"

    def require_answer(self) -> None:
        """UserError where SLURM does not answer."""
        _, why = self._squeue()
        if why:
            raise UserError(
                f"on=slurm: the cluster does not answer ({why}); nothing was started. See whether "
                "sinfo does, and type the same command then"
            )

    def living(self) -> list[str] | None:
        found, why = self._squeue()
        return None if why else found

    def _squeue(self) -> tuple[list[str], str]:
        """A word for each task, or why that is not known."""
        words = ["squeue", "--noheader", "--array", f"--name={self.name}",
                 f"--user={os.getuid()}", "--format=%T %r"]  # fmt: skip
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            return [], f"squeue said nothing for {PATIENCE:g} s"
        if done.returncode != 0:
            return [], (done.stderr.strip().splitlines() or ["squeue said nothing"])[-1]
        return [_word(*line.split(None, 1)) for line in done.stdout.splitlines() if line], ""

    def start(self, count: int) -> str:
        """UserError where SLURM refuses such tasks, in its own words."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        self._logs.mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(self._logs, max_num_timeout=ENDLESS)
        executor.update_parameters(**self._asked.parameters(self.name))
        task = Task(str(self._folder), self._asked.environment)
        try:
            jobs = executor.map_array(task, range(count))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise UserError(f"on=slurm: sbatch refuses: {_said(error)}") from error
        number = jobs[0].job_id.partition("_")[0]
        return f"sent {count} tasks as the array {number}, named {self.name}; logs: {self._logs}"

    def last_words(self) -> str:
        logs = sorted(self._logs.glob("*.out"), key=lambda path: path.stat().st_mtime)
        if not logs:
            return f"they left no log in {self._logs}"
        lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.startswith("sdi-gs: ")] or lines[-1:]
        return f"{said[-1] if said else 'nothing was said'} ({logs[-1]})"


def _word(state: str, reason: str = "") -> str:
    """Of a task: its state, and why it waits where that is no matter of course."""
    told = state.lower()
    return f"{told} ({reason})" if told == "pending" and reason not in ("None", "") else told


def _said(error: Exception) -> str:
    """SLURM's own words, among submitit's."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.removeprefix("sbatch: error: ") for line in lines if "sbatch: error" in line]
    return "; ".join(said) or first_line(error)
