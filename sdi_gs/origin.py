# SPDX-License-Identifier: Apache-2.0
"""What a run was made of: the preset, and the method instead of the preset's own.

That is no setting, since nothing is computed from it. It stands in the first line of config.yaml as
a comment, so a run that is replayed from that file has it too, and files without it stay valid.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from .config import Config, dump, find, load, presets, presets_dir, read_tree
from .errors import UserError

_LINE = re.compile(r"# preset ([\w-]{1,80})(?: with the method ([\w-]{1,80}))?\s*$")


class Origin(NamedTuple):
    """A preset by its name, and a method, None for the preset's own."""

    preset: str
    guidance: str | None = None

    def __str__(self) -> str:
        return self.preset if self.guidance is None else f"{self.preset} with {self.guidance}"

    def config(self) -> Config | None:
        """Its settings; None where this version has no such preset or method, or it needs a plug-in
        that is not here."""
        try:
            return load(self.preset, guidance=self.guidance)
        except UserError:
            return None


def origin_of(name_or_path: str | None, guidance: str | None = None) -> Origin | None:
    """What a run would be made of; None where no preset is below. A file is laid over the preset
    that its ``base`` names, and the settings of an earlier run over the preset of that run."""
    seen: set[Path] = set()
    name = name_or_path
    while name is not None:
        path = find(name)
        if path.parent == presets_dir():
            return Origin(path.stem, guidance)
        noted = read_origin(path)
        if noted is not None:
            return Origin(noted.preset, guidance or noted.guidance)
        if path in seen:
            return None
        seen.add(path)
        base: Any = read_tree(path).get("base")
        beside = path.parent / str(base)
        name = str(beside) if beside.is_file() else base
    return None


def read_origin(path: Path) -> Origin | None:
    """What the first line of a file of settings says; None where it says nothing of the kind."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            found = _LINE.match(stream.readline(200))
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None else Origin(found[1], found[2])


def noted(config: Config, origin: Origin | None) -> str:
    """The text of a config.yaml, with what the run was made of in the first line."""
    if origin is None or origin.preset not in presets():
        return dump(config)
    method = "" if origin.guidance is None else f" with the method {origin.guidance}"
    return f"# preset {origin.preset}{method}\n{dump(config)}"
