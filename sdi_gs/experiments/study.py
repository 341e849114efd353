# SPDX-License-Identifier: Apache-2.0
"""Many runs below one folder, each a program of its own, and each made only once.

A program of its own has its own peak memory. The same study asked for again goes on where it was
stopped: finished runs are taken as they are, an unfinished one continues. Nothing is ever deleted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from representations.files import open_own, write_bytes

from ..artefacts.claim import require_free, unwritable
from ..artefacts.holder import held, is_no_content
from ..artefacts.records import parse, read_text, write_json
from ..artefacts.run_folder import RunFolder
from ..config import Config, to_plain
from ..errors import DISK, DIVERGED, RunFailure, UserError, refused
from ..stopping import CODES, GRACE_SECONDS, PARENT, Interrupted, Stop

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
)
"""What a study leaves in its folder; a folder that holds anything else is not one."""
FORMAT = {"format": "sdi-gs study", "version": 1}
PATIENCE = GRACE_SECONDS + 12.0
"""Seconds for a run to save and end whose table was killed."""


class NotRun(RunFailure):
    """A run that came to no end: killed, out of disk, or impossible as it was asked for. It says
    nothing about its method."""


class Diverged(RunFailure):
    """A run that ended because its numbers stopped being numbers, which is a result."""


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


def obtain(name: str, config: Config, out: Path, say: Callable[[str], None]) -> RunFolder:
    """The finished run of ``config`` at ``out``/runs/``name``, made or continued if need be.

    Raises:
        UserError: another run has that name, or another process makes it.
        NotRun: it began and came to no end, or could not begin; its log is kept beside it.
        Diverged: its numbers stopped being numbers; its log is kept.
        Interrupted: somebody asked it or us to stop; the run has saved its state.
    """
    run = RunFolder(out / RUNS / name)
    if run.path.is_dir():
        with held(run.path, "study", PATIENCE):
            pass  # a run whose table was killed has had the time to save and end
    if not run.config_file.is_file():
        settings = out / RUNS / f"{name}.yaml"
        _require_no_link(settings)
        text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
        write_bytes(settings, text.encode())
        _call(name, ["generate", "--config", str(settings), "--out", str(run.path)], run, out)
        return run
    _require_same(run, config)
    if run.summary_file.is_file():
        say("  finished before")
    else:
        say("  goes on where it was stopped")
        _call(name, ["resume", str(run.path)], run, out)
    return run


def _require_same(run: RunFolder, config: Config) -> None:
    """Refuse a run of other settings. The threads that a run noted are its own, not a setting."""
    there = run.config()
    if config.threads is None:
        there = there.model_copy(update={"threads": None})
    if to_plain(there) != to_plain(config):
        raise UserError(
            f"{run.path} is there already, with other settings than this study's: name another "
            "folder with --out, or ask for the settings of the first time"
        )


def _require_no_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link, and what it points to is not ours to write: move the "
            "link away, or name another folder with --out"
        )


def _call(name: str, verb: list[str], run: RunFolder, out: Path) -> None:
    """Run a verb of the command line with its words in a log."""
    log = out / RUNS / f"{name}.log"
    _require_no_link(log)
    with os.fdopen(open_own(log, "w"), "w", encoding="utf-8") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "sdi_gs", *verb],
            stdout=stream,
            stderr=subprocess.STDOUT,
            # Signals are passed on, once each; a terminal's Ctrl-C must not come twice.
            start_new_session=True,
            env={**os.environ, PARENT: str(os.getpid())},
        )
        code = _wait(child, name, out)
    if code == 0:
        return
    if code in CODES:  # somebody stopped the run alone, which says nothing about its method
        raise _stopped(name, out, code - 128)
    last = _last_line(log)
    if code == DIVERGED:
        raise Diverged(f"{last} (all of it: {log})")
    raise NotRun(f"{_death(code) if code < 0 else last} (all of it: {log})")


def _wait(child: subprocess.Popen[bytes], name: str, out: Path) -> int:
    """The exit code of ``child``. A stop is passed on to it, and waits until it has saved; a second
    Ctrl-C waits for nothing."""
    try:
        return child.wait()
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stop) else signal.SIGINT
        try:
            child.terminate()
            child.wait()
        finally:
            child.kill()
        raise _stopped(name, out, number) from None


def _stopped(name: str, out: Path, number: int) -> Interrupted:
    return Interrupted(
        f"stopped in {name}; finished runs are kept. The same command with --out {out} goes on "
        "from here",
        number,
    )


def _death(code: int) -> str:
    """What a negative exit code says."""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{why}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = [line for line in lines if line.startswith("sdi-gs: ")]
    return (said or lines or ["no message"])[-1].removeprefix("sdi-gs: ")
