# SPDX-License-Identifier: Apache-2.0
"""Many runs below one folder, one after the other, and each made only once (``sdi_gs.child``).

The same study asked for again goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from .. import child
from ..artefacts.claim import require_free, unwritable
from ..artefacts.holder import held, is_no_content
from ..artefacts.records import parse, read_text, write_json
from ..artefacts.run_folder import RunFolder
from ..child import Orders
from ..config import Config
from ..errors import DISK, UserError, refused
from ..origin import Origin

RUNS = "runs"
MARK = "study.json"
FILES = (
    RUNS,
    MARK,
    "compare.json",
    "compare.html",
    "table.json",
    "table.html",
    "table.csv",
    "table.svg",
    "table.png",
    "failures.png",
    "evolution.png",
)
"""What a study leaves in its folder; a folder that holds anything else is not one."""
FORMAT = {"format": "sdi-gs study", "version": 1}


class Without(NamedTuple):
    """A run that measured nothing."""

    why: str
    diverged: bool  # its numbers stopped being numbers, a result; else it came to no end

    @property
    def word(self) -> str:
        return "diverged" if self.diverged else "not run"

    def __str__(self) -> str:
        return f"{self.word}: {self.why}"


def lacking(outcomes: Sequence[tuple[str, object]], where: str) -> str | None:
    """What must be said of runs, by name, that came to no end and are not in the table or
    comparison; None where all did."""
    lost = [(name, o) for name, o in outcomes if isinstance(o, Without) and not o.diverged]
    if not lost:
        return None
    name, first = lost[0]
    return (
        f"{len(lost)} of {len(outcomes)} runs are not in the {where}, and it says nothing about "
        f"them; the first is {name}: {first.why}. The same command with --out tries them again, "
        "and makes no other anew"
    )


@contextmanager
def opened(out: Path, verb: str) -> Iterator[None]:
    """Hold the folder of a study, new or an earlier one's.

    Raises:
        UserError: it is somebody else's folder, or another process works in it.
    """
    _require_ours(out)
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(out, verb))
            _require_ours(out, mine=True)
            write_json(out / MARK, FORMAT)
            (out / RUNS).mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(out, error) from error
        try:
            yield
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise UserError(
                f"{refused(error, out)}; what was finished is kept: after making room, the same "
                f"command with --out {out} goes on from here"
            ) from error


def _require_ours(out: Path, mine: bool = False) -> None:
    """Refuse a folder that no study made. One of before the mark was introduced has its table."""
    marked = any(_is_ours(out / name) for name in (MARK, "table.json", "compare.json"))
    ours = marked and all(path.name in FILES or is_no_content(path) for path in out.iterdir())
    if not ours:
        require_free(out, mine)


def _is_ours(path: Path) -> bool:
    try:
        tree = parse(read_text(path))
    except ValueError:
        return False
    if not isinstance(tree, dict):
        return False
    return tree.get("format") == FORMAT["format"] or "plan" in tree


def obtain(
    name: str,
    config: Config,
    out: Path,
    say: Callable[[str], None],
    origin: Origin | None = None,
) -> RunFolder:
    """The finished run of ``config``, made of ``origin``, at ``out``/runs/``name``, made or
    continued if need be; see :func:`sdi_gs.child.obtain`."""
    orders = Orders(again=f"The same command with --out {out} goes on from here", origin=origin)
    return child.obtain(out / RUNS / name, config, orders, say)
