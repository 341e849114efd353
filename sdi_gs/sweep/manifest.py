# SPDX-License-Identifier: Apache-2.0
"""The folder of a sweep and the lines of its manifest.

::

    DIR/
      sweep.json         what the folder is, and which sdi-gs planned it
      manifest.jsonl     one line a run; lines are only ever added
      runs/000/NAME/     the run of a line; NAME.yaml and NAME.log lie beside it
      state/000/         what became of the lines of a block (states.py)
      state/workers/     signs of life (worker.py)
      state/stop         there while the sweep is asked to stop

A block is a folder of at most a thousand runs, so that no folder grows without end and the state of
many lines is one listing. A line names its own block: other lines may come and go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError, command

FORMAT = {"format": "sdi-gs sweep", "version": 1}
TRIES = 3  # runs of a line that may crash before it has failed
BLOCK = 1000  # lines of a block
NAMED = 3  # damaged lines that a sentence names

_FOLDER = re.compile(r"runs/(\d{3,6})/[a-z0-9-]+-([0-9a-f]{8}|[0-9a-f]{16})")
_DIGEST = re.compile(r"[0-9a-f]{16}")


class Line(NamedTuple):
    """One run."""

    prompt: str
    family: str
    method: str
    representation: str
    seed: int
    overrides: tuple[str, ...]  # key=value
    steps: int
    folder: str  # relative to the sweep's
    digest: str  # of all its settings; see plan.digest

    @property
    def block(self) -> str:
        return self.folder.split("/", 2)[1]

    @property
    def name(self) -> str:
        return self.folder.rsplit("/", 1)[1]

    def text(self) -> str:
        """As it stands in the manifest, without the line end."""
        return json.dumps(self._asdict(), ensure_ascii=False, separators=(", ", ": "))


class Manifest(NamedTuple):
    """The lines that can be believed."""

    lines: list[Line]
    damage: list[str]  # a sentence for each other line, with its number

    def lost(self) -> str | None:
        """One sentence about the lines that were left out; None where none was."""
        if not self.damage:
            return None
        more = len(self.damage) - NAMED
        told = "; ".join(self.damage[:NAMED]) + (f"; and {more} more" if more > 0 else "")
        return (
            f"{len(self.damage)} damaged lines of the manifest left out ({told}): put them back as "
            "they were, or plan again, which adds the runs that are missing"
        )


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep."""

    path: Path
    planned_by: str  # version of sdi-gs
    tries: int = TRIES

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.jsonl"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def stop_mark(self) -> Path:
        return self.state / "stop"

    def run(self, line: Line) -> Path:
        """The folder of a run."""
        return self.path / line.folder

    def read(self) -> Manifest:
        """UserError where there is no manifest any more."""
        try:
            with self.manifest.open("rb") as stream:
                return parse(stream)
        except OSError as error:
            raise UserError(
                f"{self.manifest} cannot be read ({error.strerror or error}): it is the list of "
                "the sweep's runs. Finished ones below it are whole; plan the same again with "
                f"--out {self.path}"
            ) from None

    def stamp(self) -> tuple[int, int]:
        """Changes when the manifest does; (0, 0) where there is none."""
        try:
            found = self.manifest.stat()
        except OSError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def require_version(self) -> None:
        """Refuse to mix runs of two versions of the program in one table."""
        here = version()
        if here != self.planned_by:
            raise UserError(
                f"{self.path} was planned by sdi-gs {self.planned_by}, and this is sdi-gs {here}, "
                "whose runs may differ; nothing was claimed. Install that version here, or plan "
                "with this one into a new folder"
            )


def version() -> str:
    """Of this program."""
    return metadata.version("sdi-gs")


def open_sweep(path: Path) -> Sweep:
    """The sweep in the folder ``path``. UserError where there is none."""
    try:
        found = json.loads((path / "sweep.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} has no sweep.json, so it is not the folder of a sweep; one is made with "
            + command("sweep", "plan", "prompts.txt", "--out", path)
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT["format"]:
        raise _damaged(path, "it says nothing of a sweep")
    if found.get("version") != FORMAT["version"]:
        raise UserError(
            f"{path} is a sweep of version {found.get('version')!r}, and this sdi-gs reads "
            f"{FORMAT['version']}: use the sdi-gs {found.get('planned_by', 'that planned it')}"
        )
    tries, by = found.get("tries"), found.get("planned_by")
    if not isinstance(tries, int) or isinstance(tries, bool) or tries < 1:
        raise _damaged(path, f"tries={tries!r}, allowed is 1 or more")
    if not isinstance(by, str):
        raise _damaged(path, "it does not say which sdi-gs planned it")
    return Sweep(path, by, tries)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path / 'sweep.json'} is damaged ({why}): move it away and plan the same again with "
        f"--out {path}; no run is made twice"
    )


def parse(lines: Iterator[bytes] | Any) -> Manifest:
    """The manifest in ``lines``, bytes with their line ends. A last line without one is still being
    written, or was cut off."""
    good: list[Line] = []
    damage: list[str] = []
    seen: set[str] = set()
    for number, raw in enumerate(lines, start=1):
        try:
            line = _line(raw)
        except ValueError as error:
            damage.append(f"line {number}: {error}")
            continue
        if line.digest in seen:
            damage.append(f"line {number}: the digest {line.digest} stands there twice")
            continue
        seen.add(line.digest)
        good.append(line)
    return Manifest(good, damage)


_TYPES = {
    "prompt": str, "family": str, "method": str, "representation": str, "seed": int,
    "overrides": list, "steps": int, "folder": str, "digest": str,
}  # fmt: skip


def _line(raw: bytes) -> Line:
    """ValueError where it is no line of ours."""
    try:
        tree = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(tree, dict) or tree.keys() != _TYPES.keys():
        raise ValueError(f"allowed are exactly the keys {', '.join(_TYPES)}")
    for key, kind in _TYPES.items():
        if type(tree[key]) is not kind:
            raise ValueError(f"{key}={str(tree[key])[:40]!r} is not of the type {kind.__name__}")
    overrides = tree["overrides"]
    if not all(isinstance(one, str) for one in overrides):
        raise ValueError("overrides are not all key=value")
    if not _DIGEST.fullmatch(tree["digest"]):
        raise ValueError(f"digest={tree['digest'][:40]!r} is none")
    folder = _FOLDER.fullmatch(tree["folder"])
    if folder is None or not tree["digest"].startswith(folder[2]):
        raise ValueError(f"folder={tree['folder'][:80]!r} is not that of the digest")
    tree["overrides"] = tuple(overrides)
    return Line(**tree)
