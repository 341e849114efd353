# SPDX-License-Identifier: Apache-2.0
"""PLY and .splat: layout to the byte, orientation by rendering, and every kind of bad file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from representations.axes import FRAMES, rotate_from_file, rotate_to_file, to_file_matrix
from representations.cloud import SplatCloud
from representations.export import (
    Layout,
    SplatFileError,
    read_ply,
    read_splat,
    write_ply,
    write_splat,
)
from representations.export.ply import property_names
from representations.gaussians import GaussianConfig, GaussianRenderer, InitConfig, initialise
from representations.harmonics import PORTION, basis_rest, evaluate_rest, rotate_rest
from representations.interface import Cameras
from representations.ops.splats.reference import rotation_matrices

from .helpers import cameras_around, seeded


def cloud(count=20, degree=0, seed=0):
    g = seeded(seed)
    quat = torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1)
    return SplatCloud(
        means=torch.randn(count, 3, generator=g) * 0.4,
        log_scale=torch.randn(count, 3, generator=g) * 0.3 - 2.0,
        quat_wxyz=quat,
        opacity_logit=torch.randn(count, generator=g),
        sh_dc=torch.randn(count, 3, generator=g),
        sh_rest=0.3 * torch.randn(count, (degree + 1) ** 2 - 1, 3, generator=g),
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trip(tmp_path, degree):
    before = cloud(degree=degree)
    assert write_ply(tmp_path / "a.ply", before) == 20
    after = read_ply(tmp_path / "a.ply")
    for name in ("means", "log_scale", "opacity_logit", "sh_dc"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    # Quaternions and harmonics are rotated there and back, which rounds.
    torch.testing.assert_close(after.quat_wxyz, before.quat_wxyz, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.sh_rest, before.sh_rest, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("degree", "asked", "floats"),
    [(0, None, 17), (0, 3, 62), (3, None, 62), (3, 0, 17), (3, 1, 26)],
)
def test_header_text_and_size_to_the_byte(tmp_path, degree, asked, floats):
    path = tmp_path / "a.ply"
    write_ply(path, cloud(7, degree), Layout(sh_degree=asked))
    rest = floats - 17
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 7\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    data = path.read_bytes()
    assert data.startswith(header.encode())
    assert len(data) == len(header) + 7 * 4 * floats
    rows = np.frombuffer(data[len(header) :], "<f4").reshape(7, floats)
    assert (rows[:, 3:6] == 0).all()


def test_values_are_stored_before_activation_and_channel_major(tmp_path):
    before = cloud(3, 1)
    path = tmp_path / "a.ply"
    write_ply(path, before)
    data = path.read_bytes()
    rows = np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4").reshape(3, -1)
    column = {name: rows[:, i] for i, name in enumerate(property_names(3))}
    x, y, z = before.means.T.numpy()
    assert (column["x"] == x).all()
    assert (column["y"] == -z).all()
    assert (column["z"] == y).all()
    assert (column["opacity"] == before.opacity_logit.numpy()).all()
    assert (column["scale_1"] == before.log_scale[:, 1].numpy()).all()
    assert (column["f_dc_2"] == before.sh_dc[:, 2].numpy()).all()
    rotated = rotate_to_file(before).sh_rest.numpy()
    assert (column["f_rest_0"] == rotated[:, 0, 0]).all()  # red first ...
    assert (column["f_rest_2"] == rotated[:, 2, 0]).all()
    assert (column["f_rest_3"] == rotated[:, 0, 1]).all()  # ... then green
    length = sum(column[f"rot_{i}"] ** 2 for i in range(4))
    np.testing.assert_allclose(length, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("frame", "up", "front"),
    [("viewer", [0, -1, 0], [1, 0, 0]), ("y", [0, 1, 0], [0, 0, 1]), ("z", [0, 0, 1], [1, 0, 0])],
)
def test_where_up_and_front_point_in_a_file(frame, up, front):
    turn = to_file_matrix(frame)
    assert turn[:, 2].tolist() == up  # what becomes of our +z ...
    assert turn[:, 0].tolist() == front  # ... and of our +x
    assert float(torch.det(turn)) == pytest.approx(1.0)


def test_a_mesh_and_splats_with_y_up_are_in_one_frame():
    from representations.export.mesh import TO_FILE

    np.testing.assert_array_equal(to_file_matrix("y").numpy(), TO_FILE)


@pytest.mark.parametrize("up", FRAMES)
def test_both_ways_to_write_a_rotation_say_the_same(up):
    quat = torch.tensor([FRAMES[up].quat_wxyz], dtype=torch.float64)
    torch.testing.assert_close(rotation_matrices(quat)[0], to_file_matrix(up))


@pytest.mark.parametrize("up", FRAMES)
def test_rotated_splats_from_the_rotated_camera_give_the_same_picture(up):
    ours, cameras = cloud(60, 3, seed=4), cameras_around(2)
    theirs = rotate_to_file(ours, up)
    motion = torch.eye(4)
    motion[:3, :3] = to_file_matrix(up).float()
    followed = Cameras(cameras.world_to_cam @ motion.T, cameras.intrinsics, 32, 32)
    pictures = []
    for splats, view in ((ours, cameras), (theirs, followed)):
        renderer = GaussianRenderer(GaussianConfig(sh_degree=3), cloud=splats)
        with torch.no_grad():
            pictures.append(renderer.render(view, torch.zeros(2, 3))[0].rgb)
    assert float((pictures[0] - pictures[1]).abs().mean()) < 1e-5
    assert float((pictures[0] - pictures[1]).abs().max()) < 1e-2
    back = rotate_from_file(theirs, up)
    assert torch.equal(back.means, ours.means)
    torch.testing.assert_close(back.quat_wxyz, ours.quat_wxyz, atol=1e-6, rtol=0)


def test_harmonics_agree_with_an_independent_implementation():
    twin = pytest.importorskip("gsplat.cuda._torch_impl")
    direction = torch.nn.functional.normalize(torch.randn(50, 3, generator=seeded(1)), dim=-1)
    coefficients = torch.randn(50, 16, 3, generator=seeded(2))
    theirs = twin._spherical_harmonics(3, direction, coefficients)
    ours = 0.28209479177387814 * coefficients[:, 0]
    ours = ours + evaluate_rest(coefficients[:, 1:], direction[None])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    # Orthonormal on the sphere: 4 pi times the mean of products is the identity.
    d = torch.nn.functional.normalize(
        torch.randn(200_000, 3, generator=seeded(3), dtype=torch.float64), dim=-1
    )
    basis = basis_rest(d, 15)
    gram = 4 * math.pi * basis.T @ basis / len(d)
    torch.testing.assert_close(gram, torch.eye(15, dtype=torch.float64), atol=0.05, rtol=0)


def test_turning_nothing_is_nothing_and_a_portion_turns_like_the_whole():
    turn = to_file_matrix("y")
    assert rotate_rest(torch.zeros(0, 8, 3), turn).shape == (0, 8, 3)
    many = torch.randn(PORTION + 5, 3, 3, generator=seeded(0))
    turned = rotate_rest(many, turn)
    torch.testing.assert_close(turned[-7:], rotate_rest(many[-7:], turn), atol=1e-6, rtol=0)
    with_grad = many[:3].clone().requires_grad_()
    rotate_rest(with_grad, turn).square().sum().backward()  # a rotation keeps lengths
    torch.testing.assert_close(with_grad.grad, 2.0 * many[:3], atol=1e-5, rtol=1e-5)


def test_unusable_rows_are_left_out(tmp_path):
    bad = cloud(6)
    bad.means[0, 0] = float("nan")
    bad.log_scale[1, 1] = float("inf")
    bad.opacity_logit[2] = -8.0
    bad.quat_wxyz[3] = 0.0
    assert write_ply(tmp_path / "a.ply", bad) == 2
    assert write_ply(tmp_path / "a.ply", bad, Layout(min_opacity=0.0)) == 3
    assert write_splat(tmp_path / "a.splat", bad) == 2


def test_a_failed_write_damages_nothing(tmp_path, monkeypatch):
    import plyfile

    path = tmp_path / "a.ply"
    write_ply(path, cloud(5))
    before = path.read_bytes()

    def fails(self, stream):
        stream.write(b"ply\n half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plyfile.PlyData, "write", fails)
    with pytest.raises(OSError, match="No space"):
        write_ply(path, cloud(9))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    empty = cloud(3).replace(opacity_logit=torch.full((3,), -9.0))
    with pytest.raises(ValueError, match="nothing to export"):
        write_ply(path, empty)
    assert path.read_bytes() == before


def good_bytes(tmp_path) -> bytes:
    write_ply(tmp_path / "good.ply", cloud(8))
    return (tmp_path / "good.ply").read_bytes()


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("empty", lambda d: b"", "no PLY"),
        ("png", lambda d: b"\x89PNG\r\n" + d, "no PLY"),
        ("cut in the data", lambda d: d[:-5], "truncated"),
        ("cut in the header", lambda d: d[:60], "truncated"),
        (
            "no opacity",
            lambda d: d.replace(b"property float opacity", b"property float opaque_"),
            "opacity",
        ),
        ("mesh", lambda d: MESH, "point cloud or mesh"),
        ("compressed", lambda d: COMPRESSED, "compressed"),
        ("no splats", lambda d: header_only(d), "0 splats"),
        ("no vertex", lambda d: d.replace(b"element vertex", b"element points"), "needs 'vertex'"),
        ("nan", lambda d: d[:-4] + np.float32("nan").tobytes(), "row 7"),
        (
            "short harmonics",
            lambda d: d.replace(b"property float nx", b"property float f_rest_0"),
            "1 f_rest",
        ),
        (
            "integers",
            lambda d: d.replace(b"property float opacity", b"property int opacity"),
            "needs float",
        ),
        ("zero rotation", lambda d: d[:-16] + bytes(16), "length 0"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, name, edit, message):
    path = tmp_path / "bad.ply"
    path.write_bytes(edit(good_bytes(tmp_path)))
    with pytest.raises(SplatFileError, match=message) as caught:
        read_ply(path)
    assert str(path) in str(caught.value)


MESH = (
    b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
    b"property float z\nend_header\n0 0 0\n"
)
COMPRESSED = (
    b"ply\nformat binary_little_endian 1.0\nelement chunk 1\nproperty float min_x\n"
    b"element vertex 1\nproperty uint packed_position\nend_header\n" + bytes(8)
)


def header_only(data: bytes) -> bytes:
    return data[: data.index(b"end_header\n") + 11].replace(b"vertex 8", b"vertex 0")


def test_a_missing_file_is_the_same_kind_of_error(tmp_path):
    with pytest.raises(SplatFileError, match="cannot be opened"):
        read_ply(tmp_path / "none.ply")
    with pytest.raises(SplatFileError, match="cannot be opened"):
        read_splat(tmp_path / "none.splat")


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_never_crash_the_reader(tmp_path, data):
    raw = bytearray(good_bytes(tmp_path))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=20))
        if not raw:
            break
    path = tmp_path / "fuzz.ply"
    path.write_bytes(bytes(raw))
    try:
        result = read_ply(path)
    except SplatFileError:
        return
    assert bool(result.finite().all())


def test_splat_file_layout_and_round_trip(tmp_path):
    before = cloud(30)
    path = tmp_path / "a.splat"
    assert write_splat(path, before) == 30
    data = path.read_bytes()
    assert len(data) == 30 * 32
    importance = before.log_scale.sum(-1).exp() * before.opacity_logit.sigmoid()
    order = torch.argsort(importance, descending=True)
    first = before.means[order[0]]
    stored = np.frombuffer(data[:12], "<f4")
    np.testing.assert_array_equal(stored, [first[0], -first[2], first[1]])
    after = read_splat(path)
    torch.testing.assert_close(after.means, before.means[order])
    torch.testing.assert_close(after.log_scale, before.log_scale[order], atol=1e-5, rtol=1e-5)
    rotations = rotation_matrices(before.quat_wxyz[order]), rotation_matrices(after.quat_wxyz)
    assert float((rotations[0] - rotations[1]).abs().max()) < 0.03  # 8 bits per component
    opacity = before.opacity_logit[order].sigmoid()
    assert float((after.opacity_logit.sigmoid() - opacity).abs().max()) < 0.003


@pytest.mark.parametrize("size", [0, 31, 33])
def test_splat_file_of_the_wrong_size(tmp_path, size):
    path = tmp_path / "a.splat"
    path.write_bytes(bytes(size))
    with pytest.raises(SplatFileError, match="multiple of 32"):
        read_splat(path)


def test_pictures_survive_the_ply(tmp_path):
    config = GaussianConfig(count=200, init=InitConfig(opacity=0.7, colour_jitter=0.3))
    write_ply(tmp_path / "a.ply", initialise(config))
    again = read_ply(tmp_path / "a.ply")
    pictures = []
    for cloud in (None, again):
        with torch.no_grad():
            shape = GaussianRenderer(config, cloud=cloud)
            render, _ = shape.render(cameras_around(2), torch.zeros(2, 3))
        pictures.append(render.rgb)
    assert float((pictures[0] - pictures[1]).abs().max()) < 1e-2
    assert float((pictures[0] - pictures[1]).abs().mean()) < 1e-6


def test_harmonics_are_padded_with_zeros_and_cut_off():
    base = cloud(10, 1)
    assert base.with_sh_degree(3).sh_rest.shape == (10, 15, 3)
    assert torch.equal(base.with_sh_degree(3).with_sh_degree(1).sh_rest, base.sh_rest)
