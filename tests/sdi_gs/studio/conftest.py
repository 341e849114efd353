# SPDX-License-Identifier: Apache-2.0
"""An outputs folder with one run that takes no time, and a studio that serves it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from sdi_gs.config import dump, load
from sdi_gs.studio import outputs
from sdi_gs.studio.outputs import Outputs

STEPS = 6
LONG = 100
"""Steps that one can watch."""


def lay(folder: Path, preset: str | Path = "mini", **changed: object) -> Path:
    """The folder of a run that has not begun."""
    settings = {"prompt": "a red mug", "steps": STEPS, "threads": 1} | changed
    folder.mkdir(parents=True)
    text = dump(load(str(preset), [f"{name}={value}" for name, value in settings.items()]))
    (folder / "config.yaml").write_text(text)
    return folder


def picture(path: Path, colour: tuple[int, int, int] = (200, 60, 60)) -> Path:
    """A contact sheet of four columns."""
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 32), colour).save(path)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Outputs:
    """An outputs folder with the run 'base'."""
    found = outputs.opened(tmp_path / "outputs")
    lay(found.path / "base")
    return found


class Served(NamedTuple):
    """A studio that answers."""

    outputs: Outputs
    port: int
    studio: Any

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, fast: Path) -> Iterator[Served]:
    """The whole of it, in a thread of this process."""
    pytest.importorskip("gradio")
    import uvicorn

    from sdi_gs.studio import gallery, server
    from sdi_gs.studio.desk import Studio
    from sdi_gs.studio.gate import Names
    from sdi_gs.studio.queue import Queue

    found = outputs.opened(tmp_path_factory.mktemp("studio") / "outputs")
    often = {"output.preview_every": 50, "output.checkpoint_every": 50}
    lay(found.path / "base", fast, steps=LONG, **often)
    studio = Studio(found, Queue(found), gallery.Gallery(found))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            server.application(studio, Names()), log_level="warning", timeout_graceful_shutdown=1
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        studio.queue.begin()
        yield Served(found, listening.getsockname()[1], studio)
        studio.queue.end()
        running.should_exit = True
        thread.join(timeout=20)
