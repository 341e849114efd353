# SPDX-License-Identifier: Apache-2.0
"""Studies: a run is made once, continued where it stopped, and never mixed with another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.artefacts import checkpoint
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.config import Config, load
from sdi_gs.errors import RunFailure, UserError
from sdi_gs.experiments import study
from sdi_gs.run import Interrupted

Run = Callable[..., Any]


@pytest.fixture
def config(fast: Path) -> Config:
    return load(str(fast), ["prompt=a mug"])


@pytest.fixture
def here(sdi_gs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made in this process instead of one of their own, which takes seconds to start."""

    def call(name: str, verb: list[str], run: RunFolder, out: Path) -> None:
        assert sdi_gs(*verb).code == 0

    monkeypatch.setattr(study, "_call", call)


def quiet(said: str) -> None:
    pass


@pytest.mark.usefixtures("here")
def test_what_is_finished_is_taken_as_it_is(config: Config, tmp_path: Path) -> None:
    study.open_folder(tmp_path / "s")
    run = study.obtain("one", config, tmp_path / "s", quiet)
    summary = run.summary_file.read_bytes()
    said: list[str] = []
    assert study.obtain("one", config, tmp_path / "s", said.append) == run
    assert said == ["  finished before"]
    assert run.summary_file.read_bytes() == summary
    study.open_folder(tmp_path / "s")  # ours, so it may be gone on with
    with pytest.raises(UserError, match="with other settings"):
        study.obtain("one", config.model_copy(update={"seed": 5}), tmp_path / "s", quiet)
    assert run.summary_file.read_bytes() == summary


@pytest.mark.usefixtures("here")
def test_what_was_stopped_goes_on_to_the_same_bytes(
    config: Config, fast: Path, interrupted: Run, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    study.open_folder(out)
    whole = study.obtain("whole", config, out, quiet)
    interrupted("generate", "a mug", "--config", fast, "--out", out / "runs" / "part")
    assert not RunFolder(out / "runs" / "part").summary_file.exists()
    said: list[str] = []
    part = study.obtain("part", config, out, said.append)
    assert said == ["  goes on from its checkpoint"]
    assert part.final("ply").read_bytes() == whole.final("ply").read_bytes()


@pytest.mark.usefixtures("here")
def test_what_was_stopped_before_its_first_checkpoint_begins_again(
    config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    study.open_folder(out)
    run = study.obtain("one", config, out, quiet)
    run.summary_file.unlink()
    for path in run.checkpoints.iterdir():
        path.unlink()
    assert study.obtain("one", config, out, quiet).summary_file.is_file()
    assert checkpoint.latest(run.checkpoints) is not None


def test_a_foreign_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        study.open_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        study.open_folder(tmp_path / "thesis.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_run_that_cannot_begin_stops_the_study_and_one_that_breaks_does_not(
    config: Config, fast: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    study.open_folder(out)
    gone = config.model.model_copy(update={"source": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"one could not begin: .*nowhere"):
        study.obtain("one", config.model_copy(update={"model": gone}), out, quiet)
    wild = load(str(fast), ["prompt=a mug", "representation.rates.means=1e38"])
    with pytest.raises(RunFailure, match=r"the run two failed"):
        study.obtain("two", wild, out, quiet)
    assert (out / "runs" / "two.log").stat().st_size > 0


def test_a_run_that_somebody_stopped_has_not_failed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped:
        def wait(self) -> int:
            return Interrupted.exit_code

    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: Stopped())
    study.open_folder(tmp_path / "s")
    with pytest.raises(Interrupted, match="goes on from here"):
        study.obtain("one", config, tmp_path / "s", quiet)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C reaches a group of processes on POSIX only")
def test_ctrl_c_waits_until_the_run_has_saved(fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    run = RunFolder(out / "runs" / "fast-sdi-a-mug-0")
    table = subprocess.Popen(
        [sys.executable, "-m", "sdi_gs", "table1", "a mug", "--representations", str(fast),
         "--guidances", "sdi", "--steps", "100000", "--out", str(out)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not run.stats_file.exists() and time.monotonic() < until:
            time.sleep(0.1)
        os.killpg(table.pid, signal.SIGINT)
        _, err = table.communicate(timeout=60)
    finally:
        if table.poll() is None:
            os.killpg(table.pid, signal.SIGKILL)
    assert table.returncode == 130
    assert f"--out {out}" in err
    saved = checkpoint.latest(run.checkpoints)
    assert saved is not None
    assert checkpoint.load(saved).step == len(list(run.stats()))  # to the very step
