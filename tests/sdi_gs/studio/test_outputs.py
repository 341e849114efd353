# SPDX-License-Identifier: Apache-2.0
"""A name that a browser sends leads into the outputs folder or nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdi_gs.errors import UserError
from sdi_gs.studio import outputs
from sdi_gs.studio.outputs import Outputs, Refused

OUT = [
    "", ".", "..", "../outside", "/etc", "base/../../outside", "base/previews", ".studio", "base/",
    "ba\0se", "base\n", "..\\outside", "nothing", "x" * 300, "link", "away",
]  # fmt: skip


@pytest.fixture
def tree(runs: Outputs) -> Outputs:
    """A secret beside the outputs folder, and links to it in every place."""
    outside = runs.path.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_text("secret")
    (outside / "config.yaml").write_text("secret: 1")
    base = runs.path / "base"
    (runs.path / "away").symlink_to(outside)
    (runs.path / "link").symlink_to(base)  # a link that stays inside is none to follow either
    (base / "secret.png").symlink_to(outside / "secret.png")
    (base / "hidden").mkdir()
    (base / ".holder.json").write_text("{}")
    return runs


@pytest.mark.parametrize("name", OUT)
def test_a_name_that_is_no_folder_right_here_is_refused(tree: Outputs, name: str) -> None:
    with pytest.raises(Refused):
        tree.run(name)


def test_a_run_and_its_files_are_found(tree: Outputs) -> None:
    assert tree.run("base") == tree.path / "base"
    assert tree.file("base", "config.yaml").read_text().startswith("schema_version")
    previews = tree.path / "base" / "previews"
    previews.mkdir()
    (previews / "step_1.png").write_text("")
    assert tree.file("base", "previews/step_1.png").name == "step_1.png"


@pytest.mark.parametrize(
    "inner",
    [
        "", "..", "../base/config.yaml", "secret.png", ".holder.json", "hidden", "hidden/a",
        "/etc/passwd", "previews/../config.yaml", "config.yaml/", "./config.yaml",
        "previews//config.yaml",
    ],
)  # fmt: skip
def test_a_file_that_is_not_the_runs_own_is_refused(tree: Outputs, inner: str) -> None:
    with pytest.raises(Refused):
        tree.file("base", inner)


def test_previews_that_are_a_link_are_not_followed(tree: Outputs) -> None:
    (tree.path / "base" / "previews").symlink_to(tree.path.parent / "outside")
    with pytest.raises(Refused, match="symbolic link"):
        tree.file("base", "previews/secret.png")


def test_a_run_with_a_link_anywhere_is_not_read_as_a_whole(tree: Outputs) -> None:
    with pytest.raises(Refused, match=r"secret.png in base is a symbolic link"):
        tree.whole("base")
    (tree.path / "base" / "secret.png").unlink()
    assert tree.whole("base") == tree.path / "base"
    (tree.path / "base" / "hidden" / "deep").symlink_to("/etc")
    with pytest.raises(Refused, match="deep in base"):
        tree.whole("base")


def test_an_outputs_folder_that_is_reached_by_a_link_works(tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert outputs.opened(tmp_path / "link").run("a") == tmp_path / "real" / "a"


def test_a_folder_that_cannot_be_one_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        outputs.opened(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        outputs.opened(tmp_path / "file" / "below")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".studio").symlink_to(tmp_path)
    with pytest.raises(UserError, match="symbolic link"):
        outputs.opened(tmp_path / "linked")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_forbidden_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        outputs.opened(tmp_path / "closed")
