# SPDX-License-Identifier: Apache-2.0
"""The verb 'export' on splats: its options, its messages, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.export import read_ply, read_splat
from sdi_gs.assets import FORMATS, SPLAT_FORMATS
from sdi_gs.splat_export import UPS

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(fast: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sdi_gs.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "splats"
    assert main(["generate", "a red mug", "--config", str(fast), "--out", str(out)]) == 0
    return out


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_words_here_are_those_of_the_library() -> None:
    from representations.axes import FRAMES

    assert tuple(FRAMES) == UPS
    assert len(set(FORMATS)) == len(FORMATS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ply", "final.ply"), ("ply-compressed", "final.compressed.ply"), ("splat", "final.splat"),
     ("spz", "final.spz")],
)  # fmt: skip
def test_each_format_has_its_place_in_the_run(
    sdi_gs: Run, trained: Path, kind: str, name: str
) -> None:
    count = len(read_ply(trained / "final.ply"))
    said = sdi_gs("export", trained, "--format", kind)
    assert said.code == 0, said.err
    assert said.out.startswith(f"{trained / name}  ({count} splats, ")
    assert (trained / name).stat().st_size > 0


def test_options_change_the_file_and_not_the_asset_of_the_run(sdi_gs: Run, trained: Path) -> None:
    asset = (trained / "final.ply").read_bytes()
    said = sdi_gs("export", trained, "--format", "ply", "--sh-degree", 2, "--up", "y")
    assert said.code == 0, said.err
    assert (trained / "final.ply").read_bytes() == asset
    original, other = read_ply(trained / "final.ply"), read_ply(trained / "export.ply", "y")
    assert other.sh_degree == 2
    assert float(other.sh_rest.abs().max()) == 0.0  # padded: the run has one colour per splat
    assert torch.equal(other.means, original.means)


def test_min_opacity_leaves_the_faint_ones_out(sdi_gs: Run, trained: Path, tmp_path: Path) -> None:
    opacity = read_ply(trained / "final.ply").opacity_logit.sigmoid()
    limit = float(opacity.median())
    out = tmp_path / "a.ply"
    said = sdi_gs("export", trained, "--min-opacity", limit, "--out", out)
    assert said.code == 0, said.err
    kept = read_ply(out).opacity_logit.sigmoid()
    assert 0 < len(kept) < len(opacity)
    assert float(kept.min()) >= limit - 1e-6


def test_a_splat_file_is_exported_like_a_run(sdi_gs: Run, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "asset.ply"
    file.write_bytes((trained / "final.ply").read_bytes())
    said = sdi_gs("export", file, "--format", "splat")
    assert said.code == 0, said.err
    again = tmp_path / "again.ply"
    said = sdi_gs("export", tmp_path / "asset.splat", "--format", "ply", "--out", again)
    assert said.code == 0, said.err
    order = torch.cdist(read_ply(file).means, read_ply(again).means).argmin(1)
    torch.testing.assert_close(read_ply(again).means[order], read_ply(file).means)
    assert len(read_splat(tmp_path / "asset.splat")) == len(read_ply(file))
    # neither itself nor a neighbour is written over
    for kind in ("ply", "splat"):
        said = sdi_gs("export", file, "--format", kind)
        assert (said.code, "name the file to write with --out" in said.err) == (2, True)
    assert file.read_bytes() == (trained / "final.ply").read_bytes()
    said = sdi_gs("export", file)
    assert (said.code, "--format spz" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "spzz"), "--format spzz: did you mean 'spz'?"),
        (
            ("--format", "lcc"),
            "known here: ply, ply-compressed, splat, spz, sog, ksplat, gltf-splats",
        ),
        (("--up", "w"), "--up w: known here: viewer, y, z"),
        (("--sh-degree", "4"), "--sh-degree 4: allowed are 0"),
        (("--min-opacity", "1.5"), "--min-opacity 1.5: allowed are 0"),
        (("--min-opacity", "nan"), "--min-opacity nan: allowed are 0"),
        (("--min-opacity", "1"), "--min-opacity 1; write a smaller value"),
        (("--format", "glb", "--up", "z"), "--up z: for splats, and --format glb writes triangles"),
        (
            ("--format", "obj", "--sh-degree", "0", "--min-opacity", "0"),
            "--sh-degree 0, --min-op",
        ),
        (("--format", "splat", "--sh-degree", "1"), "a .splat file holds one colour per splat"),
        (("--format", "html", "--up", "z"), "stands its splats upright by itself"),
    ],
)
def test_bad_options_are_told_and_change_nothing(
    sdi_gs: Run, trained: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = contents(trained)
    result = sdi_gs("export", trained, *arguments)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert contents(trained) == before


@pytest.mark.parametrize("kind", ["sog", "html"])
def test_without_node_one_message_says_what_to_install(
    sdi_gs: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("representations.export.forge.installed", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    before = contents(trained)
    result = sdi_gs("export", trained, "--format", kind)
    assert result.code == 2
    assert "install Node.js 20 or newer" in result.err
    assert len(result.err.splitlines()) == 1
    assert contents(trained) == before


@pytest.mark.parametrize("kind", SPLAT_FORMATS)
def test_a_field_has_no_splats_in_any_format(
    sdi_gs: Run, field_config: Path, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    run = tmp_path_factory.getbasetemp() / "field-of-exports"
    if not run.exists():
        assert sdi_gs("generate", "a mug", "--config", field_config, "--out", run).code == 0
    result = sdi_gs("export", run, "--format", kind)
    assert result.code == 2
    assert "sdi-gs convert RUN --to gaussians" in result.err


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"solid cube", "no PLY"), (b"ply\nformat ascii 1.0\nend_header\n", "needs 'vertex'")],
)
def test_a_file_that_holds_no_splats_is_told(
    sdi_gs: Run, tmp_path: Path, data: bytes, said: str
) -> None:
    file = tmp_path / "a.ply"
    file.write_bytes(data)
    result = sdi_gs("export", file, "--format", "spz")
    assert result.code == 2
    assert said in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
