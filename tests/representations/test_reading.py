# SPDX-License-Identifier: Apache-2.0
"""One door for every file of splats: each dialect and format against values known beforehand or
against a foreign reader, and files that lie."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from representations.axes import rotate_from_file
from representations.cloud import SplatCloud
from representations.export import Layout, packed, write_ply, write_splat
from representations.ops.constants import SH_DC
from representations.reading import Reading, SplatFileError, holds_splats, read_splats

from .test_splat_files import cloud

AS_IS = Reading(up="z")  # nothing is turned


def columns(splats: SplatCloud) -> dict[str, np.ndarray]:
    """As 3D Gaussian Splatting names them; doubles."""
    held = splats.map(torch.Tensor.double)
    out = {name: held.means[:, i].numpy() for i, name in enumerate("xyz")}
    out |= {f"f_dc_{i}": held.sh_dc[:, i].numpy() for i in range(3)}
    flat = held.sh_rest.transpose(1, 2).reshape(len(splats), -1)
    out |= {f"f_rest_{i}": flat[:, i].numpy() for i in range(flat.shape[1])}
    out["opacity"] = held.opacity_logit.numpy()
    out |= {f"scale_{i}": held.log_scale[:, i].numpy() for i in range(3)}
    return out | {f"rot_{i}": held.quat_wxyz[:, i].numpy() for i in range(4)}


WORDS = {"f2": "half", "f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort"}


def write(path: Path, held: dict[str, np.ndarray], kind: str = "f4", order: str = "<",
          comments: bytes = b"", before: bytes = b"", rows_before: bytes = b"",
          end: bytes = b"\n") -> Path:  # fmt: skip
    """A PLY of these columns; those that are no doubles keep their own type."""
    kinds = {n: kind if v.dtype == np.float64 else v.dtype.str[1:] for n, v in held.items()}
    count = len(next(iter(held.values())))
    form = {"<": b"binary_little_endian", ">": b"binary_big_endian", "": b"ascii"}[order]
    lines = [b"ply", b"format " + form + b" 1.0", *comments.splitlines(), *before.splitlines()]
    lines.append(b"element vertex %d" % count)
    lines += [f"property {WORDS[kinds[name]]} {name}".encode() for name in held]
    rows = np.zeros(count, [(name, (order or "<") + kinds[name]) for name in held])
    for name, values in held.items():
        rows[name] = values
    data = rows.tobytes()
    if not order:
        data = "".join(" ".join(map(repr, row)) + "\n" for row in rows.tolist()).encode()
    path.write_bytes(end.join([*lines, b"end_header", b""]) + rows_before + data)
    return path


def near(got: SplatCloud, wanted: SplatCloud, **within: float) -> None:
    for (name, a), (_, b) in zip(got.items(), wanted.items(), strict=True):
        torch.testing.assert_close(a, b.float(), atol=within.get(name, 0.0), rtol=0, msg=name)


FORMS = {
    "float32": {},
    "float64": {"kind": "f8"},
    "big-endian": {"order": ">"},
    "ascii": {"order": "", "kind": "f8"},
    "latin-1 comment": {"comments": "comment by José\xe9".encode("latin-1")},
    "utf-8 comment": {"comments": "comment by 山田\nobj_info ÄÖ".encode()},
    "windows lines": {"end": b"\r\n"},
    "a table before": {
        "before": b"element camera 2\nproperty float fov\nproperty uchar n",
        "rows_before": bytes(10),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rest", [0, 3, 15])
def test_every_way_to_store_the_same_numbers(tmp_path: Path, form: str, rest: int) -> None:
    before = cloud(40, {0: 0, 3: 1, 15: 3}[rest])
    found = read_splats(write(tmp_path / "a.ply", columns(before), **FORMS[form]), AS_IS)
    near(found.cloud, before)
    assert found.notes == ()


def test_half_precision_is_read_to_half_precision(tmp_path: Path) -> None:
    before = cloud(40)
    got = read_splats(write(tmp_path / "a.ply", columns(before), "f2"), AS_IS).cloud
    near(got, before.map(lambda tensor: tensor.half()))


def test_more_rows_than_a_block_keep_their_order(tmp_path: Path) -> None:
    before = cloud(40_000, 0)
    write_ply(tmp_path / "a.ply", before, Layout(up="z", min_opacity=0.0))
    got = read_splats(tmp_path / "a.ply", AS_IS).cloud
    assert torch.equal(got.means, before.means)
    assert torch.equal(got.log_scale, before.log_scale)


@pytest.mark.parametrize("kind", ["u1", "u2", "float"])
def test_colours_instead_of_harmonics(tmp_path: Path, kind: str) -> None:
    held = columns(cloud(30, 0))
    rgb = np.random.default_rng(0).random((30, 3))
    most = 1.0 if kind == "float" else float(np.iinfo(kind).max)
    for i, name in enumerate(("red", "green", "blue")):
        del held[f"f_dc_{i}"]
        held[name] = rgb[:, i] if kind == "float" else np.round(rgb[:, i] * most).astype(kind)
    found = read_splats(write(tmp_path / "a.ply", held), AS_IS)
    got = 0.5 + SH_DC * found.cloud.sh_dc.double().numpy()
    np.testing.assert_allclose(got, rgb, atol=0.5 / most + 1e-6 if kind != "float" else 1e-6)
    assert "red, green and blue" in found.notes[0]


def test_colours_in_text_are_of_255(tmp_path: Path) -> None:
    held = columns(cloud(3, 0))
    for i, name in enumerate(("red", "green", "blue")):
        del held[f"f_dc_{i}"]
        held[name] = np.array([0, 51, 255], np.uint8)
    got = read_splats(write(tmp_path / "a.ply", held, "f8", ""), AS_IS).cloud
    np.testing.assert_allclose(0.5 + SH_DC * got.sh_dc[:, 0], [0.0, 0.2, 1.0], atol=1e-6)


@pytest.mark.parametrize(("scales", "said"), [(2, "flat splats"), (1, "round ones")])
def test_fewer_scales(tmp_path: Path, scales: int, said: str) -> None:
    before = cloud(30, 1)
    held = columns(before)
    for i in range(scales, 3):
        del held[f"scale_{i}"]
    found = read_splats(write(tmp_path / "a.ply", held), AS_IS)
    got, given = found.cloud.log_scale, before.log_scale
    assert torch.equal(got[:, :scales], given[:, :scales])
    if scales == 1:
        assert torch.equal(got, given[:, :1].repeat(1, 3))
    else:  # a surfel lies across its third axis
        ratio = (got[:, 2] - got[:, :2].amin(1)).exp()
        torch.testing.assert_close(ratio, torch.full((30,), 1e-3), atol=1e-6, rtol=0)
    assert said in found.notes[0]


def test_mip_splattings_filter_keeps_the_mass(tmp_path: Path) -> None:
    """Scales in quadrature; opacity times volume stays: eq. 9 of Yu et al., in doubles."""
    before = cloud(200, 0)
    held = columns(before)
    width = np.exp(np.random.default_rng(1).normal(-4, 2, 200))
    held["filter_3D"] = width
    found = read_splats(write(tmp_path / "a.ply", held, "f8"), AS_IS)
    assert "filter_3D" in found.notes[0]
    scale = np.exp(before.log_scale.double().numpy())
    wide = np.sqrt(scale**2 + width[:, None] ** 2)
    np.testing.assert_allclose(found.cloud.log_scale.exp(), wide, rtol=2e-5)
    opacity = before.opacity_logit.double().sigmoid().numpy() * (scale / wide).prod(1)
    np.testing.assert_allclose(found.cloud.opacity_logit.sigmoid(), opacity, rtol=1e-4, atol=1e-12)


def test_a_filter_of_nothing_changes_nothing(tmp_path: Path) -> None:
    before = cloud(20, 0)
    held = columns(before) | {"filter_3D": np.zeros(20)}
    got = read_splats(write(tmp_path / "a.ply", held), AS_IS).cloud
    near(got, before, log_scale=1e-6, opacity_logit=2e-5)


@pytest.mark.parametrize("comment", [
    b"comment SH order: interleaved", b"comment f_rest is coefficient-major",
    b"comment harmonics rgbrgb...",
])  # fmt: skip
def test_interleaved_harmonics_where_the_header_says_so(tmp_path: Path, comment: bytes) -> None:
    before = cloud(20, 2)
    held = columns(before)
    flat = before.sh_rest.double().reshape(20, -1).numpy()
    held |= {f"f_rest_{i}": flat[:, i] for i in range(24)}
    found = read_splats(write(tmp_path / "a.ply", held, comments=comment), AS_IS)
    near(found.cloud, before)
    assert "interleaved" in found.notes[0]
    other = read_splats(
        write(tmp_path / "b.ply", held, comments=b"comment SH order: planar"), AS_IS
    )
    assert not torch.equal(other.cloud.sh_rest, before.sh_rest)


def test_harmonics_of_degree_4_are_cut_and_said(tmp_path: Path) -> None:
    before = cloud(20, 3)
    held = columns(before)
    flat = before.sh_rest.transpose(1, 2).double().numpy()
    padded = np.concatenate([flat, np.ones((20, 3, 9))], axis=2).reshape(20, -1)
    held |= {f"f_rest_{i}": padded[:, i] for i in range(72)}
    found = read_splats(write(tmp_path / "a.ply", held), AS_IS)
    near(found.cloud, before)
    assert "degree 4" in found.notes[0]


@pytest.mark.parametrize("up", ["y", "z"])
def test_a_vertical_axis_in_the_header_is_followed(tmp_path: Path, up: str) -> None:
    before = cloud(20, 1)
    held = columns(Layout(up=up, min_opacity=0.0).apply(before))
    path = write(tmp_path / "a.ply", held, comments=f"comment Vertical Axis: {up}".encode())
    found = read_splats(path)
    assert torch.equal(found.cloud.means, before.means)
    assert f"{up} is up" in found.notes[0]
    # and what is asked for is stronger
    turned = read_splats(path, Reading(up="viewer")).cloud
    assert not torch.equal(turned.means, before.means)


def test_our_own_files_say_their_axis(tmp_path: Path) -> None:
    before = cloud(20, 1)
    for up in ("viewer", "y", "z"):
        write_ply(tmp_path / "a.ply", before, Layout(up=up, min_opacity=0.0))
        assert torch.equal(read_splats(tmp_path / "a.ply").cloud.means, before.means)


@pytest.mark.parametrize("order", ["<", ""])
def test_doubles_that_float32_would_blur_are_recentred(tmp_path: Path, order: str) -> None:
    """Metres of a map: float32 steps of 0.5 m at 5,000 km."""
    before = cloud(50, 0)
    held = columns(before)
    offset = np.array([431_234.0, 5_411_876.0, 120.0])
    for i, name in enumerate("xyz"):
        held[name] = held[name] + offset[i]
    found = read_splats(write(tmp_path / "a.ply", held, "f8", order), AS_IS)
    moved = np.stack([held[name] for name in "xyz"], 1) - found.cloud.means.double().numpy()
    assert np.abs(moved - moved.round()[0]).max() < 1e-6
    (note,) = found.notes
    told = [float(word.strip(",")) for word in note.split("recentred, ")[1].split()[:3]]
    np.testing.assert_array_equal(told, moved.round()[0])


def test_doubles_that_are_floats_stay_where_they_are(tmp_path: Path) -> None:
    before = cloud(50, 0)
    before = before.replace(means=before.means + 1000.0)
    found = read_splats(write(tmp_path / "a.ply", columns(before), "f8"), AS_IS)
    assert torch.equal(found.cloud.means, before.means)
    assert found.notes == ()


def activated(splats: SplatCloud) -> dict[str, np.ndarray]:
    held = columns(splats)
    held |= {f"scale_{i}": np.exp(held[f"scale_{i}"]) for i in range(3)}
    return held | {"opacity": 1.0 / (1.0 + np.exp(-held["opacity"]))}


def test_activated_values_are_noticed_and_read(tmp_path: Path) -> None:
    before = cloud(50, 1)
    path = write(tmp_path / "a.ply", activated(before))
    assert "--activated" in read_splats(path, AS_IS).notes[0]
    found = read_splats(path, Reading(up="z", activated=True))
    near(found.cloud, before, log_scale=1e-5, opacity_logit=1e-4)
    assert found.notes == ()


def test_what_is_not_activated_is_not_suspected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ply", columns(cloud(50, 1)))
    assert read_splats(path).notes == ()
    with pytest.raises(SplatFileError, match="leave --activated out"):
        read_splats(path, Reading(activated=True))  # logs are no scales


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.5, 1.0)])
def test_opacities_of_exactly_0_and_1_are_opacities(
    tmp_path: Path, ends: tuple[float, float]
) -> None:
    held = activated(cloud(2, 0)) | {"opacity": np.array(ends)}
    found = read_splats(write(tmp_path / "a.ply", held), Reading(activated=True))
    torch.testing.assert_close(
        found.cloud.opacity_logit.sigmoid(), torch.tensor(ends), atol=1e-5, rtol=0
    )


def test_activated_is_a_question_to_a_ply_only(tmp_path: Path) -> None:
    write_splat(tmp_path / "a.splat", cloud(5, 0))
    with pytest.raises(SplatFileError, match="one way only"):
        read_splats(tmp_path / "a.splat", Reading(activated=True))


FAULTS = {
    "nan position": ("x", math.nan), "infinite scale": ("scale_1", math.inf),
    "infinite opacity": ("opacity", -math.inf), "nan harmonics": ("f_rest_4", math.nan),
    "no rotation": ("rot", 0.0), "too large for float32": ("y", 1e39),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_rows_are_named_or_dropped(tmp_path: Path, fault: str) -> None:
    before = cloud(60, 1)
    held = columns(before)
    name, value = FAULTS[fault]
    for column in [c for c in held if c == name or c.startswith(name + "_")]:
        held[column][[3, 17]] = value
    path = write(tmp_path / "a.ply", held, "f8")
    with pytest.raises(SplatFileError, match=r"2 of 60 splats .*rows 3, 17; --drop-bad"):
        read_splats(path, AS_IS)
    found = read_splats(path, Reading(up="z", drop_bad=True))
    keep = [i for i in range(60) if i not in (3, 17)]
    near(found.cloud, before.map(lambda tensor: tensor[keep]))
    assert found.notes == ("2 of 60 splats were left out: rows 3, 17",)


def test_bad_rows_of_a_splat_file(tmp_path: Path) -> None:
    write_splat(tmp_path / "a.splat", cloud(10, 0))
    raw = bytearray((tmp_path / "a.splat").read_bytes())
    raw[32:36], raw[64 + 12 : 64 + 16] = struct.pack("<f", math.nan), bytes(4)
    raw[96 + 28 : 96 + 32] = bytes([128] * 4)
    (tmp_path / "a.splat").write_bytes(raw)
    with pytest.raises(SplatFileError, match=r"3 of 10 splats .* rows 1, 2, 3; --drop-bad"):
        read_splats(tmp_path / "a.splat")
    assert len(read_splats(tmp_path / "a.splat", Reading(drop_bad=True)).cloud) == 7


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    held = columns(cloud(9, 0)) | {"x": np.full(9, math.nan)}
    with pytest.raises(SplatFileError, match=r"rows 0, 1, 2, 3, 4, \.\.\.; none is left"):
        read_splats(write(tmp_path / "a.ply", held), Reading(drop_bad=True))


@pytest.mark.parametrize("kind", ["compressed", "spz"])
def test_our_packed_files_are_read_as_gsply_reads_them(tmp_path: Path, kind: str) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")
    before = cloud(700, 3)
    path = tmp_path / ("a.compressed.ply" if kind == "compressed" else "a.spz")
    (packed.write_compressed_ply if kind == "compressed" else packed.write_spz)(path, before)
    theirs = gsply.plyread(path) if kind == "compressed" else gsply.read_spz(path)
    same_as_gsply(read_splats(path, AS_IS).cloud, theirs)
    assert (
        float((read_splats(path).cloud.means.sort(0)[0] - before.means.sort(0)[0]).abs().max())
        < 0.01
    )


def same_as_gsply(ours: SplatCloud, theirs: object, quat: float = 1e-6) -> None:
    wanted = SplatCloud(*(
        torch.from_numpy(np.array(getattr(theirs, name), np.float32))
        for name in ("means", "scales", "quats", "opacities", "sh0", "shN")
    ))  # fmt: skip
    wanted = wanted.replace(opacity_logit=wanted.opacity_logit.reshape(-1))
    edges = wanted.opacity_logit.abs() < 10  # where they cut at other ends
    near(
        ours.replace(opacity_logit=torch.where(edges, ours.opacity_logit, 0.0)),
        wanted.replace(opacity_logit=torch.where(edges, wanted.opacity_logit, 0.0)),
        means=1e-5, log_scale=1e-5, quat_wxyz=quat, opacity_logit=2e-4, sh_dc=1e-5, sh_rest=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("bits", [1, 12, 20])
def test_spz_of_either_container(tmp_path: Path, version: int, bits: int) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")
    pytest.importorskip("zstandard", reason="zstandard is not installed (extra 'formats')")
    held = packed._columns(cloud(300, 0))
    data = gsply.GSData.from_arrays(**held, shN=cloud(300, 2).sh_rest.numpy())
    gsply.write_spz(tmp_path / "a.spz", data, version=version, fractional_bits=bits)
    same_as_gsply(read_splats(tmp_path / "a.spz", AS_IS).cloud, gsply.read_spz(tmp_path / "a.spz"))


def old_spz(version: int, count: int = 3, claimed: int | None = None, degree: int = 0) -> bytes:
    """Versions 1 and 2, which nobody writes any more: positions 1.5, -2, 0.25, ..."""
    place = np.tile([1.5, -2.0, 0.25], (count, 1))
    if version == 1:
        positions = place.astype("<f2").tobytes()
    else:
        fixed = (place * 4096).astype("<i4").reshape(-1, 1).view("u1")[:, :3]
        positions = np.ascontiguousarray(fixed).tobytes()
    head = struct.pack("<4sIIBBBB", b"NGSP", version, claimed or count, degree, 12, 0, 0)
    tables = [[204], [255, 127, 0], [160, 0, 255], [255, 128, 128]]
    return head + positions + b"".join(bytes(table) * count for table in tables)


@pytest.mark.parametrize("version", [1, 2])
def test_spz_of_the_first_versions(tmp_path: Path, version: int) -> None:
    (tmp_path / "a.spz").write_bytes(gzip.compress(old_spz(version)))
    found = read_splats(tmp_path / "a.spz", AS_IS)
    got = found.cloud
    torch.testing.assert_close(got.means, torch.tensor([[1.5, -2.0, 0.25]]).repeat(3, 1))
    torch.testing.assert_close(got.opacity_logit.sigmoid(), torch.full((3,), 0.8))
    torch.testing.assert_close(got.log_scale[0], torch.tensor([0.0, -10.0, 5.9375]))
    torch.testing.assert_close(got.sh_dc[0], torch.tensor([0.5, -0.5 / 255, -0.5]) / 0.15)
    wanted = torch.tensor([0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(got.quat_wxyz[0], wanted, atol=0.01, rtol=0)
    assert "--in-up y" in found.notes[0]


def ksplat(splats: SplatCloud, level: int, degree: int, capacity: int = 4) -> bytes:
    """Two buckets, the second not full, in one section; harmonics degree by degree."""
    n = len(splats)
    centres = np.array([[0.0, 0, 0], [1.0, 0, 0]], "<f4")
    bucket = np.arange(n) // capacity
    half, step = ("<f4", 1.0) if level == 0 else ("<f2", 5.0 / 2 / 32767)
    means = splats.means.double().numpy()
    place = means.astype("<f4") if level == 0 else np.round(
        (means - centres[bucket]) / step + 32767).astype("<u2")  # fmt: skip
    rgba = torch.cat([0.5 + SH_DC * splats.sh_dc, splats.opacity_logit.sigmoid()[:, None]], 1)
    rows = []
    for i in range(n):
        row = place[i].tobytes() + splats.log_scale[i].exp().numpy().astype(half).tobytes()
        row += splats.quat_wxyz[i].numpy().astype(half).tobytes()
        row += (rgba[i].clamp(0, 1) * 255).round().byte().numpy().tobytes()
        first = 0
        for band in (3, 5, 7)[:degree]:
            part = splats.sh_rest[i, first : first + band].T.reshape(-1).numpy()  # by channel
            kind = ("<f4", "<f2", "u1")[level]
            row += (np.round((part + 1.5) / 3 * 255) if level == 2 else part).astype(kind).tobytes()
            first += band
        rows.append(row)
    head = bytearray(4096)
    head[1] = 1
    struct.pack_into("<IIII", head, 4, 1, 1, n, n)
    struct.pack_into("<H", head, 20, level)
    struct.pack_into("<ff", head, 36, -1.5, 1.5)
    section = bytearray(1024)
    struct.pack_into("<4If", section, 0, n, n, capacity, 2, 5.0)
    struct.pack_into("<H2xI4x2I", section, 20, 12, 0 if level == 0 else 32767, 1, 1)
    struct.pack_into("<H", section, 40, degree)
    return bytes(head + section + struct.pack("<I", n - capacity) + centres.tobytes()) + b"".join(
        rows
    )


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ksplat(tmp_path: Path, level: int, degree: int) -> None:
    before = cloud(6, degree)
    before = before.replace(means=before.means.clamp(-1.4, 1.4))
    (tmp_path / "a.ksplat").write_bytes(ksplat(before, level, degree))
    got = read_splats(tmp_path / "a.ksplat", AS_IS).cloud
    rough = 0.0 if level == 0 else 2e-3
    near(
        got.replace(opacity_logit=got.opacity_logit.sigmoid()),
        before.replace(opacity_logit=before.opacity_logit.sigmoid()),
        means=1e-4, log_scale=1e-6 + rough, quat_wxyz=rough, opacity_logit=0.003,
        sh_dc=0.5 / 255 / SH_DC + 1e-5 if _shown(before) else 9.0,
        sh_rest=(0.0, 1e-3, 0.5 * 3 / 255 + 1e-6)[level],
    )  # fmt: skip


def _shown(splats: SplatCloud) -> bool:
    colour = 0.5 + SH_DC * splats.sh_dc
    return bool(((colour >= 0) & (colour <= 1)).all())


def sog(splats: SplatCloud, version: int) -> dict[str, bytes]:
    """A bundle of 16 splats in 4 x 5 pixels; a palette of as many entries."""
    n, rng = len(splats), np.random.default_rng(0)

    def picture(values: np.ndarray, width: int = 4) -> bytes:
        height = -(-len(values) // width)
        full = np.full((height * width, 4), 255, np.uint8)
        full[: len(values), : values.shape[1]] = values
        out = io.BytesIO()
        Image.fromarray(full.reshape(height, width, 4)).save(out, "WEBP", lossless=True, exact=True)
        return out.getvalue()

    means = splats.means.double().numpy()
    logs = np.sign(means) * np.log1p(np.abs(means))
    low, high = logs.min(0), logs.max(0)
    share = np.round((logs - low) / (high - low) * 65535).astype(int)
    quat = torch.nn.functional.normalize(splats.quat_wxyz, dim=-1).numpy()
    largest = np.abs(quat).argmax(1)
    quat = quat * np.sign(quat[np.arange(n), largest])[:, None]
    three = np.stack([np.delete(q, i) for q, i in zip(quat, largest, strict=True)])
    turns = np.c_[np.round((three / math.sqrt(2) + 0.5) * 255), 252 + largest]
    book = np.linspace(-9, 5, 256)
    nearest = lambda values: np.abs(values[..., None] - book).argmin(-1)  # noqa: E731
    scales, colours = nearest(splats.log_scale.numpy()), nearest(splats.sh_dc.numpy())
    opacity = splats.opacity_logit.sigmoid().numpy()
    entries = rng.permutation(n)  # splat i has entry i of the palette
    rest = splats.sh_rest.shape[1]
    palette = np.zeros((64 * -(-n // 64), rest, 3))
    palette[entries] = nearest(splats.sh_rest.numpy())
    files = {
        "means_l.webp": picture(share & 255), "means_u.webp": picture(share >> 8),
        "quats.webp": picture(turns), "scales.webp": picture(scales),
        "shN_centroids.webp": picture(palette.reshape(-1, 3), 64 * rest),
        "shN_labels.webp": picture(np.stack([entries & 255, entries >> 8], 1)),
    }  # fmt: skip
    meta = {
        "means": {"mins": low.tolist(), "maxs": high.tolist(),
                  "files": ["means_l.webp", "means_u.webp"]},
        "quats": {"files": ["quats.webp"]},
        "scales": {"files": ["scales.webp"]},
        "sh0": {"files": ["sh0.webp"]},
        "shN": {"files": ["shN_centroids.webp", "shN_labels.webp"]},
    }  # fmt: skip
    if version == 2:
        files["sh0.webp"] = picture(np.c_[colours, np.round(opacity * 255)])
        meta |= {"version": 2, "count": n}
        for name in ("scales", "sh0", "shN"):
            meta[name]["codebook"] = book.tolist()
    else:
        logits = nearest(splats.opacity_logit.numpy())
        files["sh0.webp"] = picture(np.c_[colours, logits])
        meta["means"]["shape"] = [n, 3]
        meta["scales"] |= {"mins": [-9.0] * 3, "maxs": [5.0] * 3}
        meta["sh0"] |= {"mins": [-9.0] * 4, "maxs": [5.0] * 4}
        meta["shN"] |= {"mins": -9.0, "maxs": 5.0}
    return {"meta.json": json.dumps(meta).encode(), **files}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bundle", [True, False])
def test_sog(tmp_path: Path, version: int, bundle: bool) -> None:
    before = cloud(17, 2)
    files = sog(before, version)
    path = tmp_path / ("a.sog" if bundle else "meta.json")
    if bundle:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
    got = read_splats(path, AS_IS).cloud
    unit = torch.nn.functional.normalize(before.quat_wxyz, dim=-1)
    same = (got.quat_wxyz * unit).sum(-1).sign()[:, None]
    step = 14 / 255 / 2 + 1e-6
    near(
        got.replace(opacity_logit=got.opacity_logit.sigmoid(), quat_wxyz=got.quat_wxyz * same),
        before.replace(opacity_logit=before.opacity_logit.sigmoid(), quat_wxyz=unit),
        means=3e-4, log_scale=step, quat_wxyz=0.01, opacity_logit=0.01, sh_dc=step, sh_rest=step,
    )  # fmt: skip


FOREIGN = ("spz", "ksplat", "sog", "compressed.ply")


@pytest.mark.parametrize("kind", FOREIGN)
def test_gaussforge_writes_and_reads_the_same(tmp_path: Path, kind: str) -> None:
    gaussforge = pytest.importorskip("gaussforge", reason="gaussforge is not installed")
    write_ply(tmp_path / "a.ply", cloud(300, 3))
    forge = gaussforge.GaussForge()
    made = forge.convert((tmp_path / "a.ply").read_bytes(), "ply", kind)["data"]
    (tmp_path / f"a.{kind}").write_bytes(made)
    theirs = forge.read(made, kind)["data"]
    got = read_splats(tmp_path / f"a.{kind}", AS_IS).cloud
    for name, ours in (("positions", got.means), ("scales", got.log_scale), ("colors", got.sh_dc),
                       ("sh", got.sh_rest)):  # fmt: skip
        if (kind, name) == ("ksplat", "sh"):
            continue  # it has an order of its own; ours is that of GaussianSplats3D
        wanted = np.frombuffer(theirs[name], np.float32).reshape(ours.shape)
        np.testing.assert_allclose(ours, wanted, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", ["a.ply", "a.splat", "a.spz"])
def test_a_file_is_what_it_holds(tmp_path: Path, name: str) -> None:
    before = cloud(20, 0)
    (tmp_path / name).write_bytes(gzip.compress(old_spz(2)))
    found = read_splats(tmp_path / name)
    assert len(found.cloud) == 3
    assert (f"ends in {Path(name).suffix}, and it is read" in found.notes[0]) == (name != "a.spz")
    write_ply(tmp_path / "other.bin", before)
    assert len(read_splats(tmp_path / "other.bin").cloud) > 0


def bomb() -> bytes:
    """An SPZ of 3 MB or less whose tables are 2 GB of zeros."""
    packer = zlib.compressobj(9, wbits=31)
    head = struct.pack("<4sIIBBBB", b"NGSP", 3, 100_000_000, 0, 12, 0, 0)
    zeros = bytes(2**22)
    return b"".join([packer.compress(head), *(packer.compress(zeros) for _ in range(500)),
                     packer.flush()])  # fmt: skip


def lying_ply(count: int) -> bytes:
    return b"ply\nformat binary_little_endian 1.0\nelement vertex %d\n" % count + b"".join(
        b"property float %s\n" % name.encode() for name in columns(cloud(1, 0))
    ) + b"end_header\n" + bytes(1000)  # fmt: skip


LIARS = {
    "a.spz": bomb,
    "b.spz": lambda: gzip.compress(old_spz(2, claimed=4_000_000_000)),
    "c.spz": lambda: struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 9_000_000, 3, 12, 0, 6, 32)
    + struct.pack("<QQ", 50, 81_000_000) * 6 + bytes(300),
    "d.ply": lambda: lying_ply(10**12),
    "e.ply": lambda: lying_ply(10**12).replace(b"binary_little_endian", b"ascii"),
    "f.ksplat": lambda: b"\0\1\0\0" + struct.pack("<4I", 1, 1, 2**32 - 1, 2**32 - 1) + bytes(8000),
    "g.sog": lambda: b"PK\3\4" + bytes(300),
    "h.splat": lambda: b"",
}  # fmt: skip


@pytest.mark.parametrize("name", LIARS)
def test_a_lie_is_refused_before_it_is_believed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LIARS[name]())
    tracemalloc.start()
    with pytest.raises(SplatFileError, match=name):
        read_splats(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_buckets_without_centres_are_no_bomb(tmp_path: Path) -> None:
    """A .ksplat of 6 kB whose section claims four billion of them."""
    raw = bytearray(ksplat(cloud(9), 1, 0, capacity=5))
    raw[4096 + 12 : 4096 + 16] = (2**32 - 1).to_bytes(4, "little")  # buckets
    raw[4096 + 20 : 4096 + 22] = bytes(2)  # bytes of a centre
    raw[4096 + 32 : 4096 + 36] = (2**26).to_bytes(4, "little")  # of them full
    (tmp_path / "a.ksplat").write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(SplatFileError, match=r"\.ksplat"):
            read_splats(tmp_path / "a.ksplat")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_sog_whose_picture_is_a_bomb(tmp_path: Path) -> None:
    files = sog(cloud(17, 2), 2)
    out = io.BytesIO()
    Image.new("RGBA", (4000, 4000)).save(out, "WEBP", lossless=True)
    files["quats.webp"] = out.getvalue()
    with zipfile.ZipFile(tmp_path / "a.sog", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(SplatFileError, match="4000 x 4000 pixels"):
        read_splats(tmp_path / "a.sog")


def test_a_mesh_is_told_from_splats(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", cloud(5))
    mesh = b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n"
    (tmp_path / "b.ply").write_bytes(mesh)
    named = ("a.ply", "b.ply", "c.glb", "d.spz")
    assert [holds_splats(tmp_path / name) for name in named] == [True, False, False, True]


def test_every_reader_turns_into_our_frame(tmp_path: Path) -> None:
    before = cloud(6, 1)
    (tmp_path / "a.ksplat").write_bytes(ksplat(before, 0, 1))
    turned = rotate_from_file(read_splats(tmp_path / "a.ksplat", AS_IS).cloud, "viewer")
    near(read_splats(tmp_path / "a.ksplat").cloud, turned, sh_rest=1e-6)
