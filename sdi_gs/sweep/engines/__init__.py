# SPDX-License-Identifier: Apache-2.0
"""Who starts workers. An engine is a module of this folder with one function, ``run``; it is named
once, in :data:`ENGINES`, and imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from ...errors import UserError, nearest
from ..manifest import Sweep

ENGINES = {"local": "this machine: one run per card, or per so many cores"}
"""The module of each engine, and where its runs are made."""


@dataclass(frozen=True)
class Options:
    """What is asked of an engine. None: its own choice. An engine refuses what it does not know
    with :func:`require`."""

    jobs: int | None = None  # runs at once
    cores: int | None = None  # of each run
    any_card: bool = True  # whether cards are used where there are some
    settings: tuple[tuple[str, str], ...] = ()  # of this engine alone: key, value


class Engine(Protocol):
    """The function ``run`` of an engine's module."""

    def __call__(self, sweep: Sweep, options: Options, say: Callable[[str], None]) -> None:
        """Work through the sweep and return when no line is left to claim. What became of each is
        in the sweep's folder, so that nothing is returned.

        Raises:
            UserError: the engine is not installed, does not answer, or does not know an option.
            Interrupted: it was asked to stop; the runs have saved and are put back.
        """
        ...


def engine(name: str) -> Engine:
    """The engine of that name. UserError where there is none."""
    if name not in ENGINES:
        raise UserError(f"on={name}: {nearest(name, ENGINES)}")
    found: Engine = import_module(f".{name}", __package__).run
    return found


def require(options: Options, known: tuple[str, ...], name: str) -> dict[str, str]:
    """The settings of an engine by name. UserError for one that it does not know."""
    for key, _ in options.settings:
        if key not in known:
            raise UserError(f"{key}: the engine {name} has no such option; {nearest(key, known)}")
    return dict(options.settings)
