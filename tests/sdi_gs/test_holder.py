# SPDX-License-Identifier: Apache-2.0
"""One process writes in a folder at a time, and what a dead one left is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from representations import files
from representations.files import Unwritable, is_litter, open_own, sweep, write_bytes
from sdi_gs.artefacts import holder
from sdi_gs.artefacts.claim import claimed, require_free
from sdi_gs.artefacts.holder import FILE, held, living
from sdi_gs.errors import RunFailure, UserError
from sdi_gs.experiments import study

from ..stopping import stop_at

Run = Callable[..., Any]
DEAD = 2**22 + 1  # above what a process number can be


def name_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text())
    return found


def test_a_second_holder_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    with held(tmp_path, "generate"):
        assert name_in(tmp_path)["pid"] == os.getpid()
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} on .* \(generate, since 2"),
            held(tmp_path, "resume"),
        ):
            pass
        assert living(tmp_path) is not None
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path, "resume"):
        pass


@pytest.mark.parametrize("changed", [{"pid": DEAD}, {"started": "1"}])
def test_a_dead_holder_of_this_machine_is_known_by_its_process(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Gone; or the number belongs to a process that was started later."""
    with held(tmp_path, "generate"):
        left = name_in(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({**left, **changed}))
    assert living(tmp_path) is None
    with held(tmp_path, "resume"):
        assert name_in(tmp_path)["verb"] == "resume"
    assert list(tmp_path.iterdir()) == []


def test_a_holder_of_another_machine_is_known_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "WATCHED", 0.1)
    with held(tmp_path, "generate"):
        left = name_in(tmp_path)
    path = tmp_path / FILE
    path.write_text(json.dumps({**left, "machine": "elsewhere", "host": "node7", "pid": DEAD}))
    with pytest.raises(UserError, match="stop it on node7"), held(tmp_path, "resume"):
        pass
    silent = time.time() - holder.SILENCE - 1.0
    os.utime(path, (silent, silent))
    with held(tmp_path, "resume"):
        assert name_in(tmp_path)["verb"] == "resume"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_neither_kills_a_holder_nor_keeps_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Of a machine whose own clock the file system takes over."""
    monkeypatch.setattr(holder, "WATCHED", 0.5)
    monkeypatch.setattr(holder, "_LOOK", 0.02)
    with held(tmp_path, "generate"):
        left = name_in(tmp_path)
    path = tmp_path / FILE
    path.write_text(json.dumps({**left, "machine": "elsewhere", "host": "node7", "pid": DEAD}))
    over = threading.Event()

    def beats() -> None:
        count = 0
        while not over.wait(0.05):
            count += 1
            there = time.time() + 3600 * hours + count
            os.utime(path, (there, there))

    beating = threading.Thread(target=beats)
    beating.start()
    time.sleep(0.1)
    with pytest.raises(holder.Held, match="node7"), held(tmp_path, "resume"):
        pass
    over.set()
    beating.join()
    with held(tmp_path, "resume"):
        assert name_in(tmp_path)["verb"] == "resume"


def test_a_living_holder_gives_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "BEAT", 0.02)
    with held(tmp_path, "generate"):
        os.utime(tmp_path / FILE, (0, 0))
        until = time.monotonic() + 10.0
        while (tmp_path / FILE).stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / FILE).stat().st_mtime > 0


def test_who_was_taken_over_writes_no_more(tmp_path: Path) -> None:
    with held(tmp_path, "generate") as hold:
        hold.require()
        other = json.dumps({**name_in(tmp_path), "token": "another", "host": "node7"})
        (tmp_path / FILE).write_text(other)
        with pytest.raises(RunFailure, match=r"taken over by process .* on node7"):
            hold.require()
    assert (tmp_path / FILE).read_text() == other  # and lets the other one's name be


@pytest.mark.parametrize("bad", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_a_file_without_a_name_holds_nothing(
    tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "_UNNAMED", 0.05)
    (tmp_path / FILE).write_text(bad)
    assert living(tmp_path) is None
    with held(tmp_path, "resume"):
        assert name_in(tmp_path)["verb"] == "resume"


def test_patience_waits_for_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "_LOOK", 0.05)
    child = subprocess.Popen(["sleep", "0.3"])
    with held(tmp_path, "generate"):
        left = name_in(tmp_path)
    left |= {"pid": child.pid, "started": files.started(child.pid)}
    (tmp_path / FILE).write_text(json.dumps(left))
    with pytest.raises(UserError), held(tmp_path, "study"):
        pass
    with held(tmp_path, "study", patience=20.0):  # it ends, and nobody has asked how yet
        pass
    child.wait()


def _race(folder: Path, at: float, won: Any, over: Any, links: bool) -> None:
    if not links:
        os.link = _no_links
    while time.monotonic() < at:
        pass
    try:
        with held(folder, "race"):
            won.put(os.getpid())
            over.wait(60)
    except UserError:
        won.put(0)


def _no_links(*_: object) -> None:
    raise OSError(95, "Operation not supported")


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("dead", [False, True])
def test_of_processes_that_start_at_one_instant_one_holds(
    tmp_path: Path, links: bool, dead: bool
) -> None:
    """Also where all of them find a dead one, and where a file system has no links."""
    if dead:
        with held(tmp_path, "generate"):
            left = name_in(tmp_path)
        (tmp_path / FILE).write_text(json.dumps({**left, "pid": DEAD}))
    fork = multiprocessing.get_context("fork")
    won, over = fork.Queue(), fork.Event()
    words = (tmp_path, time.monotonic() + 0.1, won, over, links)
    processes = [fork.Process(target=_race, args=words) for _ in range(6)]
    for process in processes:
        process.start()
    found = [won.get(timeout=60) for _ in processes]
    over.set()
    for process in processes:
        process.join()
    assert sum(pid != 0 for pid in found) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_claim_takes_away_what_nothing_was_begun_in(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "folder"
    with pytest.raises(RuntimeError, match="no model"), claimed(out, "x", "generate"):
        raise RuntimeError("no model")
    assert not (tmp_path / "deep").exists()
    with claimed(out, "x", "generate") as claim:
        (claim.path / "config.yaml").write_text("")
    assert [path.name for path in out.iterdir()] == ["config.yaml"]
    with pytest.raises(UserError, match="it is a run: continue it"), claimed(out, "x", "generate"):
        pass


def test_what_cannot_go_on_is_all_or_nothing(tmp_path: Path) -> None:
    """Files of a verb that failed go, and nobody else's do."""
    out = tmp_path / "x"

    def fail() -> None:
        patterns = ("*.png", "checkpoints/step_*.pt")
        with claimed(out, "x", "generate2d", all_or_none=patterns) as claim:
            write_bytes(claim.path / "pictures.png", b"1")
            write_bytes(claim.path / "checkpoints" / "step_1.pt", b"1")
            (claim.path / "notes.txt").write_text("mine")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_a_folder_whose_first_file_found_no_room_goes_too(tmp_path: Path) -> None:
    def fail() -> None:
        patterns = ("checkpoints/step_*.pt",)
        with claimed(tmp_path / "x", "x", "convert", all_or_none=patterns) as claim:
            (claim.path / "checkpoints").mkdir()
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert not (tmp_path / "x").exists()


