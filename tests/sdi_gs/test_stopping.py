# SPDX-License-Identifier: Apache-2.0
"""Every way of being asked to stop saves the state, says how to go on, and has its exit code."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.artefacts import checkpoint
from sdi_gs.guidance import distillation
from sdi_gs.stopping import GRACE, PARENT, Stop, stopping

from ..stopping import stop_at

Run = Callable[..., Any]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR2": 140}


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Whoever runs the tests in the background or under nohup has turned some signals off."""
    before = {}
    for name in CODES:
        default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        before[name] = signal.signal(signal.Signals[name], default)
    yield
    for name, handler in before.items():
        signal.signal(signal.Signals[name], handler)


def send(name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])


@pytest.fixture
def whole(sdi_gs: Run, fast: Path, tmp_path: Path) -> bytes:
    assert sdi_gs("generate", "a mug", "--config", fast, "--out", tmp_path / "whole").code == 0
    return (tmp_path / "whole" / "final.ply").read_bytes()


@pytest.mark.parametrize("name", CODES)
def test_a_signal_between_steps_finishes_the_step_and_saves(
    sdi_gs: Run,
    fast: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    whole: bytes,
) -> None:
    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        stop_at(patch, 2, lambda: send(name))
        said = sdi_gs("generate", "a mug", "--config", fast, "--out", out)
    assert said.code == CODES[name], said
    assert "stopped after step 3 of 6; the state is saved" in said.err
    words = shlex.split(said.err.strip().splitlines()[-1])
    assert words == ["sdi-gs", "resume", str(out)]
    assert sdi_gs(*words[1:]).code == 0
    assert (out / "final.ply").read_bytes() == whole


@pytest.mark.parametrize(
    ("shape", "compiled"), [("fast", False), ("fast", True), ("field_config", False)]
)
def test_a_step_longer_than_the_grace_time_is_given_up_and_nothing_is_lost(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, compiled: bool,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """In the middle of the fourth step, after its random numbers were drawn: the third is saved.
    Also where compiled code makes a SystemError of what the handler of the signal raises."""
    config = request.getfixturevalue(shape)
    assert sdi_gs("generate", "a mug", "--config", config, "--out", tmp_path / "whole").code == 0
    out = tmp_path / "r"
    real = distillation.ScoreDistillation.__call__
    asked = []

    def slow(self: Any, rgb: Any, viewpoints: Any, step: int, *more: Any) -> Any:
        guided = real(self, rgb, viewpoints, step, *more)
        if step == 3 and not asked:
            asked.append(time.monotonic())
            send("SIGTERM")
            until = time.monotonic() + 30.0
            try:
                while time.monotonic() < until:
                    time.sleep(0.01)
            except Stop as stop:
                if compiled:
                    raise SystemError("returned a result with an exception set") from stop
                raise
        return guided

    monkeypatch.setenv(GRACE, "0.2")
    with monkeypatch.context() as patch:
        patch.setattr(distillation.ScoreDistillation, "__call__", slow)
        said = sdi_gs("generate", "a mug", "--config", config, "--out", out)
    assert said.code == 143, said
    assert time.monotonic() - asked[0] < 10.0
    assert "stopped after step 3 of 6; the state is saved" in said.err
    saved = checkpoint.latest(out / "checkpoints")
    assert saved is not None
    assert saved.name == "step_0000003.pt"
    assert sdi_gs("resume", out).code == 0
    (final,) = out.glob("final.*")
    assert final.read_bytes() == (tmp_path / "whole" / final.name).read_bytes()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_scheduler_that_says_it_twice_is_heard_once(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "r"

    def twice() -> None:
        send(name)
        send("SIGTERM")

    stop_at(monkeypatch, 2, twice)
    said = sdi_gs("generate", "a mug", "--config", fast, "--out", out)
    assert said.code == CODES[name]
    assert "stopped after step 3 of 6; the state is saved" in said.err


def test_a_stop_while_the_model_is_loaded_leaves_nothing(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "r"
    monkeypatch.setattr("sdi_gs.build.training", lambda *_, **__: send("SIGTERM"))
    said = sdi_gs("generate", "a mug", "--config", fast, "--out", out)
    assert said.code == 143
    assert "nothing was made, and the same command starts again" in said.err
    assert not (tmp_path / "deep").exists()


def test_a_stop_in_any_other_verb_has_its_code(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdi_gs.doctor.examine", lambda _: send("SIGHUP"))
    said = sdi_gs("doctor")
    assert said.code == 129
    assert "stopped" in said.err


def test_handlers_of_others_and_nohup_are_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    hup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping() as stop, stopping() as inner:
            assert inner is stop
            send("SIGUSR2")
            send("SIGHUP")
            assert not stop.asked()
            with pytest.raises(Stop):
                send("SIGTERM")
        assert heard == [signal.SIGUSR2]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGHUP, hup)


def test_a_step_that_hears_nothing_is_ended_by_the_clock(tmp_path: Path) -> None:
    """Signals do not interrupt C code that holds on; files are whole at any moment."""
    code = (
        "import os, signal, time\nfrom sdi_gs import stopping\n"
        "stopping.LAST_WORD = 0.2\n"
        "with stopping.stopping() as stop, stop.after_the_step():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0)\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n    time.sleep(30)\n"
    )
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, GRACE: "0.2"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert ended.returncode == 143, ended.stderr
    assert time.monotonic() - began < 20.0
    assert "did not end in time" in ended.stderr


def test_a_child_stops_with_its_parent() -> None:
    child = (
        "import time\nfrom sdi_gs.stopping import *\n"
        "try:\n    with stopping():\n        print('up', flush=True); time.sleep(30)\n"
        "except Stop as stop:\n    print('stopped', int(stop.number), flush=True)\n"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"env = {{**os.environ, {PARENT!r}: str(os.getpid())}}\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=env)\n"
        "time.sleep(30)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.kill()
        assert running.stdout.readline() == f"stopped {int(signal.SIGTERM)}\n"


def test_a_pipe_that_nobody_reads_ends_no_run(fast: Path, tmp_path: Path) -> None:
    """As of ``generate | head -1``, or of a terminal that was closed: the asset is made."""
    out = tmp_path / "r"
    words = ["generate", "a mug", "--config", str(fast), "--out", str(out)]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "sdi_gs", *words], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert ended.returncode == 0, ended.stderr
    assert (out / "final.ply").is_file()
    assert (out / "report.html").is_file()
