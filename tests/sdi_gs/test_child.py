# SPDX-License-Identifier: Apache-2.0
"""A run as a program of its own: what its parent is told, and how it hears a stop."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sdi_gs.child import NotRun
from sdi_gs.cli.codes import for_parent
from sdi_gs.errors import NO_ROOM, UserError
from sdi_gs.stopping import PARENT, stopping

Run = Callable[..., Any]
JOB = Path(__file__).parents[2] / "docs" / "sweep.md"


def caused(cause: Exception) -> UserError:
    error = UserError("it did not work")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (caused(OSError(errno.ENOSPC, "No space left on device")), NO_ROOM),
        (caused(OSError(errno.EDQUOT, "Disk quota exceeded")), NO_ROOM),
        (caused(torch.OutOfMemoryError("CUDA out of memory.")), NO_ROOM),
        (caused(caused(OSError(errno.EROFS, "Read-only file system"))), NO_ROOM),
        (OSError(errno.ENOSPC, "No space left on device"), NO_ROOM),
        (caused(OSError(errno.EACCES, "Permission denied")), 2),  # asked for, and not allowed
        (caused(ValueError("no")), 2),
        (UserError("no"), 2),
    ],
)
def test_a_machine_without_room_is_told_from_a_mistake_to_a_parent_only(
    error: Exception, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    assert for_parent(error, 2) == 2
    monkeypatch.setenv(PARENT, "1")
    assert for_parent(error, 2) == told
    ended = NotRun("no", told)
    assert (ended.mistake, ended.no_room) == (told == 2, told == NO_ROOM)


@pytest.fixture
def deaf() -> Iterator[None]:
    """SIGTERM is turned off, as a launcher's children inherit it."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("child", [True, False])
def test_a_run_that_we_have_started_hears_sigterm_where_it_was_turned_off(
    child: bool, deaf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    if child:
        monkeypatch.setenv(PARENT, str(os.getppid()))
    with stopping() as stop, stop.after_the_step():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked() is child


def test_the_job_of_the_documentation_calls_a_verb_that_exists(sdi_gs: Run) -> None:
    """That the file is a Job was checked with kubernetes-validate --strict."""
    text = JOB.read_text(encoding="utf-8")
    found = re.search(r"<!-- file: job\.yaml -->\n```yaml\n(.*?)```", text, re.S)
    assert found is not None
    job = yaml.safe_load(found[1])
    assert job["spec"]["completionMode"] == "Indexed"
    rule = job["spec"]["podFailurePolicy"]["rules"][0]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailIndex", [UserError.exit_code])
    shell = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert shell[:2] == ["sh", "-c"]
    words = shlex.split(shell[2].replace("$JOB_COMPLETION_INDEX", "0"))
    assert words[:2] == ["exec", "sdi-gs"]
    said = sdi_gs(*words[2:])
    assert said.code == 2
    assert "has no sweep.json" in said.err  # all of its words are understood
