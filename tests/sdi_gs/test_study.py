# SPDX-License-Identifier: Apache-2.0
"""Studies: a run is made once, continued where it stopped, and never mixed with another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from representations.files import started
from sdi_gs import child
from sdi_gs.artefacts import checkpoint, holder
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.config import Config, load
from sdi_gs.errors import UserError
from sdi_gs.experiments import study
from sdi_gs.stopping import Interrupted

from ..programs import Forked

Run = Callable[..., Any]


@pytest.fixture
def config(fast: Path) -> Config:
    return load(str(fast), ["prompt=a mug"])


@pytest.fixture
def here(sdi_gs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made in this process instead of one of their own, which takes seconds to start."""

    def call(run: RunFolder, verb: list[str], orders: child.Orders) -> None:
        assert sdi_gs(*verb).code == 0

    monkeypatch.setattr(child, "call", call)


def folder(out: Path) -> None:
    """The folder of a study."""
    with study.opened(out, "table"):
        pass


def quiet(said: str) -> None:
    pass


@pytest.mark.usefixtures("here")
def test_what_is_finished_is_taken_as_it_is(config: Config, tmp_path: Path) -> None:
    with study.opened(tmp_path / "s", "table"):
        run = study.obtain("one", config, tmp_path / "s", quiet)
    summary = run.summary_file.read_bytes()
    said: list[str] = []
    assert study.obtain("one", config, tmp_path / "s", said.append) == run
    assert said == ["  finished before"]
    assert run.summary_file.read_bytes() == summary
    with study.opened(tmp_path / "s", "table"):  # ours, so it may be gone on with
        pass
    with pytest.raises(UserError, match="with other settings"):
        study.obtain("one", config.model_copy(update={"seed": 5}), tmp_path / "s", quiet)
    assert run.summary_file.read_bytes() == summary


@pytest.mark.usefixtures("here")
def test_what_was_stopped_goes_on_to_the_same_bytes(
    config: Config, fast: Path, interrupted: Run, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    folder(out)
    whole = study.obtain("whole", config, out, quiet)
    interrupted("generate", "a mug", "--config", fast, "--out", out / "runs" / "part")
    assert not RunFolder(out / "runs" / "part").summary_file.exists()
    said: list[str] = []
    part = study.obtain("part", config, out, said.append)
    assert said == ["  goes on where it was stopped"]
    assert part.final("ply").read_bytes() == whole.final("ply").read_bytes()


@pytest.mark.usefixtures("here")
def test_what_was_stopped_before_its_first_checkpoint_begins_again(
    config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    folder(out)
    run = study.obtain("one", config, out, quiet)
    run.summary_file.unlink()
    for path in run.checkpoints.iterdir():
        path.unlink()
    assert study.obtain("one", config, out, quiet).summary_file.is_file()
    assert checkpoint.latest(run.checkpoints) is not None


@pytest.mark.usefixtures("here")
def test_a_run_whose_table_was_killed_may_save_and_end_first(
    config: Config, tmp_path: Path
) -> None:
    """It still holds its folder when the same table is asked for again."""
    out = tmp_path / "s"
    folder(out)
    run = out / "runs" / "one"
    run.mkdir()
    orphan = subprocess.Popen(["sleep", "0.5"])
    with holder.held(run, "generate"):
        name = json.loads((run / holder.FILE).read_text())
    name |= {"pid": orphan.pid, "started": started(orphan.pid)}
    (run / holder.FILE).write_text(json.dumps(name))
    assert study.obtain("one", config, out, quiet).summary_file.is_file()
    assert orphan.poll() is not None


def test_a_foreign_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        folder(tmp_path / "thesis.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_folder_of_the_same_names_is_not_a_study(tmp_path: Path) -> None:
    """Somebody's own folder of runs, with nothing of ours beside it."""
    mine = tmp_path / "runs" / "fast-sdi-a-mug-0"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        folder(tmp_path)
    assert (mine / "notes.txt").read_text() == "mine"
    (tmp_path / "table.json").write_text('["mine"]')
    with pytest.raises(UserError, match="not empty"):
        folder(tmp_path)
    # One of ours from before the mark was introduced has its table.
    (tmp_path / "table.json").write_text('{"plan": {}, "entries": []}')
    folder(tmp_path)
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("programs_here")
def test_a_run_that_cannot_begin_or_loses_its_numbers_says_so(
    config: Config, fast: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    folder(out)
    gone = config.model.model_copy(update={"source": str(tmp_path / "nowhere")})
    with pytest.raises(child.NotRun, match=r"nowhere"):
        study.obtain("one", config.model_copy(update={"model": gone}), out, quiet)
    wild = load(str(fast), ["prompt=a mug", "terms.opacity={start: 0, end: 1e60, over: 3}"])
    with pytest.raises(child.Diverged, match="is inf"):
        study.obtain("two", wild, out, quiet)
    assert (out / "runs" / "two.log").stat().st_size > 0


@pytest.mark.parametrize("ending", ["yaml", "log"])
def test_nothing_is_written_through_a_symbolic_link(
    config: Config, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / "s"
    folder(out)
    (tmp_path / "thesis.tex").write_text("mine")
    (out / "runs" / f"one.{ending}").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="symbolic link"):
        study.obtain("one", config, out, quiet)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_run_that_somebody_stopped_has_not_failed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped:
        def wait(self, seconds: float | None = None) -> int:
            return 130

    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: Stopped())
    folder(tmp_path / "s")
    with pytest.raises(Interrupted, match="goes on from here"):
        study.obtain("one", config, tmp_path / "s", quiet)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C reaches a group of processes on POSIX only")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_until_the_run_has_saved(
    fast: Path, tmp_path: Path, number: signal.Signals, programs_forked: type[Forked]
) -> None:
    """Of the table alone, as a scheduler does; a terminal's Ctrl-C comes to all its processes."""
    out = tmp_path / "s"
    run, log = RunFolder(out / "runs" / "fast-sdi-a-mug-0"), tmp_path / "table.log"
    with log.open("w") as said:
        table = programs_forked(
            [sys.executable, "-m", "sdi_gs", "table1", "a mug", "--representations", str(fast),
             "--guidances", "sdi", "--steps", "100000", "--out", str(out)],
            stdout=said, env=dict(os.environ), start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not run.stats_file.exists() and time.monotonic() < until:
            time.sleep(0.02)
        table.send_signal(number)
        table.wait(60)
    finally:
        if table.poll() is None:
            os.killpg(table.pid, signal.SIGKILL)
    assert table.returncode == 128 + number
    assert f"--out {out}" in log.read_text()
    assert "stopped after step" in (out / "runs" / "fast-sdi-a-mug-0.log").read_text()
    saved = checkpoint.latest(run.checkpoints)
    assert saved is not None
    assert checkpoint.load(saved).step == len(list(run.stats()))  # to the very step
