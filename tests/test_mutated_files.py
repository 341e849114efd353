# SPDX-License-Identifier: Apache-2.0
"""17,500 damaged files: each is read whole and finite, or refused with the reason; nothing else.

The damage is drawn from a seed per file, so that a failure names the file that caused it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from representations.cloud import SplatCloud
from representations.export import (
    SplatFileError,
    packed,
    read_ply,
    read_splat,
    write_ply,
    write_splat,
)
from representations.reading import read_splats
from sdi_gs.artefacts import checkpoint
from sdi_gs.artefacts.checkpoint import Checkpoint, CheckpointError

from .representations.test_reading import ksplat, sog

gsply = pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")

COUNTS = {
    "ply": 5000, "splat": 2000, "checkpoint": 3000, "compressed.ply": 1500, "spz": 1500,
    "v4.spz": 1500, "ksplat": 1500, "sog": 1500,
}  # fmt: skip
BATCHES = 10  # a failing tenth is found sooner
WORDS = (b"float", b"double", b"uchar", b"list uchar int", b"vertex", b"chunk", b"ascii",
         b"binary_big_endian", b"-1", b"999999999999", b"f_rest_44", b"nan", b"")  # fmt: skip


def cloud(count: int = 5, rest: int = 3) -> SplatCloud:
    rng = torch.Generator().manual_seed(0)
    return SplatCloud(
        means=torch.randn(count, 3, generator=rng),
        log_scale=torch.randn(count, 3, generator=rng) - 3,
        quat_wxyz=torch.randn(count, 4, generator=rng),
        opacity_logit=torch.randn(count, generator=rng) + 2,
        sh_dc=torch.randn(count, 3, generator=rng),
        sh_rest=0.1 * torch.randn(count, rest, 3, generator=rng),
    )


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three wounds of the kinds that disks, networks and other programs inflict."""
    for _ in range(int(rng.integers(1, 4))):
        data = _wound(data, rng)
    return data


def _wound(data: bytes, rng: np.random.Generator) -> bytes:
    if not data:
        return data
    raw, size = bytearray(data), len(data)
    a, b = sorted(int(x) for x in rng.integers(0, size + 1, size=2))
    # Headers are short, and the most can go wrong in them.
    near = int(rng.integers(0, min(size, 700)))
    match int(rng.integers(9)):
        case 0:  # flipped bits
            for at in rng.integers(0, size, size=int(rng.integers(1, 9))):
                raw[int(at)] ^= 1 << int(rng.integers(8))
        case 1:
            raw[near] = int(rng.integers(256))
        case 2:  # cut off
            raw = raw[:a]
        case 3:  # a piece is missing
            raw = raw[:a] + raw[b:]
        case 4:  # a piece stands twice
            raw = raw[:b] + raw[a:]
        case 5:  # noise in the middle
            raw = raw[:a] + bytearray(rng.bytes(int(rng.integers(1, 40)))) + raw[a:]
        case 6:  # zeros, as an unfinished copy leaves them
            raw[a:b] = bytes(b - a)
        case 7:  # a word of the header becomes another
            words = bytes(raw[:700]).split(b" ")
            words[int(rng.integers(len(words)))] = WORDS[int(rng.integers(len(WORDS)))]
            raw = bytearray(b" ".join(words)) + raw[700:]
        case _:  # numbers that are none
            at = int(rng.integers(0, max(1, size - 4)))
            value = (np.nan, np.inf, -np.inf, 1e38, -0.0)[int(rng.integers(5))]
            raw[at : at + 4] = np.float32(value).tobytes()
    return bytes(raw)


def original(kind: str, folder: Path) -> bytes:
    path = folder / f"whole.{kind}"
    match kind:
        case "ply":
            write_ply(path, cloud())
        case "splat":
            write_splat(path, cloud(rest=0))
        case "compressed.ply":
            packed.write_compressed_ply(path, cloud())
        case "spz" | "v4.spz":
            data = gsply.GSData.from_arrays(**packed._columns(cloud()), shN=cloud().sh_rest.numpy())
            gsply.write_spz(path, data, version=3 if kind == "spz" else 4)
        case "ksplat":
            path.write_bytes(ksplat(cloud(), 2, 1))
        case "sog":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in sog(cloud(), 2).items():
                    archive.writestr(name, data)
        case _:
            state = {"means": torch.randn(4, 3), "deep": [{"name": "a", "rate": 0.1}]}
            whole = Checkpoint(
                3, {"prompt": "a mug"}, state, {}, torch.Generator().get_state(), 1.5
            )
            buffer = io.BytesIO()
            # Of the first version, which has no check sum of the whole.
            payload = {"format": checkpoint.FORMAT, "version": 1, **vars(whole)}
            torch.save(payload, buffer)
            path.write_bytes(buffer.getvalue())
    return path.read_bytes()


READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "ply": (read_ply, SplatFileError),
    "splat": (read_splat, SplatFileError),
    "checkpoint": (checkpoint.load, CheckpointError),
    **{
        kind: (lambda path: read_splats(path).cloud, SplatFileError)
        for kind in ("compressed.ply", "spz", "v4.spz", "ksplat", "sog")
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("kind", COUNTS)
def test_a_damaged_file_is_refused_or_read_whole(kind: str, batch: int, tmp_path: Path) -> None:
    whole = original(kind, tmp_path)
    read, refusal = READERS[kind]
    path = tmp_path / f"damaged.{kind}"
    refused = 0
    each = COUNTS[kind] // BATCHES
    for number in range(batch * each, (batch + 1) * each):
        damaged = damage(whole, np.random.default_rng([number, len(kind)]))
        path.write_bytes(damaged)
        try:
            found = read(path)
        except refusal as error:
            refused += 1
            if str(path) not in str(error):
                pytest.fail(f"file {number} of {kind}: the message names no file: {error}")
        except Exception as error:
            pytest.fail(f"file {number} of {kind}: {type(error).__name__}: {error}")
        else:
            if isinstance(found, SplatCloud):
                assert len(found) >= 1, f"file {number}"
                assert bool(found.finite().all()), f"file {number}"
            else:
                assert isinstance(found, Checkpoint)
        assert path.read_bytes() == damaged
    assert 0 < refused < each or kind in ("checkpoint", "spz", "v4.spz", "sog")  # with check sums
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"damaged.{kind}", f"whole.{kind}"]


def test_the_untouched_files_are_read(tmp_path: Path) -> None:
    for kind, (read, _) in READERS.items():
        original(kind, tmp_path)
        read(tmp_path / f"whole.{kind}")


@pytest.mark.parametrize("field", ["step", "config", "renderer", "guidance", "rng", "seconds"])
def test_a_checkpoint_with_something_else_in_a_field_is_refused(field: str, tmp_path: Path) -> None:
    whole = torch.load(io.BytesIO(original("checkpoint", tmp_path)), weights_only=True)
    path = tmp_path / "odd.pt"
    torch.save({**whole, field: "a word"}, path)
    with pytest.raises(CheckpointError, match=f"something else in {field}"):
        checkpoint.load(path)
