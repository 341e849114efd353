# SPDX-License-Identifier: Apache-2.0
"""What the documents and the examples say works when it is typed, through the configuration."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
EXTEND = ROOT / "docs" / "extend.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHORT = ("steps=2", "output.turntable.frames=2", "output.turntable.size=32", "batch=1")
"""Appended to a command that would take minutes."""


class Block(NamedTuple):
    """A fenced block, and the name of the file that it is to be saved as, if any."""

    language: str
    text: str
    file: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?:<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```", text, re.M | re.S)
    return [Block(language, body, file or None) for file, language, body in found]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page):
        if block.language == "sh":
            yield from block.text.replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that docs/extend.md tells a reader to save."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "examples").symlink_to(ROOT / "examples")
    for block in blocks(EXTEND):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "yaml":
            name = block.text.partition("\n")[0].removeprefix("# ")
            (folder / name).write_text(block.text, encoding="utf-8")
    return folder


def test_extend_has_a_recipe_for_every_seam() -> None:
    from sdi_gs.config import SEAMS

    written = {block.file for block in blocks(EXTEND) if block.language == "python"}
    assert len(written) == len(SEAMS) - 1  # the representation is an example of its own
    text = EXTEND.read_text(encoding="utf-8")
    assert all(f"`{seam}`" in text for seam in SEAMS)


@pytest.mark.slow
def test_every_command_of_extend_works(
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    foreign_kinds: None,
) -> None:
    """In order, since later ones use what earlier ones made. All in this process, which compiles
    its kernels once: the programs that a comparison starts have tests of their own."""
    from sdi_gs.cli.main import main

    monkeypatch.setattr("sdi_gs.child.call", lambda run, verb, orders: main(verb))
    monkeypatch.chdir(desk)
    typed = list(commands(EXTEND))
    assert len(typed) > 9
    for line in typed:
        words = shlex.split(line)
        assert words[0] == "sdi-gs"
        long = words[1] in ("generate", "compare")
        if words[1] == "generate" and "--out" not in words:
            words += ["--out", f"run-{typed.index(line)}"]
        code = main([*words[1:], *(SHORT if long else ())])
        said = capsys.readouterr()
        assert code == 0, f"{line}\n{said.err}"
        if words[1] == "export":
            assert "faces" in said.out
    first = (desk / "run-0" / "config.yaml").read_text(encoding="utf-8")
    assert "kind: antithetic" in first
    assert "seed: 4" in first
    assert str(desk / "antithetic.py") in first


def test_links_between_the_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
            link = (target[0] or target[1]).partition("#")[0]
            if link and "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert not broken


def test_the_documents_speak_of_modules_that_exist() -> None:
    gone = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:sdi_gs|representations|benchmarks|tests)/[\w/.]+)`", text)
        gone += [f"{page.name}: {name}" for name in named if not (ROOT / name).exists()]
    assert not gone


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign_kinds: None
) -> None:
    """A program by itself; a plug-in by the first command that its docstring tells."""
    from sdi_gs.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    told = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
    command = next(line.split(None, 1) for line in told.splitlines() if line.startswith("    "))
    if command[0] == "sdi-gs":
        assert main([*shlex.split(command[1]), *SHORT, "--out", "run"]) == 0
    else:
        assert command[0] == "python"
        monkeypatch.setattr(sys, "argv", [*shlex.split(command[1]), "--steps", "2"])
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_uses_the_public_face_only(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert "import sdi_gs\n" in text
    assert not re.search(r"^\s*from (sdi_gs|representations)|import representations", text, re.M)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_without_the_package_says_one_thing(example: Path, tmp_path: Path) -> None:
    hide = "import sys; sys.modules['sdi_gs'] = None; import runpy; runpy.run_path(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", hide, str(example)],
        cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "sdi_gs is not installed: run 'make setup', then .venv/bin/python"
    ]


def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "examples" / "first_asset.ipynb", 4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert sum("STEPS = 400" in cell.source for cell in code) == 1
    assert not any(cell.outputs for cell in code), "the notebook is kept without its outputs"
    for cell in code:
        cell.source = cell.source.replace("STEPS = 400", "STEPS = 2")
    before = os.environ.copy()
    os.environ.update(environment())
    try:
        NotebookClient(
            book,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    outputs = [output for cell in code for output in cell.outputs]
    shown = [set(output.get("data", {})) for output in outputs]
    assert sum("image/png" in kinds for kinds in shown) >= 2  # the asset, and what a step sees
    bars = [
        output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})
    ]
    assert any("step 2/2" in bar for bar in bars)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert {"mug.ply", "mug.splat", "mug.glb", "mug.gif"} <= {p.name for p in tmp_path.iterdir()}
