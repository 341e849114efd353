# SPDX-License-Identifier: Apache-2.0
"""Whole runs through the command line: what they leave, how they stop, and how they go on."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.export import read_ply
from representations.files import write_bytes
from sdi_gs.artefacts import checkpoint, holder
from sdi_gs.cli.results import spoken
from sdi_gs.config import guidances

from ..stopping import interrupt, stop_at

PROMPT = "a red mug: [big], #1"
Run = Callable[..., Any]


@pytest.fixture
def whole(sdi_gs: Run, fast: Path, tmp_path: Path) -> Path:
    """A run without a break."""
    out = tmp_path / "whole"
    said = sdi_gs("generate", PROMPT, "--config", fast, "--out", out, "--seed", 3)
    assert said.code == 0, said.err
    return out


def state(run: Path) -> dict[str, Any]:
    path = checkpoint.latest(run / "checkpoints")
    assert path is not None
    saved = checkpoint.load(path)
    return {"renderer": saved.renderer, "rng": saved.rng, "step": saved.step}


def same(one: Any, other: Any) -> bool:
    """Bit for bit, all the way down."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_folder_of_a_run(whole: Path) -> None:
    present = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert present == {
        "config.yaml", "stats.jsonl", "previews/step_0000003.png", "previews/step_0000006.png",
        "checkpoints/step_0000004.pt", "checkpoints/step_0000006.pt", "final.ply",
        "turntable.gif", "preview.png", "summary.json", "report.html",
    }  # fmt: skip
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["prompt"] == PROMPT
    assert summary["size"] == lines[-1]["size"]
    assert summary["peak_memory_mb"] > 50
    cloud = read_ply(whole / "final.ply")
    assert 0 < len(cloud) <= 80


