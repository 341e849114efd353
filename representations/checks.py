# SPDX-License-Identifier: Apache-2.0
"""How a setting is refused: what was given, what is allowed, what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require(holds: bool, name: str, given: Any, allowed: str, example: Any) -> None:
    """Raise ValueError about the setting ``name`` unless ``holds``."""
    if not holds:
        raise ValueError(
            f"{name}={given!r} is not possible: allowed is {allowed}; write {name}={example!r}"
        )


def one_of(name: str, given: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``given`` is one of ``choices``."""
    require(given in choices, name, given, "one of " + ", ".join(choices), choices[0])
