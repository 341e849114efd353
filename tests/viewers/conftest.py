# SPDX-License-Identifier: Apache-2.0
"""Exported files and the programs that read them.

The Node packages are installed by ``make test-viewers`` and by nothing else; without them the
tests that need them skip. Pictures go to the folder that VIEWER_PICTURES names, to be looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from representations.export import write_ply

from . import scenes
from .scenes import Scene

HERE = Path(__file__).parent
BIN = HERE / "node_modules" / ".bin"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
LIMIT_S = 900

Export = Callable[..., Path]


@pytest.fixture(scope="session")
def node() -> str:
    """The program; the packages of package.json are installed."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node.js is not installed")
    if not (BIN / "splat-transform").exists():
        pytest.skip("the Node packages are not installed: make test-viewers does it")
    return found


@pytest.fixture(scope="session")
def chromium() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(CHROMIUMS)} is installed; CHROMIUM=FILE names another")
    return found


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept."""
    named = os.environ.get("VIEWER_PICTURES")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def all_scenes(pictures: Path) -> dict[str, Scene]:
    made = {scene.name: scene for scene in (scenes.thin(), scenes.mug())}
    for name, scene in made.items():
        scenes.save(pictures / f"{name}-ours.png", scene.picture())
    return made


@pytest.fixture(scope="session")
def export(all_scenes: dict[str, Scene], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """``export(scene, kind, *options)``: the file that 'sdi-gs export' writes, made once."""
    from sdi_gs.assets import ending
    from sdi_gs.cli.main import main

    folder = tmp_path_factory.mktemp("exported")
    for name, scene in all_scenes.items():
        write_ply(folder / f"{name}.ply", scene.cloud)

    def run(scene: str, kind: str, *options: str) -> Path:
        out = folder / f"{'-'.join([scene, *options])}.{kind}.{ending(kind)}"
        if not out.exists():
            command = ["export", str(folder / f"{scene}.ply"), "--format", kind, "--out", str(out)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
                assert main([*command, *options]) == 0
        return out

    return run


@pytest.fixture(scope="session")
def shots(node: str, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``shots(jobs)``: let the browser draw; the answers of shots.mjs."""
    built = tmp_path_factory.mktemp("bundles")

    def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [node, str(HERE / "shots.mjs"), chromium, str(built)], input=json.dumps(jobs),
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    return run
