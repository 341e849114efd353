# SPDX-License-Identifier: Apache-2.0
"""Two processes that find one another, as torchrun starts them, without its waits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds


def pair(words: Sequence[object], cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Python with these words, twice; both have to end well.

    The store in which they meet is ours, as it is the agent's under torchrun: its port is taken
    from the moment it is chosen, by nobody else, and outlives whichever ends first.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert codes == [0, 0], f"exit codes {codes}\n" + "\n".join(err for _, err in said)
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *streams)
        for process, streams in zip(started, said, strict=True)
    ]
