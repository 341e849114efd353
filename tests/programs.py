# SPDX-License-Identifier: Apache-2.0
"""Programs of ours that others start, without the seconds that a new process imports for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO
from unittest import mock

from sdi_gs.cli.main import main
from sdi_gs.stopping import PARENT


class Here:
    """Stands in for ``subprocess.Popen`` where ``python -m sdi_gs`` is started: the program runs
    to its end in this process, in the environment and with the streams that it was given."""

    def __init__(
        self, words: Sequence[str], stdout: TextIO, env: Mapping[str, str], **_: Any
    ) -> None:
        assert list(words[:3]) == [sys.executable, "-m", "sdi_gs"]
        assert env[PARENT] == str(os.getpid())
        # Whoever is followed is still the parent of this process.
        around = {**env, PARENT: str(os.getppid())}
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stdout),
            mock.patch.dict(os.environ, around, clear=True),
        ):
            self.returncode = main(list(words[3:]))

    def wait(self, seconds: float | None = None) -> int:
        return self.returncode
