# SPDX-License-Identifier: Apache-2.0
"""How a setting is refused: what was given, what is allowed, what to write instead."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def require(holds: bool, name: str, given: Any, allowed: str, example: Any) -> None:
    """Raise ValueError about the setting ``name`` unless ``holds``."""
    if not holds:
        raise ValueError(
            f"{name}={given!r} is not possible: allowed is {allowed}; write {name}={example!r}"
        )


def pip_install(requirement: str) -> str:
    """The command that adds a package to the Python that runs this, whatever the shell's path."""
    python = Path(sys.executable)
    with contextlib.suppress(ValueError):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", "pip", "install", requirement])


def readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor may be looked at for a check. On a card that makes the host
    wait for everything that it was told to do, many times a step; there checks end with shapes."""
    return tensor.device.type == "cpu"


def one_of(name: str, given: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``given`` is one of ``choices``."""
    require(given in choices, name, given, "one of " + ", ".join(choices), choices[0])
