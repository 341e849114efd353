# SPDX-License-Identifier: Apache-2.0
"""Who starts workers. An engine is a module of this folder with one function, ``run``; it is named
once, in :data:`ENGINES`, and imported when it is asked for.

::

    local.py    a pool of runs in this process
    program.py  a worker as a program of its own, which others start, watch and interrupt
    driver.py   keeps as many such workers going elsewhere as are asked for
    slurm.py    tasks of an array, by submitit
    ray.py      tasks of a Ray cluster
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from ...errors import UserError, nearest
from ..manifest import Sweep

ENGINES = {
    "local": "this machine: one run per card, or per so many cores",
    "slurm": "an array of SLURM, by submitit",
    "ray": "tasks of a Ray cluster",
}
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
            Interrupted: it was asked to stop; the runs have saved and are put back, or it says
                where they go on.
            RunFailure: its workers end and no run does.
        """
        ...


def engine(name: str) -> Engine:
    """The engine of that name. UserError where there is none."""
    if name not in ENGINES:
        raise UserError(f"on={name}: {nearest(name, ENGINES)}")
    found: Engine = import_module(f".{name}", __package__).run
    return found


def pairs(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The settings of an engine as they are typed, ``key=value``. UserError for anything else, and
    for one that stands there twice."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise UserError(
                f"{word!r} is no setting of an engine: write key=value, as in partition=gpu"
            )
        if key in found:
            raise UserError(f"{key}={value}: {key}={found[key]} stands there too; keep one of them")
        found[key] = value
    return tuple(found.items())


def require(options: Options, known: Sequence[str], name: str) -> dict[str, str]:
    """The settings of an engine by name. UserError for one that it does not know."""
    for key, _ in options.settings:
        if key not in known:
            raise UserError(f"{key}: the engine {name} has no such option; {nearest(key, known)}")
    return dict(options.settings)


def whole(settings: dict[str, str], key: str, least: int = 1) -> int | None:
    """A whole number among the settings; None where it is not named."""
    if key not in settings:
        return None
    text = settings[key]
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise UserError(f"{key}={text}: allowed is a whole number, {least} or more")
    return int(text)


def shared(settings: dict[str, str], key: str, option: str, given: int | None) -> int | None:
    """A number that the command line has for all engines too, as ``--option``, under the name
    ``key`` that this engine has for it. UserError where both are given."""
    value = whole(settings, key)
    if given is not None and value is not None:
        raise UserError(f"{key}={value}: --{option} {given} says the same; keep one of them")
    if given is not None and given < 1:
        raise UserError(f"{option}={given}: allowed is 1 or more")
    return value if value is not None else given


def hidden(options: Options) -> dict[str, str]:
    """What keeps the cards from a run where they are not wanted."""
    return {} if options.any_card else {"CUDA_VISIBLE_DEVICES": ""}


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads(count: int) -> dict[str, str]:
    """The variables that give a run so many threads."""
    return dict.fromkeys(THREADS, str(count))