def test_names_without_out_are_never_shared(tmp_path: Path) -> None:
    with (
        claimed(None, "A red mug!", "generate", tmp_path) as one,
        claimed(None, "A red mug!", "generate", tmp_path) as other,
    ):
        assert [one.path.name, other.path.name] == ["a-red-mug-1", "a-red-mug-2"]


def test_what_a_dead_process_left_is_no_content(tmp_path: Path) -> None:
    litter = tmp_path / f".config.yaml.{files.machine()}-{DEAD}.abcdefgh.tmp"
    litter.write_text("ver")
    with held(tmp_path, "generate"):
        left = name_in(tmp_path)
    litter.write_text("ver")
    (tmp_path / FILE).write_text(json.dumps({**left, "pid": DEAD}))
    require_free(tmp_path)
    with claimed(tmp_path, "x", "generate"):
        assert not litter.exists()
    (tmp_path / ".mine.tmp").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        require_free(tmp_path)


def test_the_draft_of_a_process_that_is_refused_is_no_content(tmp_path: Path) -> None:
    """It lies there for a moment, while the one that holds the folder looks whether it is empty."""
    draft = files.temporary_name(tmp_path / FILE)
    draft.write_text("{}")
    with claimed(tmp_path, "x", "generate"):
        pass
    with study.opened(tmp_path, "table"):
        pass
    assert draft.exists()


def test_a_folder_that_its_maker_took_away_again_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "x", holder._take
    gone: list[Path] = []

    def take(folder: Path, me: holder.Holder) -> holder.Holder | None:
        if not gone:
            gone.append(folder)
            folder.rmdir()
        return real(folder, me)

    monkeypatch.setattr(holder, "_take", take)
    with claimed(out, "x", "generate") as claim:
        assert claim.path.is_dir()
    assert gone == [out]


