# SPDX-License-Identifier: Apache-2.0
"""Many runs below one folder, each a program of its own, and each made only once.

A program of its own has its own peak memory. The same study asked for again goes on where it was
stopped: finished runs are taken as they are, an unfinished one continues from its checkpoint.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from ..artefacts import checkpoint, run_folder
from ..artefacts.run_folder import RunFolder
from ..config import Config, to_plain
from ..errors import RunFailure, UserError
from ..run import Interrupted

RUNS = "runs"
FILES = (
    RUNS,
    "compare.json",
    "compare.html",
    "table.json",
    "table.html",
    "table.csv",
    "table.svg",
    "table.png",
)
"""What a study leaves in its folder; a folder that holds anything else is not one."""


def open_folder(out: Path) -> None:
    """Make the folder, or go on in that of an earlier study. UserError for any other folder."""
    ours = out.is_dir() and all(path.name in FILES for path in out.iterdir())
    if not ours:
        run_folder.require_free(out)
    (out / RUNS).mkdir(parents=True, exist_ok=True)


def obtain(name: str, config: Config, out: Path, say: Callable[[str], None]) -> RunFolder:
    """The finished run of ``config`` at ``out``/runs/``name``, made or continued if need be.

    Raises:
        UserError: another run has that name, or the run could not even begin.
        RunFailure: it began and failed; its log is kept beside it.
        Interrupted: Ctrl-C; the run has saved its state.
    """
    run = RunFolder(out / RUNS / name)
    settings = out / RUNS / f"{name}.yaml"
    generate = ["generate", "--config", str(settings), "--out", str(run.path)]
    if not run.config_file.is_file():
        settings.write_text(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))
        _call(name, generate, run, out)
        return run
    if to_plain(run.config()) != to_plain(config):
        raise UserError(
            f"{run.path} is there already, with other settings than this study's: name another "
            "folder with --out, or ask for the settings of the first time"
        )
    if run.summary_file.is_file():
        say("  finished before")
    elif checkpoint.latest(run.checkpoints) is not None:
        say("  goes on from its checkpoint")
        _call(name, ["resume", str(run.path)], run, out)
    else:
        shutil.rmtree(run.path)  # stopped before there was anything to keep
        _call(name, generate, run, out)
    return run


def _call(name: str, verb: list[str], run: RunFolder, out: Path) -> None:
    """Run a verb of the command line with its words in a log."""
    log = out / RUNS / f"{name}.log"
    stopped = Interrupted(
        f"stopped in {name}; finished runs are kept. The same command with --out {out} goes on "
        "from here"
    )
    with log.open("w", encoding="utf-8") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "sdi_gs", *verb], stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            code = child.wait()
        except KeyboardInterrupt:
            # The terminal has told the run as well: it saves after its step. A second Ctrl-C does
            # not wait for that.
            try:
                child.wait()
            finally:
                child.kill()
            raise stopped from None
    if code == 0:
        return
    if code == Interrupted.exit_code:
        raise stopped  # somebody stopped the run alone, which says nothing about its method
    last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
    if not run.config_file.is_file():
        raise UserError(f"{name} could not begin: {last.removeprefix('sdi-gs: ')} (log: {log})")
    raise RunFailure(f"the run {name} failed: {last} (all of it: {log})")
