# SPDX-License-Identifier: Apache-2.0
"""What all splat formats share, and the ones that other programs write; tests/viewers has the
proofs by real readers."""

from __future__ import annotations

import builtins
import json
import math
import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from representations.export import Layout, packed, playcanvas, read_ply, write_ply, write_splat
from representations.export.packed import MissingTool
from representations.export.splat import falling

from .test_splat_files import cloud

WRITERS = {
    "ply": write_ply,
    "splat": write_splat,
    "compressed": packed.write_compressed_ply,
    "spz": packed.write_spz,
    "sog": lambda path, splats, layout=Layout(): playcanvas.write_by_splat_transform(  # noqa: B008
        path, splats, "sog", layout
    ),
}

STUB = """#!{python}
import json, pathlib, sys
pathlib.Path({log!r}).write_text(json.dumps(sys.argv[1:]))
source, draft = map(pathlib.Path, sys.argv[-2:])
{body}
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """``stub(body)``: a splat-transform that does ``body``; its arguments are in the log."""
    folder, log = tmp_path / "bin", tmp_path / "log.json"
    folder.mkdir()

    def install(body: str, name: str = "splat-transform") -> Path:
        program = folder / name
        program.write_text(STUB.format(python=sys.executable, log=str(log), body=body))
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", str(folder))
        return log

    return install


def copies(stub) -> Path:
    return stub("draft.write_bytes(source.read_bytes())")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"up": "x"}, "viewer, y, z"),
        ({"sh_degree": 4}, "0, 1, 2, 3"),
        ({"sh_degree": -1}, "0, 1, 2, 3"),
        ({"min_opacity": 1.01}, "between 0 and 1"),
        ({"min_opacity": math.nan}, "between 0 and 1"),
    ],
)
def test_a_layout_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        Layout(**settings)


@pytest.mark.parametrize("kind", WRITERS)
def test_faint_splats_are_left_out_of_every_format(tmp_path, stub, kind):
    copies(stub)
    splats = cloud(50)
    opacity = splats.opacity_logit.sigmoid()
    for limit in (0.0, 0.3, 0.8):
        wanted = int((opacity >= limit).sum())
        assert WRITERS[kind](tmp_path / "a", splats, Layout(min_opacity=limit)) == wanted
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(ValueError, match=r"of 50 splats none .* reaches min_opacity=1"):
        WRITERS[kind](tmp_path / "a", splats, Layout(min_opacity=1.0))
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize("up", ["viewer", "y", "z"])
def test_a_file_in_another_frame_is_read_back_to_our_world(tmp_path, up):
    before = cloud(20, 2)
    write_ply(tmp_path / "a.ply", before, Layout(up=up))
    after = read_ply(tmp_path / "a.ply", up)
    assert torch.equal(after.means, before.means)
    torch.testing.assert_close(after.quat_wxyz, before.quat_wxyz, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.sh_rest, before.sh_rest, atol=1e-5, rtol=0)


def test_z_up_is_our_world_as_it_is(tmp_path):
    splats = cloud(20, 3)
    held = Layout(up="z").apply(splats)
    assert torch.equal(held.means, splats.means)
    torch.testing.assert_close(held.quat_wxyz, splats.quat_wxyz)
    torch.testing.assert_close(held.sh_rest, splats.sh_rest, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["compressed", "spz"])
def test_a_failed_write_of_a_packed_file_damages_nothing(tmp_path, monkeypatch, kind):
    pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")
    path = tmp_path / "a"
    WRITERS[kind](path, cloud(5))
    before = path.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        WRITERS[kind](path, cloud(9))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("kind", "named"), [("compressed", "compressed PLY"), ("spz", "SPZ")])
def test_without_gsply_the_message_says_what_to_install(tmp_path, monkeypatch, kind, named):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "gsply":
            raise ImportError("No module named 'gsply'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingTool, match=r"-m pip install 'gsply>=0.4.6,<1'") as caught:
        WRITERS[kind](tmp_path / "a", cloud(3))
    assert str(caught.value).startswith(named)
    assert list(tmp_path.iterdir()) == []


def test_spz_is_of_the_version_that_viewers_read(tmp_path):
    import gzip

    packed.write_spz(tmp_path / "a.spz", cloud(7, 1))
    header = gzip.decompress((tmp_path / "a.spz").read_bytes())[:16]
    assert header[:4] == b"NGSP"
    assert int.from_bytes(header[4:8], "little") == 3
    assert int.from_bytes(header[8:12], "little") == 7
    assert header[12] == 1  # degree of the harmonics


def test_without_node_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"install Node\.js") as caught:
        playcanvas.write_by_splat_transform(tmp_path / "a.sog", cloud(3), "sog")
    assert "npm install -g @playcanvas/splat-transform" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_splat_transform_is_given_our_ply_and_its_file_is_kept(tmp_path, stub):
    log = copies(stub)
    before = cloud(12, 1)
    path = tmp_path / "out" / "a.sog"
    assert playcanvas.write_by_splat_transform(path, before, "sog", Layout(sh_degree=0)) == 12
    assert read_ply(path).sh_degree == 0
    arguments = json.loads(log.read_text())
    assert arguments[:4] == ["-q", "-w", "-g", "cpu"]
    assert arguments[-1].endswith(".sog")
    assert not Path(arguments[-2]).exists()  # nothing stays behind


def test_npx_is_asked_where_nothing_is_installed(tmp_path, stub):
    log = stub("draft.write_bytes(source.read_bytes())", name="npx")
    playcanvas.write_by_splat_transform(tmp_path / "a.sog", cloud(3), "sog")
    arguments = json.loads(log.read_text())
    assert arguments[0] == "--yes"  # else it waits for an answer that nobody gives
    assert "--package=@playcanvas/splat-transform@>=2.7 <4" in arguments


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('Error: out of cheese')", "exit code 1.*out of cheese"),
        ("pass", "exit code 0.*no message"),  # success, but no file
        ("draft.touch()", "exit code 0"),
    ],
)
def test_a_program_that_fails_is_quoted_and_damages_nothing(tmp_path, stub, body, said):
    stub(body)
    path = tmp_path / "a.sog"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=said):
        playcanvas.write_by_splat_transform(path, cloud(3), "sog")
    assert path.read_bytes() == b"before"


def test_the_page_begins_in_front_of_the_shape():
    """In the page y is up and our front, +x, is -x."""
    splats = cloud(200)
    splats = splats.replace(
        means=splats.means + torch.tensor([5.0, 0.0, 1.0]),
        opacity_logit=torch.full((200,), 2.0),
    )
    begin = playcanvas.page_settings(splats)["cameras"][0]["initial"]
    (px, py, _), (tx, ty, _) = begin["position"], begin["target"]
    assert px < tx
    assert py > ty
    assert tx == pytest.approx(-5.0, abs=0.5)
    assert ty == pytest.approx(1.0, abs=0.5)
    # every splat is inside the cone that the camera sees
    distance = math.dist(begin["position"], begin["target"])
    reach = max(
        math.dist((-x, z, y), begin["target"]) for x, y, z in splats.means.double().tolist()
    )
    assert reach <= distance * math.sin(math.radians(begin["fov"] / 2))


def test_the_page_of_one_faint_splat_still_has_a_camera():
    splats = cloud(1).replace(opacity_logit=torch.tensor([-3.0]))
    begin = playcanvas.page_settings(splats)["cameras"][0]["initial"]
    assert math.dist(begin["position"], begin["target"]) > 1e-4


def test_the_most_important_come_first_and_equal_ones_as_they_come() -> None:
    """As a stable argsort has it, with zeros of both signs, infinities and many that are equal."""
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    values[::7] = values[::7].round()
    values[:6] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), -0.0, 0.0])
    assert torch.equal(falling(values), torch.argsort(values, descending=True, stable=True))