def test_only_litter_of_the_dead_is_swept(tmp_path: Path) -> None:
    def name(machine: str, pid: int) -> Path:
        path = tmp_path / f".final.ply.{machine}-{pid}.abcdefgh.tmp"
        path.write_text("")
        return path

    mine, dead = name(files.machine(), os.getpid()), name(files.machine(), DEAD)
    young, old = name("0123abcd", 7), name("0123abcd", 8)
    os.utime(old, (0, 0))
    user = tmp_path / ".notes.txt.tmp"
    user.write_text("mine")
    assert set(sweep(tmp_path)) == {dead, old}
    assert mine.exists()
    assert young.exists()
    assert user.exists()
    assert is_litter(dead)


def test_a_process_that_dies_in_a_write_leaves_what_sweep_finds(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom representations.files import write_atomically\n"
        "def write(stream):\n    stream.write(b'half'); stream.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_atomically({str(tmp_path / 'final.ply')!r}, write)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert sweep(tmp_path) == [left]


def test_a_link_is_replaced_or_refused_and_never_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "thesis.tex", tmp_path / "stats.jsonl"
    target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic|Too many levels"):
        open_own(link)
    write_bytes(link, b"ours")
    assert link.read_bytes() == b"ours"
    assert target.read_text() == "mine"


def test_what_cannot_be_written_has_its_own_name_and_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable) as caught:
        write_bytes(tmp_path / "file" / "below.ply", b"12345")
    assert caught.value.filename == str(tmp_path / "file" / "below.ply")
    assert caught.value.needed == 5


def test_a_command_is_refused_before_anything_is_loaded(
    sdi_gs: Run, fast: Path, tmp_path: Path, interrupted: Run
) -> None:
    """generate, resume and table1 beside a living holder; readers are not in its way."""
    run = tmp_path / "r"
    interrupted("generate", "a mug", "--config", fast, "--out", run)
    files_before = {path.name for path in run.iterdir()}
    table = tmp_path / "t"
    table.mkdir()
    with held(run, "resume"), held(table, "table"):
        for words in (
            ("generate", "a mug", "--config", fast, "--out", run),
            ("resume", run),
            ("table1", "a mug", "--representations", fast, "--guidances", "sdi", "--out", table),
            ("compare", "a mug", "--representations", fast, "--out", table),
        ):
            said = sdi_gs(*words)
            assert said.code == 2, said
            assert "is held by process" in said.err
            assert "loading" not in said.out
        assert sdi_gs("render", run, "--out", tmp_path / "drawn").code == 0
    assert {path.name for path in run.iterdir()} == files_before
    assert sdi_gs("resume", run).code == 0


def test_readers_beside_a_running_run_change_nothing_in_its_end(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """export, render, report, view and evaluate look while it is between two steps: what they see
    is whole, and the run ends with the same bytes as one that nobody looked at."""
    from sdi_gs import open_asset
    from sdi_gs.errors import UserError
    from sdi_gs.evaluation.protocol import _require_finished
    from sdi_gs.look import reopen
    from sdi_gs.pages.run import write

    alone, watched = tmp_path / "alone", tmp_path / "watched"
    assert sdi_gs("generate", "a mug", "--config", fast, "--out", alone, "--seed", 3).code == 0
    seen: list[str] = []

    def look() -> None:
        before = (watched / ".holder.json").read_bytes()
        asset = open_asset(watched)
        asset.save(tmp_path / "beside.ply")
        asset.turntable(tmp_path / "beside.gif", frames=2, size=32)
        write([watched], tmp_path / "beside.html")
        reopen(watched)  # as 'view' does, again and again
        with pytest.raises(UserError, match="never finished"):
            _require_finished(watched)
        assert (watched / ".holder.json").read_bytes() == before
        seen.append("not finished: 5 of 6" if "5 of 6" in (tmp_path / "beside.html").read_text()
                    else "?")  # fmt: skip

    with monkeypatch.context() as patch:
        stop_at(patch, 4, look)  # after the checkpoint of step 4
        said = sdi_gs("generate", "a mug", "--config", fast, "--out", watched, "--seed", 3)
    assert (said.code, seen) == (0, ["not finished: 5 of 6"]), said.err
    assert (watched / "final.ply").read_bytes() == (alone / "final.ply").read_bytes()
    assert sorted(path.name for path in watched.iterdir()) == sorted(
        path.name for path in alone.iterdir()
    )
