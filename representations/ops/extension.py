# SPDX-License-Identifier: Apache-2.0
"""Packages that bring CUDA kernels as source: whether these are compiled, and compiling them.

Such a package builds when its back-end is imported: in a folder that it first deletes, with as many
compilers as it likes, and without a word of what they say. Two processes that start together
destroy each other's build. Here one process builds and the others wait, with as many compilers as
cores and memory allow, each file is counted, and all that was said is kept beside the library.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch

from ..checks import pip_install
from ..memory import available_bytes, available_cores
from . import MissingBackend, toolkit

BYTES_PER_COMPILER = 3_500_000_000
"""Of memory: one of these files took nvcc 3.1 GB."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Extension:
    """A package whose module ``PACKAGE.cuda._backend`` compiles its kernels when it is imported,
    unless there is a ``PACKAGE.csrc``."""

    package: str  # its name, for pip and for an import
    library: str  # the name that it builds its kernels under
    instead: str  # the back-end that needs none of it
    prelude: str = ""  # C++ that nvcc reads before each of its files

    @property
    def without(self) -> str:
        """The other way, for the end of a message."""
        return f"Or write representation.backend={self.instead}, which needs none of it"

    @property
    def build(self) -> str:
        """What a process of its own runs: the import that builds, with ninja's words shown."""
        return (
            "from torch.utils import cpp_extension; load = cpp_extension.load; "
            "cpp_extension.load = lambda **how: load(**{**how, 'verbose': True}); "
            f"from {self.package}.cuda import _backend; import sys; "
            f"sys.exit('{self.package} built nothing') if _backend._C is None else None"
        )

    def folder(self) -> Path | None:
        """Of the package, None where it is not installed. Nothing is imported for the answer."""
        spec = find_spec(self.package)
        return Path(spec.origin).parent if spec is not None and spec.origin else None

    def build_folder(self) -> Path:
        """Where torch keeps what is built; torch makes it where it is not there."""
        return Path(toolkit.cpp_extension()._get_build_directory(self.library, verbose=False))

    def compiled(self) -> Path | None:
        """The library of the kernels: of a wheel that brings them, or built here and no older than
        this torch and this package; else None."""
        folder = self.folder()
        if folder is None:
            return None
        for suffix in EXTENSION_SUFFIXES:
            if (folder / f"csrc{suffix}").is_file():
                return folder / f"csrc{suffix}"
        try:
            built = self.build_folder() / f"{self.library}.so"
            made = built.stat().st_mtime
            installed = [folder / "version.py", Path(torch.__file__).parent / "version.py"]
            return built if all(path.stat().st_mtime <= made for path in installed) else None
        except OSError:  # not there, or no folder that may be written to
            return None

    def obstacle(self) -> str | None:
        """What keeps the kernels from being compiled here, and the command that mends it; None if
        nothing does."""
        if self.folder() is None:
            return f"{self.package} is not installed: {pip_install(self.package)}"
        return toolkit.obstacle()

    def ensure(self, say: Say) -> Path:
        """The library of the kernels, compiled now if it is not there yet.

        ``say`` is told before, and of each file. Raises MissingBackend, with the command that mends
        it or with the compiler's errors, where it cannot be had.
        """
        found = self.compiled()
        if found is not None:
            return found
        why = self.obstacle()
        if why is not None:
            raise MissingBackend(
                f'back-end "{self.package}" cannot be had here: {why}. {self.without}'
            )
        folder = self.build_folder()
        with _alone(folder, self.package, say):
            found = self.compiled()  # by whoever had the lock before
            if found is None:
                self._compile(folder, say)
                found = self.compiled()
        if found is None:
            raise MissingBackend(
                f"{self.package} was compiled, but {folder} holds no library. {self.without}"
            )
        return found

    def _compile(self, folder: Path, say: Say) -> None:
        """Let the package build in a process of its own, whose output is kept and counted."""
        log, count = folder.with_name(f"{folder.name}.log"), jobs()
        say(f"compiling {self.package}'s CUDA kernels, once, {count} file(s) at a time; log: {log}")
        # Of a build that was killed; torch would wait for its end for ever.
        (folder / "lock").unlink(missing_ok=True)
        nvcc = toolkit.toolkit()
        assert nvcc is not None
        help_with = folder.with_name(f"{folder.name}.help")
        help_with.mkdir(exist_ok=True)
        environment = toolkit.environment(nvcc, help_with)
        environment |= {"MAX_JOBS": str(count), "VERBOSE": "1"}
        if self.prelude:
            (help_with / "prelude.h").write_text(self.prelude)
            given = environment.get("NVCC_APPEND_FLAGS", "")
            environment["NVCC_APPEND_FLAGS"] = f"{given} -include {help_with / 'prelude.h'}".strip()
        command = [sys.executable, "-u", "-c", self.build]
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
                    say(f"{self.package}: {step.group(1)} of {step.group(2)} compiled")
        if process.returncode != 0:
            raise MissingBackend(
                f"{self.package}'s kernels did not compile: {_errors(lines)}. Everything that was "
                f"said is in {log}. {self.without}"
            )

    def load(self, library: Path) -> None:
        """Let the package find ``library`` as if a wheel had brought it: then it neither looks for
        the toolkit nor for ninja, and builds nothing."""
        module = f"{self.package}.csrc"
        if library.stem != self.library or module in sys.modules:
            return
        sys.modules[module] = toolkit.cpp_extension()._import_module_from_library(
            self.library, str(library.parent), True
        )


def jobs() -> int:
    """Compilers at once: MAX_JOBS where it is set, else what cores and memory allow."""
    given = os.environ.get("MAX_JOBS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    cores = available_cores()
    free = available_bytes(torch.device("cpu"))
    room = cores if free is None else free // BYTES_PER_COMPILER
    return max(1, min(cores, room))


@contextmanager
def _alone(folder: Path, package: str, say: Say) -> Iterator[None]:
    """One process of the machine at a time. The lock lies beside the folder, which is deleted."""
    try:
        import fcntl
    except ImportError:  # Windows: these are rarely built there, and never by two at once
        yield
        return
    with open(folder.with_name(f"{folder.name}.build-lock"), "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"another process is compiling {package}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _errors(lines: list[str]) -> str:
    """The lines that say what is wrong, the first three; or the last words."""
    wrong = [line.strip() for line in lines if re.search(r"\berror\b|\bfatal\b", line, re.I)]
    wrong = wrong or [line.strip() for line in lines if line.strip()][-3:]
    return " | ".join(wrong[:3])
