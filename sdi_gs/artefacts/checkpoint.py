# SPDX-License-Identifier: Apache-2.0
"""Files that continue a run bit for bit: written whole or not at all, read without pickle.

A file is one line of text and a ``torch.save``::

    sdi-gs checkpoint 2 <length of the rest in bytes> <its SHA-256 in hexadecimal>\\n

The sum is compared before anything looks into the rest, so that a damaged file is refused whatever
the damage; files of version 1 are the rest alone, with the sums that a zip archive has. The rest
holds tensors and plain data only: ``weights_only=True`` reads it, and opening somebody else's
checkpoint runs none of their code. What a file claims to hold is compared with its length before it
is read.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from representations.files import write_atomically
from representations.ops import card

from ..config import Config
from ..errors import UserError, command, first_line
from . import archive

FORMAT = "sdi-gs checkpoint"
VERSION = 2
KEPT = 2
"""So many of the newest files stay: when the last one turns out to be damaged, there is another."""

_KINDS = {"step": int, "config": dict, "renderer": dict, "guidance": dict, "rng": Tensor,
          "seconds": int | float}  # fmt: skip
_NAME = re.compile(r"step_(\d+)\.pt")
_HEAD = re.compile(rb"sdi-gs checkpoint (\d{1,9}) (\d{1,15}) ([0-9a-f]{64})\n")
_LONGEST_HEAD = 128  # bytes
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps."""

    step: int  # how many steps are done; the next one has this index
    config: dict[str, Any]  # plain data, as config.to_plain gives it
    renderer: dict[str, Any]  # Renderer.state_dict()
    guidance: dict[str, Any]  # Guidance.state_dict(), empty when it learns nothing
    rng: Tensor  # state of the run's one generator
    seconds: float  # wall-clock seconds spent so far, resumed runs included


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step_<n>.pt`` and keep the file before it; older ones go, and so do files of
    later steps, which are of a future that was given up. Failing leaves what was there.

    A file holds every parameter with its two moments of Adam: the paper's radiance field takes
    151 MB, splats take 0.17 (one colour) to 0.71 kB (third degree) each. There are two, and three
    while the newest is written. On a disk that is too full for three the older of the two goes
    first, once the newer one is seen to be whole; so a run needs the room of two and no more.

    Raises CheckpointError when the disk refuses; it says what is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name_of(checkpoint.step)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **vars(checkpoint)}, buffer)
    body = buffer.getbuffer()
    head = f"{FORMAT} {VERSION} {len(body)} {hashlib.sha256(body).hexdigest()}\n".encode()

    def write(stream: BinaryIO) -> None:
        stream.write(head)
        stream.write(body)

    try:
        try:
            write_atomically(path, write)
        except OSError as error:
            if error.errno not in _FULL or not _make_room(folder, path):
                raise
            write_atomically(path, write)
    except OSError as error:
        kept = latest(folder)
        intact = f"{kept} is intact" if kept else "no earlier checkpoint exists"
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} could not be written to {folder}: "
            f"{error.strerror or error} ({len(body):,} bytes needed); {intact}"
        ) from error
    for later in _all(folder)[_all(folder).index(path) + 1 :]:
        later.unlink(missing_ok=True)
    drop_old(folder)
    return path


def drop_old(folder: Path) -> None:
    """Keep the newest :data:`KEPT` files; a process that was killed may have left one more."""
    for older in _all(folder)[:-KEPT]:
        older.unlink(missing_ok=True)


def _make_room(folder: Path, path: Path) -> bool:
    """Drop all but the newest whole file, which must not be ``path`` itself; whether any went."""
    others = [other for other in _all(folder) if other != path]
    whole = next((other for other in reversed(others) if _is_whole(other)), None)
    spare = [other for other in others if other != whole] if whole is not None else []
    for other in spare:
        other.unlink(missing_ok=True)
    return bool(spare)


def newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint of ``folder`` that can be read, and a sentence about each newer one
    that cannot: which file, and why.

    Raises CheckpointError when there is none at all, and when none of them can be read.
    """
    passed: list[str] = []
    for path in reversed(_all(folder)):
        try:
            return load(path), passed
        except CheckpointError as error:
            passed.append(str(error))
    again = command("generate", "--config", folder.parent / "config.yaml")
    if not passed:
        raise CheckpointError(f"{folder.parent} has no checkpoint yet; start again with: {again}")
    raise CheckpointError("; ".join([*passed, f"no other is there; start again with: {again}"]))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint of version 1 or 2; any other file is refused with the reason, and one that
    claims more than it holds before that is read."""
    try:
        with path.open("rb") as stream:
            version = _require_whole(path, stream)
            payload = archive.load(stream, sums=version == 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make an unpickler fail in any way there is
        raise CheckpointError(
            f"{path} is not a complete sdi-gs checkpoint ({first_line(error)})"
        ) from None
    return _checked(path, payload, version)


def _require_whole(path: Path, stream: io.BufferedReader) -> int:
    """The version of the file that was just opened; ``stream`` is left where the torch.save
    begins. CheckpointError when the bytes are not those that were written."""
    first = stream.read(_LONGEST_HEAD)
    head = _HEAD.match(first)
    if head is None:
        if not first.startswith(b"PK"):
            raise CheckpointError(
                f"{path} is not a complete sdi-gs checkpoint (it does not begin like one)"
            )
        stream.seek(0)
        return 1
    version, length, told = int(head[1]), int(head[2]), head[3].decode()
    stream.seek(head.end())
    held = path.stat().st_size - head.end()
    if held != length:
        raise CheckpointError(
            f"{path} is not a complete sdi-gs checkpoint ({held:,} of {length:,} bytes)"
        )
    if hashlib.file_digest(stream, "sha256").hexdigest() != told:
        raise CheckpointError(
            f"{path} is not a complete sdi-gs checkpoint (its check sum does not fit: bytes have "
            "changed since it was written)"
        )
    stream.seek(head.end())
    return version


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return _require_whole(path, stream) > 1 or bool(load(path))
    except (OSError, CheckpointError):
        return False


def _checked(path: Path, payload: Any, version: int) -> Checkpoint:
    """What was read, if it is what a run leaves."""
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by sdi-gs")
    written = payload.get("version")
    if version == 1 and written == VERSION:
        raise CheckpointError(
            f"{path} lacks its first line, which has the check sum: it is damaged"
        )
    if written != version or version > VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {written!r}, and this sdi-gs reads "
            f"versions up to {VERSION}: resume with the sdi-gs that wrote it; the run's final.ply, "
            "if there is one, can still start a new run with --init"
        )
    names = Checkpoint.__dataclass_fields__
    missing = [name for name in names if name not in payload]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it is damaged")
    wrong = [
        name
        for name, kind in _KINDS.items()
        if not isinstance(payload[name], kind) or isinstance(payload[name], bool)
    ]
    if wrong:
        raise CheckpointError(f"{path} holds something else in {', '.join(wrong)}: it is damaged")
    found = Checkpoint(**{name: payload[name] for name in names})
    steps = found.config.get("steps", Config.model_fields["steps"].default)
    if not isinstance(steps, int) or not 0 <= found.step <= steps:
        raise CheckpointError(
            f"{path} is of step {found.step!r} of a run of {steps!r} steps: it is damaged"
        )
    if not (math.isfinite(found.seconds) and found.seconds >= 0):
        raise CheckpointError(f"{path} says that {found.seconds} seconds were spent: it is damaged")
    try:
        torch.Generator().set_state(found.rng)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no state of a random generator ({first_line(error)}): it is damaged"
        ) from None
    return found


@contextmanager
def fitting(saved: Checkpoint) -> Iterator[None]:
    """Around the places where parts of ``saved`` are given to what they belong to: what does not
    fit there is a CheckpointError, whatever torch calls it."""
    name = f"checkpoint {name_of(saved.step)}"
    try:
        yield
    except (ValueError, UserError) as error:
        raise CheckpointError(f"{name}: {error}") from error
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        if card.out_of_memory(error) or card.lost(error):
            raise
        told = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(f"{name}: its state does not fit this run: {told}") from error


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = _all(folder)
    return found[-1] if found else None


def name_of(step: int) -> str:
    return f"step_{step:07d}.pt"


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if _NAME.fullmatch(path.name)),
        key=lambda path: int(_NAME.fullmatch(path.name)[1]),  # type: ignore[index]
    )
