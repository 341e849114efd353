# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all, and what a dead process left half-written is found."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_LITTER = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.[a-z0-9_]{8}\.tmp")
_LEFT_BEHIND = 24 * 3600.0  # seconds after which another machine's temporary file is litter
_LONGEST = 100  # letters of a name that its temporary neighbour repeats


class Unwritable(OSError):
    """A file that could not be written: ``filename`` is its final name, ``needed`` its bytes where
    they are known."""

    needed: int | None = None


def write_atomically(
    path: str | Path, write: Callable[[BinaryIO], object], needed: int | None = None
) -> Path:
    """Let ``write`` fill a temporary neighbour of ``path``, then move it into place; folders on the
    way are made. A write that fails leaves what was there before, and no litter. A symbolic link at
    ``path`` is replaced, never followed.

    Raises:
        Unwritable: whatever the system refused, with the name ``path`` and ``needed`` bytes.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        refused = Unwritable(error.errno, error.strerror or str(error), str(path))
        refused.needed = needed
        raise refused from error
    _sync_folder(path.parent)
    return path


def write_bytes(path: str | Path, data: bytes | memoryview) -> Path:
    """Replace ``path`` by ``data``; see :func:`write_atomically`."""
    size = memoryview(data).nbytes
    return write_atomically(path, lambda stream: stream.write(data), needed=size)


def temporary_name(path: Path) -> Path:
    """A neighbour of ``path`` that nobody has, and that :func:`is_litter` knows once this process
    is gone."""
    return path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.tmp")


def _prefix(path: Path) -> str:
    return f".{path.name[:_LONGEST]}.{machine()}-{os.getpid()}."


def open_own(path: Path, mode: str = "a") -> int:
    """A handle to append to ("a") or to begin ("w") a file of ours, made where it is missing. A
    symbolic link is refused with an OSError: what it points to is somebody else's."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC)
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def is_litter(path: Path) -> bool:
    """Whether a temporary file was left half-written by a process that is gone."""
    found = _LITTER.fullmatch(path.name)
    if found is None:
        return False
    if found[1] == machine():
        return not alive(int(found[2]))
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _LEFT_BEHIND
    return False


def sweep(*folders: Path) -> list[Path]:
    """Remove the litter in ``folders``, not below them; what was removed."""
    swept = []
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if is_litter(path):
                    path.unlink(missing_ok=True)
                    swept.append(path)
    return swept


@functools.cache
def machine() -> str:
    """Eight letters for this machine since it was started, and for its processes as this one can
    see them: a container's process numbers are its own."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def started(pid: int) -> str:
    """When a process of this machine was started, in the system's own words; "" where it does not
    tell. With it a number that was given to a new process is told from the old one."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def alive(pid: int, since: str = "") -> bool:
    """Whether process ``pid`` of this machine runs, and is the one started at ``since``."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists, and is another user's
    except (OSError, OverflowError, ValueError):
        return False
    if _stat(pid)[:1] in (["Z"], ["X"]):
        return False  # it has ended, and is kept only until its parent asks how
    now = started(pid)
    return not since or not now or now == since


def _stat(pid: int) -> list[str]:
    """What Linux says of a process, from its state on; empty elsewhere."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the move itself durable, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