def test_what_a_run_says(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", out)
    assert said.err == ""
    for expected in ("step     1/6", "step     6/6", "loss", "splats", "s/step", "left"):
        assert expected in said.out
    for name in ("final.ply", "turntable.gif", "preview.png"):
        assert str(out / name) in said.out
        assert (out / name).stat().st_size > 0
    seconds = json.loads((out / "summary.json").read_text())["seconds"]
    assert re.search(rf"took       .*; training in all {spoken(seconds)}\n", said.out)
    after = said.out.partition("took")[2].splitlines()
    typed = [line.strip().partition("   ")[0] for line in after if str(out) in line]
    assert [shlex.split(line)[-3 if "export" in line else -1] for line in typed] == [str(out)] * 2
    last = shlex.split(typed[1])
    made = sdi_gs(*last[last.index("export") :], "--resolution", 16)
    assert made.code == 0, made.err
    assert (out / "final.glb").exists()


def test_few_steps_are_said_before_they_are_made(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    """``fast`` has 6 steps: 1 is less than a quarter of them, 2 are not."""
    for steps, told in ((1, True), (2, False)):
        said = sdi_gs("generate", PROMPT, "--config", fast, "--steps", steps,
                      "--out", tmp_path / str(steps))  # fmt: skip
        assert said.code == 0
        assert (f"note: {steps} steps, where {fast} takes 6" in said.err) == told


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (3599.6, "1 h 0 min"),
     (7812, "2 h 10 min")],
)  # fmt: skip
def test_how_long_it_took(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def test_the_saved_config_replays_the_run(sdi_gs: Run, whole: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    said = sdi_gs("generate", "--config", whole / "config.yaml", "--out", again)
    assert said.code == 0, said.err
    assert (again / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()
    assert (again / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()
    other = tmp_path / "other"
    sdi_gs("generate", "--config", whole / "config.yaml", "--out", other, "--seed", 4)
    assert (other / "final.ply").read_bytes() != (whole / "final.ply").read_bytes()


def test_ctrl_c_saves_and_resume_ends_with_the_same_bytes(
    sdi_gs: Run, fast: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that the message gives is run as it stands, from a folder with a space."""
    out = tmp_path / "a stop"
    with monkeypatch.context() as patch:
        stop_at(patch, 2, interrupt)
        said = sdi_gs("generate", PROMPT, "--config", fast, "--out", out, "--seed", 3)
    assert said.code == 130
    assert "stopped after step 3 of 6; the state is saved" in said.err
    assert not (out / "final.ply").exists()
    command = shlex.split(said.err.strip().splitlines()[-1])
    assert command == ["sdi-gs", "resume", str(out)]
    said = sdi_gs(*command[1:])
    assert said.code == 0, said.err
    assert same(state(out), state(whole))
    assert (out / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()
    steps = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert [line["losses"] for line in steps] == [line["losses"] for line in expected]


def test_a_second_ctrl_c_does_not_wait(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    out = tmp_path / "r"
    stop_at(monkeypatch, 3, twice)
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", out)
    assert said.code == 130
    assert "step_0000002.pt" in said.err
    assert f"sdi-gs resume {out}" in said.err


def test_after_a_crash_the_steps_since_the_checkpoint_are_written_once(
    sdi_gs: Run, fast: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise RuntimeError("lightning")

    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        stop_at(patch, 4, crash)
        said = sdi_gs("generate", PROMPT, "--config", fast, "--out", out, "--seed", 3)
    assert said.code == 1
    assert said.err.count("\n") == 1
    assert "lightning" in said.err
    assert "--debug" in said.err
    with (out / "stats.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut short
    assert sdi_gs("resume", out).code == 0
    steps = [json.loads(line)["step"] for line in (out / "stats.jsonl").read_text().splitlines()]
    assert steps == list(range(6))
    assert (out / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()


def test_a_damaged_checkpoint_is_passed_over_and_named(sdi_gs: Run, whole: Path) -> None:
    """resume goes on from the one before to the same bytes; verbs that show the shape do not show
    an older one instead."""
    newest = whole / "checkpoints" / "step_0000006.pt"
    wanted = (whole / "final.ply").read_bytes()
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    for verb in ("render", "export"):
        said = sdi_gs(verb, whole)
        assert said.code == 2
        assert str(newest) in said.err
        assert f"sdi-gs resume {whole}" in said.err
    said = sdi_gs("resume", whole)
    assert said.code == 0, said.err
    assert str(newest) in said.out
    assert "going on from the one before" in said.out
    assert (whole / "final.ply").read_bytes() == wanted
    assert sdi_gs("render", whole).code == 0


def test_a_run_stopped_before_its_first_checkpoint_starts_over(
    sdi_gs: Run, fast: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """generate names resume, and resume works, to the same bytes."""

    def crash() -> None:
        raise RuntimeError("lightning")

    out = tmp_path / "r"
    command = ("generate", PROMPT, "--config", fast, "--out", out, "--seed", 3)
    with monkeypatch.context() as patch:
        stop_at(patch, 1, crash)
        assert sdi_gs(*command, "output.checkpoint_every=4").code == 1
    assert checkpoint.latest(out / "checkpoints") is None
    assert f"sdi-gs resume {out}" in sdi_gs(*command).err
    said = sdi_gs("resume", out)
    assert said.code == 0, said.err
    assert "starts over" in said.out
    assert (out / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()
    assert len((out / "stats.jsonl").read_text().splitlines()) == 6


def test_a_run_that_was_taken_over_writes_no_more(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the folder after the third step: no line, preview or checkpoint."""
    out = tmp_path / "r"

    def take_over() -> None:
        name = out / holder.FILE
        name.write_text(json.dumps({**json.loads(name.read_text()), "token": "another"}))

    stop_at(monkeypatch, 2, take_over)
    said = sdi_gs("generate", PROMPT, "--config", fast, "--out", out, "output.preview_every=0")
    assert said.code == 1
    assert "was taken over by process" in said.err
    assert len((out / "stats.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_0000002.pt"]


def test_resume_drops_the_checkpoint_that_a_kill_left_over(sdi_gs: Run, whole: Path) -> None:
    """Killed between the writing of the newest and the removal of the oldest."""
    folder = whole / "checkpoints"
    (folder / "step_0000002.pt").write_bytes((folder / "step_0000004.pt").read_bytes())
    assert sdi_gs("resume", whole).code == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step_0000004.pt", "step_0000006.pt"]


def test_the_threads_of_a_run_are_noted_and_another_number_is_told(
    sdi_gs: Run, fast: Path, interrupted: Run, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    interrupted("generate", "a mug", "--config", fast, "--out", out)
    settings = out / "config.yaml"
    assert "threads: 1" in settings.read_text()
    settings.write_text(settings.read_text().replace("threads: 1", "threads: 2"))
    said = sdi_gs("resume", out)
    assert said.code == 0, said.err
    assert "the run had 1 threads and goes on with 2" in said.out
    torch.set_num_threads(1)


def test_a_full_disk_during_a_checkpoint(
    sdi_gs: Run, fast: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the bytes go out, then there is no room: the older checkpoint survives, no litter
    stays, and the run can go on later."""
    make, real = tempfile.mkstemp, os.fdopen
    full: set[int] = set()  # handles of the file that finds no room

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: memoryview) -> int:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def making(*args: Any, **kwargs: Any) -> tuple[int, str]:
        handle, name = make(*args, **kwargs)
        (full.add if "step_0000004.pt" in name else full.discard)(handle)
        return handle, name

    def opening(handle: int, *args: Any, **kwargs: Any) -> Any:
        file = real(handle, *args, **kwargs)
        return Full(file) if handle in full else file

    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", making)
        patch.setattr(os, "fdopen", opening)
        said = sdi_gs("generate", PROMPT, "--config", fast, "--out", out, "--seed", 3)
    assert said.code == 2
    assert "No space left on device" in said.err
    assert "step_0000002.pt is intact" in said.err
    assert f"sdi-gs resume {out}" in said.err
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_0000002.pt"]
    assert sdi_gs("resume", out).code == 0
    assert (out / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()


def test_a_loss_that_is_no_number(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    said = sdi_gs(
        "generate", "a red mug", "--config", fast, "--out", out, "output.checkpoint_every=1",
        "terms.opacity={start: 0, end: 1e60, over: 3}",
    )  # fmt: skip
    assert said.code == 3  # a result, not an accident
    assert "step 1: the loss term 'opacity' is inf" in said.err
    assert str(out / "checkpoints" / "step_0000001.pt") in said.err
    saved = state(out)
    assert saved["step"] == 1
    for tensor in saved["renderer"]["gaussians"].values():
        assert bool(torch.isfinite(tensor).all())
    assert not (out / "final.ply").exists()


def test_a_finished_run_is_drawn_again_by_resume(sdi_gs: Run, whole: Path) -> None:
    before = (whole / "final.ply").read_bytes()
    (whole / "final.ply").unlink()
    said = sdi_gs("resume", whole)
    assert said.code == 0, said.err
    assert (whole / "final.ply").read_bytes() == before


def test_resume_refuses_an_edited_config(sdi_gs: Run, whole: Path) -> None:
    path = whole / "config.yaml"
    path.write_text(path.read_text().replace("seed: 3", "seed: 4", 1))
    said = sdi_gs("resume", whole)
    assert said.code == 2
    assert "was edited" in said.err


def test_a_longer_run_is_the_run_that_was_so_long_from_the_start(
    sdi_gs: Run, whole: Path, fast: Path, tmp_path: Path
) -> None:
    """Bit for bit, with the schedule of the shorter one: its config.yaml replays it."""
    short = state(whole)
    said = sdi_gs("resume", whole, "--steps", 9)
    assert said.code == 0, said.err
    assert "3 steps are added" in said.out
    assert "stays as at step 6" in said.out
    longer = state(whole)
    assert longer["step"] == 9
    assert not same(longer["renderer"], short["renderer"])
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))
    assert json.loads((whole / "summary.json").read_text())["steps"] == 9
    other = tmp_path / "other"
    said = sdi_gs("generate", "--config", whole / "config.yaml", "--out", other)
    assert said.code == 0, said.err
    assert "schedule_steps: 6" in (other / "config.yaml").read_text()
    assert same(state(other), longer)
    assert (other / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()
    # And once more, from where it is.
    said = sdi_gs("resume", whole, "--steps", 10)
    assert (said.code, "stays as at step 6" in said.out) == (0, True), said.err


def test_a_longer_run_that_is_stopped_goes_on(
    sdi_gs: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "broken")
    assert sdi_gs("resume", whole, "--steps", 9).code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 7, interrupt)
        said = sdi_gs("resume", tmp_path / "broken", "--steps", 9)
    assert said.code == 130, said.err
    assert not (tmp_path / "broken" / "summary.json").exists()  # finished no more
    assert sdi_gs("resume", tmp_path / "broken").code == 0
    assert same(state(tmp_path / "broken"), state(whole))


def test_what_may_change_on_resume_and_what_may_not(sdi_gs: Run, whole: Path) -> None:
    before = (whole / "config.yaml").read_bytes()
    for words, told in (
        (("seed=4",), "cannot change seed, only steps (--steps N) and settings of output, device"),
        (("guidance.cfg_scale=5",), "cannot change guidance.cfg_scale"),
        (("steps=9",), "--steps 9"),
        (("--steps", 6), "--steps 6: the run has 6 steps, and is made longer only"),
        (("--steps", 3), "--steps 12"),
        (("output.previews=3",), "output.previews"),
        (("nine",), "write key=value"),
    ):
        said = sdi_gs("resume", whole, *words)
        assert (said.code, told in said.err) == (2, True), said.err
        assert (whole / "config.yaml").read_bytes() == before
    said = sdi_gs("resume", whole, "output.checkpoint_every=2", "device=auto", "--steps", 8)
    assert said.code == 0, said.err
    text = (whole / "config.yaml").read_text()
    assert "checkpoint_every: 2" in text
    assert "device: auto" in text


def test_a_file_that_was_edited_names_what_differs_and_what_to_type(
    sdi_gs: Run, whole: Path
) -> None:
    path = whole / "config.yaml"
    before = path.read_text()
    path.write_text(before.replace("seed: 3", "seed: 4", 1))
    assert "seed is 3 in the run" in sdi_gs("resume", whole).err
    path.write_text(before.replace("\nsteps: 6", "\nsteps: 8", 1))
    said = sdi_gs("resume", whole)
    assert (said.code, "--steps 8" in said.err) == (2, True), said.err
    path.write_text(before.replace("preview_every: 3", "preview_every: 2", 1))
    assert sdi_gs("resume", whole).code == 0  # what a run leaves may be edited


def test_render_and_export(sdi_gs: Run, whole: Path, tmp_path: Path) -> None:
    said = sdi_gs(
        "render", whole, "--out", tmp_path / "film", "--format", "mp4", "--frames", 3, "--size",
        17, "--stills", 2,
    )  # fmt: skip
    assert said.code == 0, said.err
    written = [Path(line) for line in said.out.splitlines()]
    assert [path.name for path in written] == [
        "turntable.mp4", "preview.png", "view_000.png", "view_001.png",
    ]  # fmt: skip
    assert all(path.stat().st_size > 0 for path in written)

    ply, splat = tmp_path / "a.ply", tmp_path / "a.splat"
    assert sdi_gs("export", whole, "--format", "ply", "--out", ply).code == 0
    assert ply.read_bytes() == (whole / "final.ply").read_bytes()
    assert sdi_gs("export", whole, "--format", "splat", "--out", splat).code == 0
    assert splat.stat().st_size == 32 * len(read_ply(ply))
    said = sdi_gs("export", whole, "--out", ply)
    assert said.code == 2
    assert "--force" in said.err
    assert sdi_gs("export", whole, "--out", ply, "--force").code == 0


def test_a_run_may_start_from_a_splat_file(
    sdi_gs: Run, fast: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it can be resumed after that file is gone."""
    start = tmp_path / "start.ply"
    start.write_bytes((whole / "final.ply").read_bytes())
    out = tmp_path / "r"
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 0, interrupt)
        command = ("generate", "a red mug", "--config", fast, "--init", "start.ply", "--out", out)
        assert sdi_gs(*command).code == 130
    first = json.loads((out / "stats.jsonl").read_text().splitlines()[0])
    assert first["size"] + first["removed"] - first["added"] == len(read_ply(start))
    start.unlink()
    said = sdi_gs("resume", out)
    assert said.code == 0, said.err


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("name", guidances())
def test_every_method_runs_and_its_run_replays(
    sdi_gs: Run, fast: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "run"
    said = sdi_gs("generate", "a mug", "--config", fast, "--guidance", name, "--out", out)
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    moved = [row["losses"]["guidance"] for row in rows]
    assert len(set(moved)) == 6
    again = tmp_path / "again"
    assert sdi_gs("generate", "--config", out / "config.yaml", "--out", again).code == 0
    assert same(state(out), state(again))


@pytest.mark.parametrize(
    ("method", "learner", "part"), [("vsd", "learner", "up"), ("stein_depth", "estimator", "bias")]
)
def test_a_method_that_learns_resumes_with_what_it_learned(
    method: str, learner: str, part: str, sdi_gs: Run, fast: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    command = ("generate", "a mug", "--config", fast, "--guidance", method, "update.rate=0.01")
    assert sdi_gs(*command, "--out", whole).code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 2, interrupt)
        assert sdi_gs(*command, "--out", out).code != 0
    assert sdi_gs("resume", out).code == 0
    assert (out / "final.ply").read_bytes() == (whole / "final.ply").read_bytes()
    learned = [checkpoint.newest(run / "checkpoints")[0].guidance for run in (out, whole)]
    assert same(*learned)
    weights = learned[0][learner]["weights"]
    assert any(float(value.abs().max()) > 0 for name, value in weights.items() if part in name)
