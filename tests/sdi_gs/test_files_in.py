# SPDX-License-Identifier: Apache-2.0
"""Files of other programs at the command line: read right, or told how to; and a camera that finds
what they hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from representations.cloud import SplatCloud
from representations.export import Layout, read_ply, write_ply, write_splat
from representations.framing import Frame, frame_of
from representations.reading import ENDINGS
from sdi_gs.cli import files
from sdi_gs.splat_files import open_splats

from ..representations.test_reading import activated, columns, ksplat, write
from ..representations.test_splat_files import cloud

Run = Callable[..., Any]


def ball(count: int = 400, radius: float = 0.5) -> SplatCloud:
    """Opaque, round, closed; red in front (+x), green elsewhere."""
    rng = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    front = normal[:, :1] > 0.3
    colour = torch.where(front, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.8, 0.1]))
    return SplatCloud(
        means=radius * normal,
        log_scale=torch.full((count, 3), math.log(0.12 * radius)),
        quat_wxyz=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        opacity_logit=torch.full((count,), 6.0),
        sh_dc=(colour - 0.5) / 0.28209479177387814,
        sh_rest=torch.zeros(count, 0, 3),
    )


def moved(splats: SplatCloud, zoom: float, offset: tuple[float, float, float]) -> SplatCloud:
    means = splats.means.double() * zoom + torch.tensor(offset, dtype=torch.float64)
    return splats.replace(means=means.float(), log_scale=splats.log_scale + math.log(zoom))


PLACES = {
    "a tenth of a millimetre": (1e-4, (0.0, 0.0, 0.0)),
    "five kilometres": (5000.0, (0.0, 0.0, 0.0)),
    "off centre": (1.0, (8.0, -3.0, 20.0)),
    "small and far": (0.01, (100.0, 0.0, -40.0)),
    "a planet": (1e7, (3e7, 0.0, 0.0)),
}


@pytest.mark.parametrize("place", PLACES)
def test_size_and_place_do_not_matter_to_a_picture(place: str, tmp_path: Path) -> None:
    """The camera moves along: the same picture, up to the rounding of positions in float32."""
    from sdi_gs.look import stage

    pictures = []
    for name, splats in (("a", ball()), ("b", moved(ball(), *PLACES[place]))):
        write_ply(tmp_path / f"{name}.ply", splats)
        opened = open_splats(tmp_path / f"{name}.ply")
        pictures.append(stage(opened.config, opened.shown).turntable(2, 48, 15.0))
    covered = (pictures[0].amin(1) < 0.5).float().mean()
    assert 0.3 < float(covered) < 0.8
    assert float((pictures[0] - pictures[1]).abs().mean()) < 0.004


@pytest.mark.parametrize("place", PLACES)
def test_size_and_place_do_not_matter_to_a_mesh(place: str, sdi_gs: Run, tmp_path: Path) -> None:
    zoom, offset = PLACES[place]
    meshes = []
    for name, splats in (("a", ball()), ("b", moved(ball(), zoom, offset))):
        write_ply(tmp_path / f"{name}.ply", splats)
        out = tmp_path / f"{name}.glb"
        said = sdi_gs(
            "export", tmp_path / f"{name}.ply", "--format", "glb", "--resolution", 32, "--out", out
        )
        assert said.code == 0, said.err
        meshes.append(trimesh.load_mesh(out))
    one, two = meshes
    assert len(two.faces) == pytest.approx(len(one.faces), rel=0.03)
    where = two.bounds.mean(0)[[2, 0, 1]]  # y up, front +z: back to our axes
    assert np.abs(where - offset).max() < 0.05 * zoom
    assert np.ptp(two.bounds, axis=0) == pytest.approx(zoom * np.ptp(one.bounds, axis=0), rel=0.05)


def test_one_splat_is_seen(tmp_path: Path) -> None:
    from sdi_gs.look import stage

    for scale in (1e-6, 1.0, 1e6):
        single = moved(ball().map(lambda tensor: tensor[:1]), scale, (5.0, 5.0, 5.0))
        write_ply(tmp_path / "a.ply", single)
        opened = open_splats(tmp_path / "a.ply")
        picture = stage(opened.config, opened.shown).turntable(1, 48, 15.0)[0]
        share = float((picture.amin(0) < 0.5).float().mean())
        assert 0.03 < share < 0.8, scale


def test_strays_do_not_move_the_camera() -> None:
    whole = ball()
    strays = whole.map(lambda tensor: tensor[:8])
    strays = strays.replace(means=strays.means + 1e6)
    both = SplatCloud(
        *(torch.cat([a, b]) for (_, a), (_, b) in zip(whole.items(), strays.items(), strict=True))
    )
    one, two = frame_of(whole), frame_of(both)
    assert two.radius == pytest.approx(one.radius, rel=0.1)
    assert float((one.centre - two.centre).abs().max()) < 0.1


def test_bringing_and_going_back() -> None:
    frame = Frame(torch.tensor([1.0, 2.0, 3.0]).double(), 4.0)
    there = frame.bring(ball(), 0.5)
    torch.testing.assert_close(frame.back(there.means, 0.5).float(), ball().means)
    torch.testing.assert_close(there.log_scale, ball().log_scale + math.log(0.5 / 4.0))


def test_the_words_are_those_of_the_library() -> None:
    from representations.axes import FRAMES

    assert tuple(FRAMES) == files.UPS


def test_what_is_noticed_is_said_and_works_when_typed(sdi_gs: Run, tmp_path: Path) -> None:
    before = ball(50)
    file, out = write(tmp_path / "in.ply", activated(before)), tmp_path / "out.ply"
    said = sdi_gs("export", file, "--in-up", "z", "--format", "ply", "--up", "z", "--out", out)
    assert (said.code, "--activated reads them right" in said.err) == (0, True)
    said = sdi_gs("export", file, "--in-up", "z", "--activated", "--format", "ply", "--up", "z",
                  "--out", out, "--force")  # fmt: skip
    assert (said.code, said.err) == (0, "")
    got = read_ply(out, "z")
    torch.testing.assert_close(got.log_scale, before.log_scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.opacity_logit, before.opacity_logit, atol=1e-3, rtol=0)


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["ply", "splat"])
def test_bad_rows_can_be_dropped_where_it_says_so(
    sdi_gs: Run, tmp_path: Path, kind: str, fault: float
) -> None:
    file, out = tmp_path / f"in.{kind}", tmp_path / "out.ply"
    (write_ply if kind == "ply" else write_splat)(file, ball(60))
    raw = bytearray(file.read_bytes())
    at = raw.index(b"end_header\n") + 11 if kind == "ply" else 0
    raw[at : at + 4] = np.float32(fault).tobytes()
    file.write_bytes(raw)
    said = sdi_gs("export", file, "--format", "ply", "--out", out)
    assert said.code == 2
    assert "1 of 60 splats" in said.err
    assert "row 0; --drop-bad" in said.err
    said = sdi_gs("export", file, "--drop-bad", "--format", "ply", "--out", out)
    assert (said.code, "1 of 60 splats were left out: row 0" in said.err) == (0, True)
    assert len(read_ply(out)) == 59


def test_every_format_is_as_good_as_a_run(sdi_gs: Run, tmp_path: Path) -> None:
    before = ball(60)
    write_ply(tmp_path / "a.ply", before)
    write_splat(tmp_path / "a.splat", before)
    means = before.means.clamp(-1, 1)
    held = Layout().apply(before.replace(means=means))
    (tmp_path / "a.ksplat").write_bytes(ksplat(held, 0, 0, capacity=30))
    assert sdi_gs("export", tmp_path / "a.ply", "--format", "spz").code == 0
    for ending in (".ply", ".splat", ".ksplat", ".spz"):
        assert ending in ENDINGS
        file = tmp_path / f"a{ending}"
        said = sdi_gs("export", file, "--format", "ply", "--out", tmp_path / f"from{ending}.ply")
        assert said.code == 0, said.err
        got = read_ply(tmp_path / f"from{ending}.ply")
        assert float((got.means.sort(0)[0] - means.sort(0)[0]).abs().max()) < 1e-3, ending
        out = tmp_path / f"pictures{ending}"
        said = sdi_gs("render", file, "--frames", 2, "--size", 32, "--format", "gif", "--out", out)
        assert said.code == 0, said.err
        assert (out / "preview.png").is_file()


@pytest.mark.parametrize("kind", ["ply", "rgb", "splat"])
def test_a_run_starts_from_any_of_them(sdi_gs: Run, fast: Path, tmp_path: Path, kind: str) -> None:
    before, file = ball(50), tmp_path / f"a.{'splat' if kind == 'splat' else 'ply'}"
    if kind == "splat":
        write_splat(file, before)
    else:
        held = columns(Layout().apply(before))
        if kind == "rgb":
            for i, name in enumerate(("red", "green", "blue")):
                held[name] = np.full(50, 51, np.uint8)
                del held[f"f_dc_{i}"]
        write(file, held)
    out = tmp_path / "run"
    said = sdi_gs("generate", "a red mug", "--config", fast, "--init", file, "--steps", 1,
                  "--out", out)  # fmt: skip
    assert said.code == 0, said.err
    assert ("red, green and blue" in said.out) == (kind == "rgb")
    assert len(read_ply(out / "final.ply")) > 0


def test_harmonics_that_a_run_does_not_train_are_not_lost_in_silence(
    sdi_gs: Run, fast: Path, tmp_path: Path
) -> None:
    write_ply(tmp_path / "a.ply", cloud(40, 2))
    words = ("generate", "a red mug", "--config", fast, "--init", tmp_path / "a.ply", "--steps", 1)
    said = sdi_gs(*words, "--out", tmp_path / "one")
    assert (said.code, "representation.sh_degree=2" in said.out) == (0, True)
    said = sdi_gs(*words, "representation.sh_degree=2", "--out", tmp_path / "two")
    assert (said.code, "sh_degree" in said.out) == (0, False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export", "{a}", "--format", "spz", "--in-up", "x"), "--in-up x: known here: viewer"),
        (("export", "{run}", "--activated"), "--activated is for a file, and"),
        (("generate", "a mug", "--drop-bad"), "--drop-bad is for the file of --init"),
        (("generate", "a mug", "--init", "{mesh}", "--drop-bad"), "read as a mesh or points"),
        (("generate", "a mug", "--init", "{a}.no"), "does not exist"),
        (("export", "{a}.no", "--format", "spz"), "does not exist"),
        (("render", "{a}.no"), "does not exist"),
        (("resume", "{a}.no"), "does not exist"),
        (("view", "{a}.no"), "does not exist"),
        (("export", "{a}", "--format", "spz", "--out", "y.ply"), "write --out y.spz"),
        (("export", "{a}", "--format", "splat", "--out", "y.compressed.ply"), "--out y.splat"),
        (("export", "{a}", "--format", "glb", "--out", "y.obj"), "--out y.glb"),
        (("export", "{a}", "--format", "ply", "--out", "y.compressed.ply"), "--out y.ply"),
        (("export", "{a}", "--format", "mesh-ply", "--out", "y.SPZ"), "--out y.ply"),
    ],
)
def test_mistakes(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    from sdi_gs.watch import viewer

    monkeypatch.setattr(viewer, "require_viser", lambda: None)
    monkeypatch.chdir(tmp_path)
    write_ply(tmp_path / "a.ply", ball(20))
    (tmp_path / "m.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    names = {"a": tmp_path / "a.ply", "run": tmp_path, "mesh": tmp_path / "m.obj"}
    said = sdi_gs(*(word.format(**names) for word in words))
    assert said.code == 2
    assert told in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "m.obj"]


def test_a_compressed_ply_may_be_called_a_ply(sdi_gs: Run, tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", ball(20))
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "ply-compressed", "--out",
                  tmp_path / "b.ply")  # fmt: skip
    assert said.code == 0, said.err
    assert len(read_ply(tmp_path / "b.ply")) == 20


CUTS = ("--crop=0,0,0,0.6", "--drop-floaters", "--max-splats", "100")


def scattered() -> SplatCloud:
    """A ball of 400 with one splat nearby and one far away."""
    whole = ball()
    strays = whole.map(lambda tensor: tensor[:2])
    strays = strays.replace(means=torch.tensor([[0.0, 0.0, 40.0], [0.0, 0.0, 0.0]]),
                            log_scale=torch.full((2, 3), math.log(1e-3)))  # fmt: skip
    pairs = zip(whole.items(), strays.items(), strict=True)
    return SplatCloud(*(torch.cat([a, b]) for (_, a), (_, b) in pairs))


def test_what_is_cut_off_is_counted(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    """Of a file as it is read, for every verb; of a run in the line of its export."""
    write_ply(tmp_path / "a.ply", scattered())
    counts = ("1 of 402 splats are left out: outside", "1 of 401 splats are left out: floaters",
              "300 of 400 splats are left out: the least")  # fmt: skip
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "spz", *CUTS)
    assert (said.code, [count in said.err for count in counts]) == (0, [True] * 3), said.err
    assert "(100 splats," in said.out
    said = sdi_gs(
        "render", tmp_path / "a.ply", "--frames", 2, "--size", 32, "--format", "gif", *CUTS
    )
    assert (said.code, [count in said.err for count in counts]) == (0, [True] * 3), said.err
    out = tmp_path / "run"
    said = sdi_gs("generate", "a red mug", "--config", fast, "--init", tmp_path / "a.ply",
                  "--steps", 1, "--out", out, *CUTS, "representation.max_count=120")  # fmt: skip
    assert (said.code, [count in said.out for count in counts]) == (0, [True] * 3), said.err
    most = len(read_ply(out / "final.ply")) - 10
    said = sdi_gs("export", out, "--format", "ply", "--max-splats", most)
    assert (said.code, "splats are left out: the least" in said.out) == (0, True), said.err
    assert len(read_ply(out / "export.ply")) == most
    said = sdi_gs("export", out, "--format", "glb", "--crop=1")
    assert (said.code, "--crop=1: for splats" in said.err) == (2, True)
    said = sdi_gs("render", out, "--max-splats", 5)
    assert (said.code, "--max-splats 5 is for a file" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--crop=a",), "--crop=-1,-1,0,1,1,2"),
        (("--crop=1,2",), "a radius around the middle"),
        (("--max-splats", "0"), "--max-splats 0: allowed is 1 or more"),
        (("--crop=99,0,0,1",), "nothing is left"),
        (("--spz-version", "5"), "--spz-version 5: written are 3"),
    ],
)
def test_cuts_that_cannot_be(
    sdi_gs: Run, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    write_ply(tmp_path / "a.ply", ball(20))
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "spz", *words)
    assert (said.code, told in said.err) == (2, True), said.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_a_gltf_of_splats_is_as_good_as_a_ply(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    before = ball(60)
    write_ply(tmp_path / "a.ply", before)
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "gltf-splats")
    assert said.code == 0, said.err
    file = tmp_path / "a.splats.glb"
    said = sdi_gs("export", file, "--format", "ply", "--out", tmp_path / "b.ply")
    assert said.code == 0, said.err
    torch.testing.assert_close(read_ply(tmp_path / "b.ply").means, before.means)
    said = sdi_gs("generate", "a red mug", "--config", fast, "--init", file, "--steps", 1,
                  "--out", tmp_path / "run")  # fmt: skip
    assert said.code == 0, said.err
    assert "kind: splats" in (tmp_path / "run" / "config.yaml").read_text()
    # A mesh stays one.
    trimesh.creation.box().export(tmp_path / "box.glb")
    said = sdi_gs("export", tmp_path / "box.glb", "--format", "ply", "--out", tmp_path / "c.ply")
    assert (said.code, "triangles (.glb) open in any mesh viewer" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "gltf-splats", "--up", "z"), "--up z: a glTF file has y up"),
        (("--format", "usdz", "--up", "viewer"), "write --up y, --up z, or leave it out"),
        (("--format", "ply", "--spz-version", "4"), "--spz-version 4: is of --format spz"),
        (("--format", "gltf-splats", "--out", "b.ply"), "write --out b.splats.glb"),
        (("--format", "usdc", "--out", "b.usda"), "write --out b.usdc"),
    ],
)
def test_formats_that_cannot_be_so(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_ply(tmp_path / "a.ply", ball(20))
    said = sdi_gs("export", "a.ply", *words)
    assert (said.code, told in said.err) == (2, True), said.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_sog_without_node_is_written_by_gaussforge(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gaussforge", reason="gaussforge is not installed (extra 'formats')")
    monkeypatch.setenv("PATH", str(tmp_path))
    write_ply(tmp_path / "a.ply", ball(60))
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "sog")
    assert (said.code, "written by gaussforge" in said.out) == (0, True), said.err


def test_a_sentence_with_an_equals_sign_is_told_how_it_works(
    sdi_gs: Run, fast: Path, tmp_path: Path
) -> None:
    import shlex

    said = sdi_gs("generate", "e=mc2 on a board", "--config", fast)
    assert (said.code, "'e=mc2 on a board' looks like a setting" in said.err) == (2, True), said.err
    typed = shlex.split(said.err.strip().rpartition("write ")[2])
    assert typed[-1] == "prompt=e=mc2 on a board"
    said = sdi_gs("generate", typed[-1], "--config", fast, "--steps", 1, "--out", tmp_path / "a")
    assert said.code == 0, said.err
    assert "prompt: e=mc2 on a board" in (tmp_path / "a" / "config.yaml").read_text()
    # A misspelt setting keeps its own hint.
    said = sdi_gs("generate", "guidence.cfg_scale=5", "--config", fast)
    assert (said.code, "guidance" in said.err) == (2, True)
