# SPDX-License-Identifier: Apache-2.0
"""The one folder that the studio reads and writes, and how a name that somebody sends becomes a
path in it.

A name is one folder of the outputs folder, and a file one of that folder's own: no path of several
parts, no hidden name, no symbolic link that leads out. Whatever a browser sends is asked here.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

OWN = ".studio"
"""The folder inside the outputs folder in which the studio keeps what is its own."""

LONGEST = 200  # letters of a name that is looked up at all
PREVIEWS = "previews"


class Refused(UserError):
    """A name that leads nowhere in the outputs folder, or out of it."""


@dataclass(frozen=True)
class Outputs:
    """The folder of all runs, as an absolute path without links."""

    path: Path

    @property
    def own(self) -> Path:
        return self.path / OWN

    @property
    def jobs(self) -> Path:
        return self.own / "jobs"

    def run(self, name: str) -> Path:
        """The folder of the run ``name``. Refused for anything that is no folder right here."""
        found = inside(self.path, name)
        if not found.is_dir():
            raise Refused(f"{_said(name)} is no run of {self.path}")
        return found

    def whole(self, name: str) -> Path:
        """The folder of the run ``name``, for what reads or writes many of its files. Refused where
        any of them is a symbolic link: it would be read or written in its place."""
        run = self.run(name)
        for folder, folders, files in os.walk(run):
            for inner in (*folders, *files):
                if os.path.islink(os.path.join(folder, inner)):
                    raise Refused(
                        f"{inner[:60]} in {name} is a symbolic link, and the studio follows none"
                    )
        return run

    def file(self, name: str, inner: str) -> Path:
        """A file of a run: one of its own, or one of its previews. Refused for any other."""
        folder = self.run(name)
        first, slash, rest = inner.partition("/")
        if slash and first == PREVIEWS:
            folder, inner = inside(folder, first), rest
        found = inside(folder, inner)
        if not found.is_file():
            raise Refused(f"{_said(inner)} is no file of the run {name}")
        return found


def inside(folder: Path, name: str) -> Path:
    """What is called ``name`` in ``folder``, which has no links in its own path. Refused for a name
    of several parts, a hidden one, and for a symbolic link that leads out of the folder."""
    plain = 0 < len(name) <= LONGEST and name.isprintable() and name == os.path.basename(name)
    if not plain or name.startswith(".") or "\\" in name:
        raise Refused(f"{_said(name)} is not the name of anything in {folder}")
    found = folder / name
    try:
        real = found.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise Refused(f"{_said(name)} is not in {folder}") from None
    if real != found:
        raise Refused(f"{_said(name)} is a symbolic link, and the studio follows none")
    return found


def _said(name: str) -> str:
    """A name as it was sent, short enough for a sentence."""
    return repr(name if len(name) <= 60 else f"{name[:60]}...")


def opened(path: Path) -> Outputs:
    """The outputs folder at ``path``, made where it is missing.

    Raises UserError where it is no folder or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = Outputs(path.resolve(strict=True))
        if found.own.is_symlink():
            raise UserError(f"{found.own} is a symbolic link, and the studio follows none: move it")
        found.jobs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=found.own):
            pass
    except FileExistsError:
        raise UserError(f"{path} is a file; name a folder for the runs") from None
    except OSError as error:
        raise UserError(
            f"the folder {path} cannot be written: {error.strerror or error}; name another one, "
            "such as: sdi-gs studio my-runs"
        ) from None
    return found
