# SPDX-License-Identifier: Apache-2.0
"""The reference against closed forms, finite differences and an independent implementation."""

from __future__ import annotations

import math

import pytest
import torch

from representations.interface import Cameras
from representations.ops import constants, triton_launch
from representations.ops.splats import Splats, reference, splat_ops

from .helpers import (
    cameras_around,
    in_dtype,
    on_axis_camera,
    random_splats,
    seeded,
)

pytestmark = pytest.mark.usefixtures("large_groups")
INTERPRETED = triton_launch.available() and triton_launch.interpreted()
BACKENDS = ("reference", "cpu", *(["triton"] if INTERPRETED else []))


def splats_at(positions, scale=0.1, opacity=0.5, dtype=torch.float32):
    n = len(positions)
    quat = torch.tensor([[1.0, 0, 0, 0]], dtype=dtype).repeat(n, 1)
    return Splats(
        torch.tensor(positions, dtype=dtype),
        quat,
        torch.full((n, 3), scale, dtype=dtype),
        torch.as_tensor(opacity, dtype=dtype).expand(n).clone(),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_round_splat_on_the_axis_is_the_textbook_gaussian(backend):
    # On the axis the Jacobian is focal / z times the identity: variance = (f s / z)^2 + blur.
    cameras = on_axis_camera(33, 40.0, torch.float32)
    s, z, o = 0.2, 4.0, 0.8
    out = splat_ops("cpu", backend).splat(
        splats_at([[0, 0, z]], s, o), torch.tensor([[[2.0, -1.0]]]), cameras
    )
    variance = (40.0 * s / z) ** 2 + constants.BLUR_PX2
    r = torch.arange(33) - 16.0
    r2 = (r[:, None] ** 2 + r[None] ** 2).double()
    alpha = o * torch.exp(-0.5 * r2 / variance)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    torch.testing.assert_close(out.alpha[0, 0].double(), alpha, atol=2e-6, rtol=0)
    torch.testing.assert_close(out.features[0, 0].double(), 2 * alpha, atol=4e-6, rtol=0)
    torch.testing.assert_close(out.depth[0, 0].double(), z * alpha, atol=8e-6, rtol=0)
    assert out.means2d[0, 0].tolist() == [16.5, 16.5]
    radius = math.ceil(math.sqrt(2 * math.log(255 * o)) * math.sqrt(variance))
    assert out.radii[0, 0].tolist() == [radius, radius]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_splats_compose_front_to_back_whatever_their_order_in_memory(backend):
    cameras = on_axis_camera(9, 20.0, torch.float32)
    near, far = 0.3, 0.6
    splats = splats_at([[0, 0, 5.0], [0, 0, 2.0]], 0.5, torch.tensor([far, near]))
    out = splat_ops("cpu", backend).splat(splats, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), cameras)
    centre = out.features[0, :, 4, 4]
    # near first: weights 0.3 and 0.6 * 0.7, so alpha = 1 - 0.7 * 0.4
    torch.testing.assert_close(centre, torch.tensor([0.42, 0.3]), atol=1e-6, rtol=0)
    assert float(out.alpha[0, 0, 4, 4]) == pytest.approx(1 - 0.7 * 0.4, abs=1e-6)
    assert float(out.depth[0, 0, 4, 4]) == pytest.approx(0.3 * 2 + 0.42 * 5, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opaque_splats_are_cut_at_the_maximum_and_hide_what_follows(backend):
    cameras = on_axis_camera(9, 20.0, torch.float32)
    splats = splats_at([[0, 0, 2.0], [0, 0, 3.0], [0, 0, 4.0]], 0.5, 1.0)
    features = torch.eye(3)[None]
    opacity = splats.opacity.requires_grad_()
    out = splat_ops("cpu", backend).splat(splats._replace(opacity=opacity), features, cameras)
    weights = out.features[0, :, 4, 4]
    # The second would leave 1e-6 <= 1e-4 of the light: excluded, and everything behind it.
    torch.testing.assert_close(weights, torch.tensor([0.999, 0.0, 0.0]), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(weights.sum(), opacity)
    assert gradient.tolist() == [0.0, 0.0, 0.0]  # no gradient through the cut


@pytest.mark.parametrize("backend", BACKENDS)
def test_moving_scene_and_camera_together_changes_nothing(backend):
    splats, cameras = random_splats(150, seed=1), cameras_around(2)
    features = torch.rand(2, 150, 3, generator=seeded(2))
    angle, shift = 0.7, torch.tensor([0.4, -1.3, 2.0])
    quat = torch.tensor(
        [math.cos(angle / 2), *(math.sin(angle / 2) * torch.tensor([0.6, 0.0, 0.8]))]
    )
    rotation = reference.rotation_matrices(quat)
    moved = splats._replace(
        means=splats.means @ rotation.T + shift, quat_wxyz=multiply(quat, splats.quat_wxyz)
    )
    motion = torch.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation, shift
    followed = Cameras(cameras.world_to_cam @ torch.linalg.inv(motion), cameras.intrinsics, 32, 32)
    ops = splat_ops("cpu", backend)
    a, b = ops.splat(splats, features, cameras), ops.splat(moved, features, followed)
    # float32 rounding may move single pixels across the 1/255 threshold.
    assert float((a.features - b.features).abs().mean()) < 2e-6
    assert float((a.features - b.features).abs().max()) < 5e-3


def multiply(p, q):
    """Hamilton product of quaternions wxyz, written out for the test alone."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        dim=-1,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_single_views(backend):
    splats, cameras = random_splats(80, seed=3), cameras_around(3, (24, 40))
    features = torch.rand(3, 80, 4, generator=seeded(4))
    ops = splat_ops("cpu", backend)
    batch = ops.splat(splats, features, cameras)
    for b in range(3):
        single = ops.splat(splats, features[b : b + 1], cameras[b : b + 1])
        for name, value in single._asdict().items():
            expected = getattr(batch, name)[b : b + 1]
            # Some processors sum products of another batch size in another order.
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5, msg=name)


def test_gradcheck_in_float64():
    # Thresholds are steps; large opaque-enough splats in a small picture stay away from them.
    g = seeded(6)
    means = (torch.rand(4, 3, generator=g, dtype=torch.float64) - 0.5) * 0.6
    means[:, 2] += torch.tensor([2.0, 2.5, 3.0, 3.5])
    splats = Splats(
        means,
        torch.randn(4, 4, generator=g, dtype=torch.float64),
        0.6 + 0.4 * torch.rand(4, 3, generator=g, dtype=torch.float64),
        0.3 + 0.4 * torch.rand(4, generator=g, dtype=torch.float64),
    )
    features = torch.rand(1, 4, 2, generator=g, dtype=torch.float64)
    cameras = on_axis_camera(6, 8.0)

    def draw(means, quat, scale, opacity, features, world_to_cam):
        view = Cameras(world_to_cam, cameras.intrinsics, 6, 6)
        out = reference.splat(Splats(means, quat, scale, opacity), features, view)
        return out.features, out.depth, out.alpha

    inputs = [t.clone().requires_grad_() for t in (*splats, features, cameras.world_to_cam)]
    assert torch.autograd.gradcheck(draw, inputs, eps=1e-6, atol=1e-6)


def test_projection_agrees_with_an_independent_implementation():
    twin = pytest.importorskip("gsplat.cuda._torch_impl")
    splats = random_splats(
        500, seed=7, radius=2.5, size=0.15
    )  # many far off-axis: clamped Jacobian
    cameras = cameras_around(3, (40, 56), distance=3.0, fov_y_deg=45.0)
    ours = reference.project(splats, cameras)
    cov, _ = twin._quat_scale_to_covar_preci(splats.quat_wxyz, splats.scale, True, False)
    _, means2d, depths, conics, _ = twin._fully_fused_projection(
        splats.means, cov, cameras.world_to_cam, cameras.intrinsics, 56, 40
    )
    drawn = ours.radii[..., 0] > 0
    assert int(drawn.sum()) > 300
    assert bool((depths[drawn] > constants.NEAR_PLANE).all())
    torch.testing.assert_close(ours.means2d[drawn], means2d[drawn], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours.depths[drawn], depths[drawn], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.conics[drawn], conics[drawn], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_drawn_leaves_no_trace_and_no_nan(backend):
    splats = random_splats(6, seed=8, opacity=0.5)
    means = splats.means.clone()
    camera = cameras_around(1)
    means[0] = camera.positions[0] * 1.5  # behind
    means[1] = camera.positions[0]  # inside the camera
    means[2] = torch.tensor([0.0, 0.0, 50.0])  # far outside of the picture
    opacity = splats.opacity.clone()
    opacity[3] = 0.5 / 255
    leaves = [t.clone().requires_grad_() for t in (means, *splats[1:3], opacity)]
    out = splat_ops("cpu", backend).splat(Splats(*leaves), torch.ones(1, 6, 1), camera)
    assert (out.radii[0, :4] == 0).all()
    assert (out.radii[0, 4:] > 0).all()
    (out.features.sum() + out.depth.sum()).backward()
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all()
        assert (leaf.grad[:4] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_splats_and_odd_sizes(backend):
    ops = splat_ops("cpu", backend)
    cameras = cameras_around(2, (5, 11))
    empty = Splats(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0))
    out = ops.splat(empty, torch.zeros(2, 0, 3), cameras)
    assert out.features.shape == (2, 3, 5, 11)
    assert float(out.alpha.abs().max()) == 0.0
    one = ops.splat(random_splats(1, opacity=0.9), torch.ones(2, 1, 3), cameras)
    assert float(one.alpha.max()) > 0.1


def test_select_teaches():
    with pytest.raises(
        ValueError, match="choose one of reference, cpu, cuda, torch, triton, gsplat"
    ):
        splat_ops("cpu", "opencl")
    assert splat_ops("cpu").name == "cpu"
    assert splat_ops(torch.device("cpu"), "reference").name == "reference"
    assert splat_ops("cpu", "torch").name == "reference"
    if not torch.cuda.is_available():
        for name in ("cuda", "gsplat"):
            with pytest.raises(RuntimeError, match=f'"{name}" was asked for.*is_available'):
                splat_ops("cpu", name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_shapes_are_named(backend):
    splats, cameras = random_splats(5), cameras_around(2)
    ops = splat_ops("cpu", backend)
    with pytest.raises(ValueError, match=r"opacity has shape \(5, 1\)"):
        ops.splat(splats._replace(opacity=splats.opacity[:, None]), torch.ones(2, 5, 3), cameras)
    with pytest.raises(ValueError, match="features has shape"):
        ops.splat(splats, torch.ones(1, 5, 3), cameras)


def test_numba_refuses_other_dtypes():
    splats = Splats(*(t.double() for t in random_splats(3)))
    with pytest.raises(ValueError, match="float32 on the cpu"):
        splat_ops("cpu").splat(
            splats, torch.ones(1, 3, 1).double(), in_dtype(cameras_around(1), torch.float64)
        )
