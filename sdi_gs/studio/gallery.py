# SPDX-License-Identifier: Apache-2.0
"""The runs of the outputs folder, newest first, as quickly as hundreds of them can be read.

What a run is made of is read once and kept by the times of its files; whether it runs now is looked
at each time. Nothing is loaded or built: a list must open whatever lies in the folder, and must run
none of it. A folder that cannot be read is in the list with a sentence that says why.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from representations.files import write_bytes

from ..artefacts.holder import glance
from ..artefacts.records import read_text
from ..artefacts.run_folder import RunFolder
from ..config import LARGEST_FILE, SCHEMA_VERSION, load, to_plain
from ..errors import UserError
from ..origin import read_origin
from .orders import REPRESENTATIONS, shape_presets
from .outputs import Outputs, Refused

RUNNING, FINISHED, UNFINISHED, DAMAGED = "running", "finished", "not finished", "damaged"
STATES = (RUNNING, FINISHED, UNFINISHED, DAMAGED)

THUMB = 256  # pixels, the longer side
TAIL = 2**16  # bytes at the end of stats.jsonl in which the last step is looked for
MOST_LEAVES = 3000  # of settings; real ones are some 120
FREE = ("prompt", "negative_prompt", "seed", "steps", "schedule_steps", "device", "threads",
        "output", "schema_version")  # fmt: skip
"""Settings that do not make another preset of one."""

TRACES = ("stats.jsonl", "summary.json", "checkpoints")
"""A folder without settings that has one of these was a run."""

_SHEETS = "step_*.png"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """A run as the list shows it."""

    name: str
    state: str  # one of STATES
    prompt: str = ""
    preset: str = ""  # the one that it was made of, or is nearest to
    method: str = ""  # instead of that preset's own
    changes: int = 0  # settings in which it differs from that one, beside FREE
    representation: str = ""
    steps: int = 0
    done: int = 0
    seed: int = 0
    why: str = ""  # of what is damaged, a sentence
    changed: float = 0.0  # time.time() when its settings were written

    @property
    def title(self) -> str:
        return self.prompt or self.name

    @property
    def made_of(self) -> str:
        """Preset and representation in a few words."""
        if not self.preset:
            return ""
        more = "" if not self.changes else f" + {self.changes} changed"
        return (
            f"{self.preset}{more}, {REPRESENTATIONS.get(self.representation, self.representation)}"
        )


@dataclass
class Gallery:
    """The list of one outputs folder; remembers what it has read, here and on the disk."""

    outputs: Outputs
    _known: dict[str, tuple[list[int], Entry]] = field(default_factory=dict)
    _loaded: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def entries(self) -> list[Entry]:
        """Every run, the newest first. Any thread may ask; one at a time reads."""
        with self._lock:
            return self._entries()

    def _entries(self) -> list[Entry]:
        self._load()
        found: dict[str, tuple[list[int], Entry]] = {}
        for name, path in self._folders():
            marks = _marks(path)
            kept = self._known.get(name)
            fresh = kept is not None and kept[0] == marks
            entry = kept[1] if kept is not None and fresh else self._read(name, path)
            found[name] = (marks, entry)
        if {name: marks for name, (marks, _) in found.items()} != {
            name: marks for name, (marks, _) in self._known.items()
        }:
            self._known = found
            self._save()
        listed = [self._now(entry) for _, entry in found.values()]
        return sorted(listed, key=lambda entry: (-entry.changed, entry.name))

    def entry(self, name: str) -> Entry:
        """One run. Refused for a name that is none."""
        path = self.outputs.run(name)
        return self._now(self._read(name, path))

    def _folders(self) -> Iterator[tuple[str, Path]]:
        with os.scandir(self.outputs.path) as listed:
            for item in listed:
                path = self.outputs.path / item.name
                if item.name.startswith(".") or not item.is_dir():
                    continue
                if any(os.path.lexists(path / name) for name in ("config.yaml", *TRACES)):
                    yield item.name, path

    def _read(self, name: str, path: Path) -> Entry:
        """What does not change from one look to the next."""
        changed = _time(path / "config.yaml") or _time(path)
        try:
            self.outputs.run(name)
            tree = read_settings(path)
        except (UserError, ValueError) as error:
            return Entry(name, DAMAGED, why=_sentence(error), changed=changed)
        preset, method, changes = made_of(path, tree)
        finished = (path / "summary.json").is_file()
        why = _bad_summary(path) if finished else ""
        steps = _whole(tree.get("steps"))
        return Entry(
            name=name,
            state=DAMAGED if why else FINISHED if finished else UNFINISHED,
            prompt=str(tree.get("prompt") or "")[:2000],
            preset=preset,
            method=method,
            changes=changes,
            representation=str(_section(tree, "representation").get("kind", ""))[:60],
            steps=steps,
            done=steps if finished else 0,
            seed=_whole(tree.get("seed")),
            why=why,
            changed=changed,
        )

    def _now(self, entry: Entry) -> Entry:
        """``entry`` with what may be otherwise a second later."""
        if entry.state not in (UNFINISHED, FINISHED):
            return entry
        path = self.outputs.path / entry.name
        if glance(path) is not None:
            entry = replace(entry, state=RUNNING)
        if entry.state in (UNFINISHED, RUNNING):
            entry = replace(entry, done=steps_done(path))
        return entry

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            tree = json.loads((self.outputs.own / "gallery.json").read_text(encoding="utf-8"))
            self._known = {
                name: (list(marks), Entry(**entry)) for name, (marks, entry) in tree.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            self._known = {}  # of another version, or none yet: everything is read again

    def _save(self) -> None:
        tree = {name: [marks, asdict(entry)] for name, (marks, entry) in self._known.items()}
        with contextlib.suppress(OSError):  # it only saves time
            write_bytes(self.outputs.own / "gallery.json", json.dumps(tree).encode())


def chosen(
    entries: Sequence[Entry], words: str = "", state: str = "", preset: str = ""
) -> list[Entry]:
    """Those whose sentence or name has all ``words``, in that state, made of that preset; "" is
    any."""
    wanted = words.lower().split()
    return [
        entry
        for entry in entries
        if (not state or entry.state == state)
        and (not preset or entry.preset == preset)
        and all(word in f"{entry.prompt} {entry.name}".lower() for word in wanted)
    ]


def read_settings(path: Path) -> dict[str, Any]:
    """config.yaml as plain data, nothing of it checked. ValueError where it is none, or of another
    version."""
    file = path / "config.yaml"
    if file.is_symlink():
        raise ValueError("its config.yaml is a symbolic link, and the studio follows none")
    if not file.is_file():
        raise ValueError("its config.yaml is gone")
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"its config.yaml has more than {LARGEST_FILE:,} bytes")
    try:
        tree = yaml.load(read_text(file), Loader=_Loader)
    except (yaml.YAMLError, RecursionError, TypeError, LookupError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"its config.yaml is damaged{where}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("representation"), dict):
        raise ValueError("its config.yaml does not hold the settings of a run")
    version = tree.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"it was made by another version of sdi-gs: its settings have schema_version "
            f"{str(version)[:20]}, and this one reads {SCHEMA_VERSION}"
        )
    return tree


def made_of(path: Path, tree: Mapping[str, Any]) -> tuple[str, str, int]:
    """Preset, method and the number of settings in which a run differs from them: those that it
    noted, else the preset that it is nearest to."""
    origin = read_origin(path / "config.yaml")
    if origin is not None and origin.preset in shape_presets():
        theirs = _of(origin.preset, origin.guidance)
        if theirs is not None:
            return origin.preset, origin.guidance or "", _differing(_leaves(tree), theirs)
    preset, changes = nearest_preset(tree)
    return preset, "", changes


def nearest_preset(tree: Mapping[str, Any]) -> tuple[str, int]:
    """The preset whose settings differ from ``tree`` in the fewest places, and in how many."""
    mine = _leaves(tree)
    best, least = "", MOST_LEAVES
    for name in shape_presets():
        theirs = _of(name, None)
        differing = least if theirs is None else _differing(mine, theirs)
        if differing < least:
            best, least = name, differing
    return best, least if best else 0


_NONE = object()


def _differing(mine: Mapping[str, object], theirs: Mapping[str, object]) -> int:
    changed = sum(1 for key, value in theirs.items() if mine.get(key, _NONE) != value)
    return changed + sum(1 for key in mine if key not in theirs)


@cache
def _of(preset: str, method: str | None) -> dict[str, object] | None:
    """Settings of a preset with a method; None where there is no such method here."""
    try:
        return _leaves(to_plain(load(preset, guidance=method)))
    except UserError:
        return None


def _leaves(tree: Mapping[str, Any]) -> dict[str, object]:
    """Every setting by its whole name, but for those that are FREE."""
    found: dict[str, object] = {}
    waiting = [(str(key), value) for key, value in tree.items() if key not in FREE]
    for _ in range(MOST_LEAVES):  # references within a file may make a small one endless
        if not waiting:
            break
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{inner}", below) for inner, below in list(value.items())[:500]]
        else:
            found[key] = value if isinstance(value, str | int | float | bool) else str(value)[:500]
    return found


def steps_done(path: Path) -> int:
    """Steps that stats.jsonl tells of, by its last whole line."""
    file = RunFolder(path).stats_file
    try:
        if file.is_symlink():
            return 0
        with file.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL))
            lines = stream.read(TAIL).split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"]) + 1
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def picture_of(outputs: Outputs, name: str) -> Path | None:
    """The contact sheet of a run, or the newest of its previews."""
    run = outputs.run(name)
    candidates = ["preview.png"]
    folder = run / "previews"
    if folder.is_dir() and not folder.is_symlink():
        sheets = sorted((sheet.name for sheet in folder.glob(_SHEETS)), reverse=True)
        candidates += [f"previews/{sheet}" for sheet in sheets[:1]]
    for candidate in candidates:
        try:
            return outputs.file(name, candidate)
        except Refused:
            continue
    return None


def thumbnail(outputs: Outputs, name: str) -> bytes | None:
    """The first view of a run, small, as JPEG; made once and kept. None where there is none."""
    source = picture_of(outputs, name)
    if source is None:
        return None
    made = source.stat()
    kept = outputs.own / "thumbs" / f"{name}.{made.st_mtime_ns}-{made.st_size}.jpg"
    try:
        return kept.read_bytes()
    except OSError:
        pass
    data = _small(source)
    if data is not None:
        with contextlib.suppress(OSError):  # it only saves time
            for old in kept.parent.glob(f"{_literal(name)}.*-*.jpg"):
                old.unlink(missing_ok=True)
            write_bytes(kept, data)
    return data


def _small(source: Path) -> bytes | None:
    from PIL import Image

    try:
        with Image.open(source) as sheet:
            if sheet.width * sheet.height > 64_000_000:
                return None
            # A sheet has four columns; what stands first is the front.
            side = max(1, min(sheet.height, sheet.width // 4))
            first = sheet.convert("RGB").crop((0, 0, side, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    first.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    first.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


def _marks(path: Path) -> list[int]:
    """Times and sizes that change when the files do that an entry is made of."""
    marks = []
    for name in ("config.yaml", "summary.json"):
        try:
            seen = os.lstat(path / name)
            marks += [seen.st_mtime_ns, seen.st_size]
        except OSError:
            marks += [0, 0]
    return marks


def _bad_summary(path: Path) -> str:
    try:
        RunFolder(path).summary()
    except UserError as error:
        return _sentence(error)
    return ""


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _time(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0
