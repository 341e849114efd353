# SPDX-License-Identifier: Apache-2.0
"""Engines that start workers elsewhere: what they ask for, what they refuse, and that a driver
goes on until nothing is left. tests/cluster has the same on a real SLURM."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.child import PATIENCE
from sdi_gs.errors import RunFailure, UserError
from sdi_gs.stopping import Interrupted, Stop
from sdi_gs.sweep import pool, status
from sdi_gs.sweep.engines import Options, driver, pairs, ray, slurm
from sdi_gs.sweep.engines.driver import Driver
from sdi_gs.sweep.engines.program import Program
from sdi_gs.sweep.manifest import Sweep, open_sweep
from sdi_gs.sweep.states import Ledger
from sdi_gs.sweep.status import standing
from sdi_gs.sweep.work import Stopped
from sdi_gs.sweep.worker import signs

from ..sweeping import Stage, lines, planned, quiet, stage

__all__ = ["stage"]

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOOK", 0.02)
    monkeypatch.setattr("sdi_gs.sweep.seek.BEAT", 0.05)
    monkeypatch.setattr("sdi_gs.sweep.worker.BEAT", 0.05)
    monkeypatch.setattr("sdi_gs.sweep.work.HELD_AGAIN", 0.05)


# --- what is typed --------------------------------------------------------------------------------


def given(*words: str, **options: Any) -> Options:
    return Options(settings=pairs(words), **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 91), ("4:00:00", 240), ("0:05:00", 5), ("1-0", 1440), ("1-12", 2160),
     ("2-3:30", 3090), ("1-0:0:30", 1441)],
)  # fmt: skip
def test_a_time_is_read_as_slurm_reads_it(text: str, expected: int) -> None:
    """The forms of sbatch's manual; a part of a minute counts as a whole one."""
    assert slurm.minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "4h", "1-", "1:2:3:4", "-5", "4", "0:04:59"])
def test_a_time_that_is_none_or_too_short_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"time=.*allowed are"):
        slurm.minutes(text)


