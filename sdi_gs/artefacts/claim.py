# SPDX-License-Identifier: Apache-2.0
"""A new folder of one's own, before anything is loaded and without harm to what is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, command
from .holder import Hold, held, is_no_content, living, refusal
from .run_folder import OUTPUTS, RunFolder, slug

_TRIES = 100  # names that others may take while we look for a free one


class Claim(NamedTuple):
    """A folder that this process alone writes in."""

    path: Path
    hold: Hold

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.path)


@contextmanager
def claimed(
    out: Path | None,
    name: str,
    verb: str,
    outputs: Path = OUTPUTS,
    all_or_none: Sequence[str] = (),
) -> Iterator[Claim]:
    """Make and hold the folder ``out``, or ``outputs``/<name>-<n>. A folder in which nothing was
    begun is taken away again.

    ``all_or_none``: patterns of the files that a verb writes which cannot go on: they go where it
    fails, so that the same command works again.

    Raises:
        UserError: it holds anything, is held by another process, or cannot be written.
    """
    if out is not None:
        require_free(out)
    path, made = _make(out, name, outputs)
    with contextlib.ExitStack() as stack:
        stack.callback(_take_away, made)
        try:
            hold = stack.enter_context(_hold(path, verb))
            require_free(path, mine=True)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            yield Claim(path, hold)
        except BaseException:
            _remove(path, all_or_none)
            raise


@contextmanager
def _hold(path: Path, verb: str) -> Iterator[Hold]:
    """Hold the folder, also where another process that had made it has just taken it away again."""
    with contextlib.ExitStack() as stack:
        try:
            hold = stack.enter_context(held(path, verb))
        except FileNotFoundError:
            path.mkdir(parents=True, exist_ok=True)
            hold = stack.enter_context(held(path, verb))
        yield hold


def require_free(out: Path, mine: bool = False) -> None:
    """Refuse a folder that holds anything or cannot be written, before minutes are spent on a
    model. What a dead process left half-written is nothing; ``mine``: we hold it ourselves."""
    if out.is_symlink() and not out.exists():
        raise UserError(f"--out {out} is a symbolic link to nothing; name a new folder")
    if out.exists():
        if not out.is_dir():
            raise UserError(f"--out {out} is a file; name a folder that does not exist yet")
        try:
            holder = None if mine else living(out)
            if holder is not None:
                raise UserError(refusal(out, holder))
            if not all(map(is_no_content, out.iterdir())):
                hint = "name a new folder"
                if RunFolder(out).config_file.is_file():
                    hint = f"it is a run: continue it with {command('resume', out)}, or {hint}"
                raise UserError(f"--out {out} is not empty, and nothing in it was touched; {hint}")
        except OSError as error:
            raise unwritable(out, error) from None
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise unwritable(out, NotADirectoryError(0, f"{existing} is a file"))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise unwritable(out, PermissionError(0, f"{existing} may not be written by this user"))


def unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"the folder {path} cannot be written: {error.strerror or error}; choose another with --out"
    )


def free_name(words: str, outputs: Path = OUTPUTS) -> Path:
    """A folder below outputs/ that does not exist yet, named after ``words``."""
    name, number = slug(words), 1
    while os.path.lexists(outputs / f"{name}-{number}"):
        number += 1
    return outputs / f"{name}-{number}"


def _make(out: Path | None, name: str, outputs: Path) -> tuple[Path, list[Path]]:
    """The folder, and those that had to be made for it, the innermost first."""
    for _ in range(_TRIES):
        path = out if out is not None else free_name(name, outputs)
        made = [p for p in (path, *path.parents) if not p.exists()]
        try:
            path.mkdir(parents=True, exist_ok=out is not None)
        except FileExistsError:
            if out is not None:
                raise UserError(f"--out {out} is a file; name a new folder") from None
            continue
        except OSError as error:
            raise unwritable(path, error) from None
        return path, made
    raise UserError(f"no free name was found for {outputs / name}; name a folder with --out")


def _remove(folder: Path, patterns: Sequence[str]) -> None:
    """Files that we wrote into a folder which was empty, and their own folders."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()
        below = (folder / pattern).parent
        if below != folder:
            with contextlib.suppress(OSError):
                below.rmdir()  # also where the first file in it was the one that found no room


def _take_away(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty: something was begun
            folder.rmdir()
