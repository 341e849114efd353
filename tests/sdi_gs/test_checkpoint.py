# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: two of them, each with a check sum, and none that takes more than it holds."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdi_gs.artefacts import archive, checkpoint
from sdi_gs.artefacts.checkpoint import Checkpoint, CheckpointError

WHOLE = Checkpoint(
    step=3,
    config={"prompt": "a mug", "steps": 40},
    renderer={"means": torch.arange(12.0).reshape(4, 3), "deep": [{"name": "a", "rate": 0.1}]},
    guidance={},
    rng=torch.Generator().manual_seed(7).get_state(),
    seconds=1.5,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def version_1(saved: Checkpoint, **changed: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "version": 1, **vars(saved), **changed}, buffer)
    return buffer.getvalue()


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.step == other.step
        and one.config == other.config
        and one.seconds == other.seconds
        and torch.equal(one.rng, other.rng)
        and torch.equal(one.renderer["means"], other.renderer["means"])
        and one.renderer["deep"] == other.renderer["deep"]
    )


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    assert equal(checkpoint.load(checkpoint.save(tmp_path, WHOLE)), WHOLE)
    (tmp_path / "old.pt").write_bytes(version_1(WHOLE))
    assert equal(checkpoint.load(tmp_path / "old.pt"), WHOLE)


def test_no_flipped_bit_is_accepted(tmp_path: Path) -> None:
    """A bit of every 7th byte, and every bit of the first line."""
    path = checkpoint.save(tmp_path, WHOLE)
    data = path.read_bytes()
    head = data.index(b"\n") + 1
    places = [(at, bit) for at in range(head) for bit in range(8)]
    places += [(at, at % 8) for at in range(head, len(data), 7)]
    for at, bit in places:
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="step_0000003"):
            checkpoint.load(path)
    path.write_bytes(data)
    assert equal(checkpoint.load(path), WHOLE)


def test_no_flipped_bit_of_the_numbers_of_an_old_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "step_0000003.pt"
    data = version_1(WHOLE)
    first = data.index(WHOLE.renderer["means"].numpy().tobytes())
    for at in range(first, first + 48):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="check sum"):
            checkpoint.load(path)


def test_a_file_whose_first_line_is_gone_is_no_old_one(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, WHOLE)
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    with pytest.raises(CheckpointError, match="lacks its first line"):
        checkpoint.load(path)


def test_the_two_newest_stay_and_a_future_that_was_given_up_goes(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, replace(WHOLE, step=step))
    assert names(tmp_path) == ["step_0000020.pt", "step_0000030.pt"]
    (tmp_path / "step_0000030.pt").write_bytes(b"damaged")
    checkpoint.save(tmp_path, replace(WHOLE, step=25))
    assert names(tmp_path) == ["step_0000020.pt", "step_0000025.pt"]


def test_the_newest_that_is_whole(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = run / "checkpoints"
    with pytest.raises(CheckpointError, match=r"has no checkpoint yet.*generate --config"):
        checkpoint.newest(folder)
    for step in (10, 20):
        checkpoint.save(folder, replace(WHOLE, step=step))
    saved, passed = checkpoint.newest(folder)
    assert (saved.step, passed) == (20, [])
    newer = folder / "step_0000020.pt"
    newer.write_bytes(newer.read_bytes()[:-1])
    saved, passed = checkpoint.newest(folder)
    assert saved.step == 10
    assert len(passed) == 1
    assert str(newer) in passed[0]
    assert "bytes" in passed[0]
    (folder / "step_0000010.pt").write_bytes(b"")
    with pytest.raises(CheckpointError) as refused:
        checkpoint.newest(folder)
    for word in (str(newer), "step_0000010.pt", "generate --config", str(run / "config.yaml")):
        assert word in str(refused.value)


class Disk:
    """A disk with room for that many checkpoints, the one that is being written included."""

    def __init__(self, folder: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.room, self.real = folder, room, os.fsync
        self.most = 0
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle: int) -> None:
        self.real(handle)
        held = len(list(self.folder.iterdir()))
        if held > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.most = max(self.most, held)


@pytest.mark.parametrize(("room", "kept"), [(3, (30, 40)), (2, (30, 40)), (1, (10,))])
def test_a_disk_with_little_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, kept: tuple[int, ...]
) -> None:
    """Room for two is enough, and nothing is dropped before the one after it is whole."""
    disk = Disk(tmp_path, room, monkeypatch)
    for step in (10, 20, 30, 40):
        if room == 1 and step > 10:
            with pytest.raises(CheckpointError, match=r"step_0000010\.pt is intact"):
                checkpoint.save(tmp_path, replace(WHOLE, step=step))
        else:
            checkpoint.save(tmp_path, replace(WHOLE, step=step))
        assert checkpoint.newest(tmp_path)[0].step == (step if room > 1 else 10)
    assert names(tmp_path) == [f"step_{step:07d}.pt" for step in kept]
    assert disk.most == room