@pytest.mark.parametrize(
    ("words", "options", "told"),
    [
        (("partion=gpu",), {}, "partion: the engine slurm has no such option; did you mean"),
        (("partition",), {}, "write key=value"),
        (("partition=",), {}, "write key=value"),
        (("cpus=2", "cpus=3"), {}, "cpus=3: cpus=2 stands there too"),
        (("cpus=2",), {"cores": 3}, "cpus=2: --cores 3 says the same"),
        (("parallelism=2",), {"jobs": 3}, "parallelism=2: --jobs 3 says the same"),
        (("gpus=1",), {"any_card": False}, "--no-cards says the opposite"),
        (("gpus=half",), {}, "gpus=half: allowed is a whole number, 0 or more"),
        (("cpus=0",), {}, "cpus=0: allowed is a whole number, 1 or more"),
        (("memory=24GB",), {}, "memory=24GB: allowed is a number with K, M, G or T"),
        ((), {"jobs": 0}, "jobs=0: allowed is 1 or more"),
    ],
)
def test_what_slurm_cannot_use_is_refused(
    words: tuple[str, ...], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        slurm.Asked.read(given(*words, **options))
    assert told in str(error.value)


def test_the_engine_is_told_what_to_install(
    stage: Stage, sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = planned(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = sdi_gs("sweep", "run", sweep.path, "--on", "slurm", "partition=gpu")
    assert (said.code, "pip install 'sdi-gs[sweep]'" in said.err) == (2, True)
    assert stage.begun == {}


@pytest.mark.parametrize(
    ("words", "options", "told"),
    [
        (("partition=gpu",), {}, "partition: the engine ray has no such option"),
        (("gpus=1.5",), {}, "gpus=1.5: allowed are whole cards, and parts of one"),
        (("gpus=-1",), {}, "gpus=-1: allowed are"),
        (("gpus=nan",), {}, "gpus=nan: allowed are"),
        (("gpus=0.5",), {"any_card": False}, "--no-cards says the opposite"),
        (("retries=-1",), {}, "retries=-1: allowed is a whole number, 0 or more"),
        (("cpus=2",), {"cores": 2}, "--cores 2 says the same"),
    ],
)
def test_what_ray_cannot_use_is_refused(
    words: tuple[str, ...], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        ray.Asked.read(given(*words, **options))
    assert told in str(error.value)


def test_a_share_of_a_card_and_memory_in_gib() -> None:
    asked = ray.Asked.read(given("gpus=0.25", "memory=8", "retries=0", jobs=3))
    assert (asked.gpus, asked.memory, asked.retries) == (0.25, 8 * 2**30, 0)
    assert (asked.parallelism, asked.cpus) == (3, 1)


def test_ray_that_is_missing_or_does_not_answer_is_told(
    stage: Stage, sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port of ours at which nobody listens; Ray itself would try for minutes."""
    sweep = planned(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        said = sdi_gs("sweep", "run", sweep.path, "--on", "ray")
    assert (said.code, "pip install 'sdi-gs[ray]'" in said.err) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
        for asked in (address, f"ray://{address}"):
            said = sdi_gs("sweep", "run", sweep.path, "--on", "ray", f"address={asked}")
            assert said.code == 2
            assert f"the cluster at {asked} does not answer" in said.err
    assert stage.begun == {}


class FakeRay:
    """A cluster of that size."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **_: object) -> Any:
        return lambda function: function


def test_as_many_tasks_as_fit_into_a_ray_cluster(tmp_path: Path) -> None:
    def fitting(*words: str) -> int:
        there = FakeRay(CPU=8, GPU=2, memory=20 * 2**30)
        return ray.Tasks(there, planned(tmp_path), ray.Asked.read(given(*words))).fitting()

    assert fitting() == 8
    assert fitting("gpus=0.25") == 8
    assert fitting("gpus=0.5") == 4
    assert fitting("cpus=3") == 2
    assert fitting("memory=5") == 4
    with pytest.raises(UserError, match="wants 3 of GPU, and the whole cluster has 2"):
        fitting("gpus=3")


# --- a pretended SLURM ----------------------------------------------------------------------------


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs of SLURM: sbatch keeps its script, squeue says what a file says."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "queue").write_text("")
    scripts = {
        "sbatch": f'cp "$1" {tmp_path}/sent; echo "Submitted batch job 17"',
        "squeue": f'echo "$@" >> {tmp_path}/asked; cat {tmp_path}/queue',
        "srun": "exit 1",
    }
    for name, script in scripts.items():
        write_program(folder / name, script)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_what_sbatch_is_sent(pretended: Path) -> None:
    sweep = planned(pretended, seeds=3)
    asked = slurm.Asked.read(
        given("partition=gpu", "time=4:00:00", "gpus=1", "memory=24G", "cpus=4", "parallelism=2",
              "account=ours", "qos=low", "constraint=a100")
    )  # fmt: skip
    array = slurm.Array(sweep, asked)
    said = array.start(2)
    assert "2 tasks as the array 17" in said
    flags = [line[8:] for line in (pretended / "sent").read_text().splitlines() if "SBATCH" in line]
    expected = {"--partition=gpu", "--time=240", "--gpus-per-node=1", "--mem=24G", "--requeue",
                "--cpus-per-task=4", "--array=0-1%2", "--account=ours", "--qos=low",
                "--constraint=a100", "--signal=USR2@90", f"--job-name={array.name}",
                "--open-mode=append"}  # fmt: skip
    assert expected <= set(flags)
    assert "--cpus-per-task=4 " in (pretended / "sent").read_text().partition("srun")[2]


def test_tasks_are_found_by_the_name_of_the_sweep(pretended: Path) -> None:
    array = slurm.Array(planned(pretended), slurm.Asked.read(given()))
    assert array.living() == []
    (pretended / "queue").write_text("RUNNING None\nPENDING Resources\nPENDING None\n")
    assert array.living() == ["running", "pending (Resources)", "pending"]
    assert f"--name={array.name}" in (pretended / "asked").read_text()
    (pretended / "elsewhere").mkdir()
    other = slurm.Array(planned(pretended / "elsewhere"), slurm.Asked.read(given()))
    assert other.name != array.name


def test_a_controller_that_does_not_answer_is_told(
    stage: Stage, sdi_gs: Run, pretended: Path
) -> None:
    """At the start it is an error; later the driver waits until it answers again."""
    sweep = planned(pretended)
    down = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    write_program(pretended / "bin" / "squeue", down)
    said = sdi_gs("sweep", "run", sweep.path, "--on", "slurm")
    assert said.code == 2
    assert "Unable to contact slurm controller" in said.err
    assert "nothing was started" in said.err
    assert not (pretended / "sent").exists()
    array = slurm.Array(sweep, slurm.Asked.read(given()))
    assert Driver(sweep, array, 1, quiet).look() is False
    assert not (pretended / "sent").exists()


def test_what_sbatch_refuses_is_told_in_its_words(sdi_gs: Run, pretended: Path) -> None:
    sweep = planned(pretended)
    refuses = "echo 'sbatch: error: Invalid partition name specified' >&2; exit 1"
    write_program(pretended / "bin" / "sbatch", refuses)
    said = sdi_gs("sweep", "run", sweep.path, "--on", "slurm", "partition=gpo")
    assert said.code == 2
    assert "sbatch refuses: Invalid partition name specified" in said.err


def test_no_slurm_here_is_told(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    said = sdi_gs("sweep", "run", planned(tmp_path).path, "--on", "slurm")
    assert said.code == 2
    assert "no sbatch here" in said.err


def test_ctrl_c_leaves_the_tasks_and_says_how_they_end(
    pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = planned(pretended)
    (pretended / "queue").write_text("RUNNING None\n")

    def interrupted(self: Driver) -> bool:
        raise Stop(signal.SIGINT)

    monkeypatch.setattr(Driver, "look", interrupted)
    with pytest.raises(Interrupted) as told:
        slurm.run(sweep, given(), quiet)
    assert told.value.exit_code == 130
    assert "scancel --name=sdi-gs-" in str(told.value)


# --- the driver -----------------------------------------------------------------------------------


class Threads:
    """A cluster of this process: a task is a thread that is a worker. Those that are ``broken``
    end at once."""

    def __init__(self, sweep: Sweep, broken: int = 0) -> None:
        self.sweep, self.broken = sweep, broken
        self.tasks: list[threading.Thread] = []
        self.started: list[int] = []

    def living(self) -> list[str]:
        return ["running" for task in self.tasks if task.is_alive()]

    def start(self, count: int) -> str:
        self.started.append(count)
        for _ in range(count):
            self.broken -= 1
            task = threading.Thread(target=self._task, args=(self.broken >= 0,), daemon=True)
            self.tasks.append(task)
            task.start()
        return f"{count} started"

    def _task(self, broken: bool) -> None:
        if not broken:
            pool.serve(self.sweep, None, None, quiet)

    def last_words(self) -> str:
        return "no such file"


def counts(sweep: Sweep) -> dict[str, int]:
    return dict(standing(sweep).counts)


def test_a_driver_keeps_as_many_tasks_as_are_asked_for(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, "a mug", "mistake mug", seeds=4)
    cluster, said = Threads(sweep), []  # type: ignore[var-annotated]
    Driver(sweep, cluster, 3, said.append).go()
    assert counts(sweep) == {"done": 4, "failed": 4}
    assert cluster.started[0] == 3
    assert "runs: 8 waiting; tasks: none" in said


def test_tasks_that_end_early_are_replaced(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path, seeds=3)
    cluster = Threads(sweep, broken=4)
    Driver(sweep, cluster, 2, quiet).go()
    assert counts(sweep) == {"done": 3}
    assert cluster.started[:3] == [2, 2, 2]


def test_a_task_that_is_missing_is_started_beside_the_others(stage: Stage, tmp_path: Path) -> None:
    """Two of three tasks end at once; the third one works."""
    sweep = planned(tmp_path, "slow mug", seeds=4)
    cluster = Threads(sweep, broken=2)
    leading = Driver(sweep, cluster, 3, quiet)
    assert not leading.look()
    until(lambda: len(cluster.living()) == 1 and len(stage.begun) == 1)
    assert not leading.look()
    assert cluster.started == [3, 2]
    until(lambda: len(stage.begun) == 3)
    stage.hold.set()
    leading.go()
    assert counts(sweep) == {"done": 4}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_driver_gives_up_where_every_start_is_in_vain(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path)
    cluster = Threads(sweep, broken=99)
    with pytest.raises(RunFailure, match=r"started 5 times.*no such file.*goes on"):
        Driver(sweep, cluster, 2, quiet).go()
    assert cluster.started == [1] * driver.VAIN
    assert counts(sweep) == {"waiting": 1}


def test_a_driver_starts_no_second_worker_beside_a_living_one(stage: Stage, tmp_path: Path) -> None:
    """Whoever has killed the driver types the same command: the tasks of the first are found."""
    sweep = planned(tmp_path, "slow mug")
    first = Threads(sweep)
    first.start(1)
    while not stage.begun:
        time.sleep(0.01)
    again = Driver(sweep, first, 4, quiet)
    assert not again.look()
    assert first.started == [1]
    stage.hold.set()
    again.go()
    assert first.started == [1]
    assert sum(stage.begun.values()) == 1


def test_lines_of_dead_workers_alone_are_a_reason_to_start_one(
    stage: Stage, tmp_path: Path
) -> None:
    sweep = planned(tmp_path)
    (line,) = lines(sweep)
    sign = signs(sweep) / "dead.json"
    sign.parent.mkdir()
    sign.write_text(
        f'{{"token": "dead", "host": "h", "machine": "{driver_machine()}", "pid": {2**22 + 1}, '
        '"started": "", "version": ""}'
    )
    assert Ledger(sweep).claim(line, 1, sign)
    assert counts(sweep) == {"running": 1}
    cluster = Threads(sweep)
    Driver(sweep, cluster, 2, quiet).go()
    assert (counts(sweep), cluster.started) == ({"done": 1}, [1])


def driver_machine() -> str:
    from representations.files import machine

    return machine()


def test_a_sweep_that_is_asked_to_stop_ends_its_driver(stage: Stage, tmp_path: Path) -> None:
    sweep = planned(tmp_path)
    status.stop(sweep, lift=False)
    cluster = Threads(sweep)
    with pytest.raises(Stopped, match=r"to go on: .*--lift"):
        Driver(sweep, cluster, 2, quiet).go()
    assert cluster.started == []


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_program_that_is_killed_or_interrupted_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the worker: it ends as its folder is named."""
    fake = "import os, sys, time; w = sys.argv[-1]; time.sleep(60) if w == 'slow' else "
    fake += "os.kill(os.getpid(), 9) if w == 'killed' else sys.exit(int(w))"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    write_program(
        tmp_path / "python", f'exec {os.path.realpath("/proc/self/exe")} -c "{fake}" "$@"'
    )
    Program("0", {}).wait()
    for word, told in (("1", "code 1"), ("killed", "killed by signal 9"), ("143", "put back")):
        with pytest.raises(RunFailure, match=told):
            Program(word, {}).wait()
    slow, began = Program("slow", {}), time.monotonic()
    threading.Timer(0.3, slow.interrupt).start()
    with pytest.raises(RunFailure, match="put back"):
        slow.wait()
    assert time.monotonic() - began < PATIENCE  # it heard, and did not have to be killed


def parent(pid: int) -> int:
    """The process that has started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="finds processes in /proc")
def test_a_preempted_task_saves_and_goes_on_when_it_is_queued_again(
    sdi_gs: Run, fast: Path, tmp_path: Path
) -> None:
    """submitit's own executor of this machine: USR2 to the task in the middle of a run; submitit
    starts it again, and the run ends with the bytes of one that was made alone."""
    submitit = pytest.importorskip("submitit")
    out = tmp_path / "s"
    said = sdi_gs("sweep", "plan", "a mug", "steps=60", "--representations", fast, "--out", out)
    assert said.code == 0, said.err
    sweep = open_sweep(out)
    (line,) = sweep.read().lines
    run = sweep.run(line)
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(timeout_min=5, signal_delay_s=30)
    job = executor.submit(slurm.Task(str(out), {}), 0)
    until = time.monotonic() + 60
    while not (run / "stats.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.02)
    child = json.loads((run / ".holder.json").read_text())["pid"]
    os.kill(parent(parent(child)), signal.SIGUSR2)  # a worker lies between the task and its run
    job.result()
    ledger = Ledger(sweep)
    assert ledger.state(line)[:2] == ("done", 2)
    assert ledger.file(line, 1, "back").exists()
    assert "goes on where it was stopped" in job.stdout()
    alone = tmp_path / "alone"
    assert sdi_gs("generate", "--config", run / "config.yaml", "--out", alone).code == 0
    for name in ("final.ply", "turntable.gif"):
        assert (run / name).read_bytes() == (alone / name).read_bytes()


def test_a_driver_looks_again_soon_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less and less often while nothing happens, never less than every LOOK seconds."""
    monkeypatch.setattr(driver, "LOOK", 10.0)
    pauses: list[float] = []
    monkeypatch.setattr(driver.time, "sleep", pauses.append)
    told = ["a"] * 9 + ["b", "b", "c", "c"]

    class Told(Driver):
        def look(self) -> bool:
            self._told = told.pop(0)
            return not told

    Told(planned(tmp_path), None, 1, quiet).go()  # type: ignore[arg-type]
    assert pauses == [1, 1.5, 2.25, 3.375, 5.0625, 7.59375, 10, 10, 10, 1, 1.5, 1]
