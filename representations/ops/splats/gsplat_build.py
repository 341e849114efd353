# SPDX-License-Identifier: Apache-2.0
"""Compiles gsplat's kernels, once, in sight; and loads them without building again.

gsplat itself builds when its back-end is imported: under a lock that it first removes, in a folder
that it first deletes, with ten compilers at once whatever the machine, and without a word of what
the compiler says. Two processes that start together destroy each other's build. Here one process
builds and the others wait, with as many compilers as cores and memory allow, each file is counted,
and all that was said is kept beside the library.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ...memory import available_bytes
from .. import MissingBackend
from . import gsplat_state

BYTES_PER_COMPILER = 3_500_000_000
"""Of memory: one of these files took nvcc 3.1 GB."""

BUILD = (
    "from gsplat.cuda import _backend; import sys; "
    "sys.exit('gsplat built nothing') if _backend._C is None else None"
)

Say = Callable[[str], None]


def jobs() -> int:
    """Compilers at once: MAX_JOBS where it is set, else what cores and memory allow."""
    given = os.environ.get("MAX_JOBS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = available_bytes(torch.device("cpu"))
    room = (cores or 1) if free is None else free // BYTES_PER_COMPILER
    return max(1, min(cores or 1, room))


@contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """One process of the machine at a time. The lock lies beside the folder, which is deleted."""
    try:
        import fcntl
    except ImportError:  # Windows: gsplat is rarely built there, and never by two at once
        yield
        return
    with open(folder.with_name(f"{folder.name}.build-lock"), "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another process is compiling gsplat: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure(say: Say) -> Path:
    """The library of gsplat's kernels, compiled now if it is not there yet.

    ``say`` is told before, and of each file. Raises MissingBackend, with the command that mends
    it or with the compiler's errors, where it cannot be had.
    """
    found = gsplat_state.compiled()
    if found is not None:
        return found
    why = gsplat_state.obstacle()
    if why is not None:
        raise MissingBackend(f'back-end "gsplat" cannot be had here: {why}. {WITHOUT}')
    folder = gsplat_state.build_folder()
    with _alone(folder, say):
        found = gsplat_state.compiled()  # by whoever had the lock before
        if found is None:
            _build(folder, say)
            found = gsplat_state.compiled()
    if found is None:
        raise MissingBackend(f"gsplat was compiled, but {folder} holds no library. {WITHOUT}")
    return found


WITHOUT = "Or write representation.backend=triton, which needs none of it"


def _build(folder: Path, say: Say) -> None:
    """Let gsplat build in a process of its own, whose output is kept and counted."""
    log, count = folder.with_name(f"{folder.name}.log"), jobs()
    say(f"compiling gsplat's CUDA kernels, once, {count} file(s) at a time; log: {log}")
    environment = {
        **os.environ, "PATH": gsplat_state.search_path(), "MAX_JOBS": str(count), "VERBOSE": "1",
    }  # fmt: skip
    command = [sys.executable, "-u", "-c", BUILD]
    lines = []
    with open(log, "w") as kept, subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            kept.flush()
            lines.append(line.rstrip())
            step = re.match(r"\[(\d+)/(\d+)\]", line)
            if step:
                say(f"gsplat: {step.group(1)} of {step.group(2)} compiled")
    if process.returncode != 0:
        raise MissingBackend(
            f"gsplat's kernels did not compile: {_errors(lines)}. Everything that was said is in "
            f"{log}. {WITHOUT}"
        )


def _errors(lines: list[str]) -> str:
    """The lines that say what is wrong, the first three; or the last words."""
    wrong = [line.strip() for line in lines if re.search(r"\berror\b|\bfatal\b", line, re.I)]
    wrong = wrong or [line.strip() for line in lines if line.strip()][-3:]
    return " | ".join(wrong[:3])


def load(library: Path) -> None:
    """Let gsplat find ``library`` as if a wheel had brought it: then it neither looks for the
    toolkit nor for ninja, and builds nothing."""
    if library.stem != gsplat_state.EXTENSION or "gsplat.csrc" in sys.modules:
        return
    from torch.utils import cpp_extension

    module = cpp_extension._import_module_from_library(
        gsplat_state.EXTENSION, str(library.parent), True
    )
    sys.modules["gsplat.csrc"] = module