def test_room_is_not_made_of_the_only_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, replace(WHOLE, step=step))
    (tmp_path / "step_0000020.pt").write_bytes(b"damaged")
    Disk(tmp_path, 2, monkeypatch)
    checkpoint.save(tmp_path, replace(WHOLE, step=25))
    assert names(tmp_path) == ["step_0000010.pt", "step_0000025.pt"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"step": -1}, "step -1 of a run of 40 steps"),
        ({"step": 41}, "step 41 of a run of 40 steps"),
        ({"step": True}, "something else in step"),
        ({"config": {}, "step": 10_001}, "step 10001 of a run of 10000 steps"),
        ({"config": {"steps": "many"}}, "of a run of 'many' steps"),
        ({"seconds": float("nan")}, "nan seconds"),
        ({"seconds": -1.0}, "-1.0 seconds"),
        ({"rng": torch.zeros(3)}, "no state of a random generator"),
    ],
)
def test_what_no_run_leaves(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    path = checkpoint.save(tmp_path, WHOLE)
    path.write_bytes(version_1(WHOLE, **changed))
    with pytest.raises(CheckpointError, match=told):
        checkpoint.load(path)


def compressed() -> bytes:
    """Half a gigabyte of zeros in half a megabyte."""
    whole = io.BytesIO(version_1(WHOLE))
    packed = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith("data/0"):
                data = bytes(2**29)
            target.writestr(member.filename, data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def doubled() -> list[Any]:
    """Thirty lists that unfold into a thousand million."""
    value: list[Any] = []
    for _ in range(30):
        value = [value, value]
    return value


class Buffer:
    def __reduce__(self) -> tuple[Any, ...]:
        return (bytearray, (2**40,))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (compressed, "torch.save compresses nothing"),
    "one value for many": (
        lambda: version_1(WHOLE, renderer={"means": torch.zeros(1).expand(2**40)}), "unfolds",
    ),
    "lists of lists": (lambda: version_1(WHOLE, config={"steps": 40, "x": doubled()}), "unfolds"),
    "a buffer": (lambda: version_1(WHOLE, guidance={"x": Buffer()}), "bytearray"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_unfolds_into_more_than_it_holds(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, told = BOMBS[name]
    path = tmp_path / "step_0000003.pt"
    path.write_bytes(make())
    if told != "unfolds":  # refused before torch sees it

        def seen(*_: object, **__: object) -> None:
            pytest.fail("it was read")

        monkeypatch.setattr(torch, "load", seen)
    with pytest.raises(CheckpointError, match=told):
        checkpoint.load(path)


def test_the_limits_are_for_bombs_only(tmp_path: Path) -> None:
    """A row that stands for many is read as long as those many are no burden."""
    rows = torch.zeros(1).expand(archive.SPARE // 8)
    path = checkpoint.save(tmp_path, replace(WHOLE, guidance={"rows": rows}))
    assert checkpoint.load(path).guidance["rows"].shape == rows.shape
