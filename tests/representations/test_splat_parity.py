# SPDX-License-Identifier: Apache-2.0
"""numba against the reference, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from representations.interface import Cameras
from representations.ops.splats import CUDA_BACKENDS, Splats, gsplat_state, splat_ops

from .helpers import (
    Outcome,
    cameras_around,
    check_screen_gradient,
    cosine,
    in_dtype,
    random_splats,
    relative_l2,
    run,
    seeded,
)

# name -> (splats, views, picture, distance). Each kind stresses one branch of the kernels.
SCENES = {
    "plain": (random_splats(300, 0), 2, (32, 32), 3.0),
    "odd size": (random_splats(200, 1), 1, (19, 45), 3.0),
    "opaque": (random_splats(200, 2, opacity=0.9999), 2, (32, 32), 3.0),
    "faint": (random_splats(400, 3, opacity=0.01), 1, (32, 32), 3.0),
    "tiny": (random_splats(300, 4, size=1e-4), 1, (32, 32), 3.0),
    "huge": (random_splats(30, 5, size=3.0, opacity=0.2), 1, (24, 24), 3.0),
    "off screen and behind": (random_splats(500, 6, radius=6.0, size=0.3), 2, (32, 32), 2.0),
    "single": (random_splats(1, 7, opacity=0.7), 1, (16, 16), 3.0),
    "many layers": (random_splats(1500, 8, radius=0.3, opacity=0.3), 1, (24, 24), 3.0),
}


def both(scene: str) -> tuple[Outcome, Outcome]:
    """The reference runs in float64, so that every difference belongs to the kernel."""
    splats, views, size, distance = SCENES[scene]
    cameras = cameras_around(views, size, distance)
    features = torch.rand(views, len(splats.means), 3, generator=seeded(9))
    fast = run(splat_ops("cpu"), splats, features, cameras)
    exact = run(
        splat_ops("cpu", "reference"),
        Splats(*(t.double() for t in splats)),
        features.double(),
        in_dtype(cameras, torch.float64),
    )
    return fast, exact


@pytest.mark.parametrize("scene", SCENES)
def test_values(scene):
    fast, exact = both(scene)
    for name in ("features", "depth", "alpha"):
        a = getattr(fast.splatted, name).detach().double()
        b = getattr(exact.splatted, name).detach()
        error = (a - b).abs() / (1.0 + b.abs())
        # float32 rounding of sigma; measured 3e-6 on AVX2 and AVX-512.
        assert float(error.quantile(0.99)) < 2e-5, name
        # A weight within rounding of 1/255 (or light of 1e-4) falls on the other side: one step.
        assert float(error.max()) < 1e-2, name
    assert torch.equal(fast.splatted.radii, exact.splatted.radii)
    torch.testing.assert_close(
        fast.splatted.means2d.double(), exact.splatted.means2d, atol=1e-3, rtol=1e-5
    )


@pytest.mark.parametrize("scene", SCENES)
def test_gradients_element_by_element_and_as_a_vector(scene):
    fast, exact = both(scene)
    for name, expected in exact.gradients.items():
        actual = fast.gradients[name].double()
        assert torch.isfinite(actual).all(), name
        if float(expected.norm()) < 1e-9:
            assert float(actual.norm()) < 1e-6, name
            continue
        # Threshold flips (see test_values) reach a few splats; measured below 1e-3 and 2e-2.
        assert relative_l2(actual, expected) < 5e-3, name
        assert cosine(actual, expected) > 0.99998, name
        bound = 0.03 * expected.abs() + 0.01 * expected.abs().max()
        assert bool(((actual - expected).abs() <= bound).all()), name


def test_the_numbers_do_not_depend_on_threads():
    splats, cameras = random_splats(400, 11), cameras_around(2, (40, 40))
    features = torch.rand(2, 400, 3, generator=seeded(12))
    outcomes = []
    for count in (1, 2):
        torch.set_num_threads(count)
        outcomes.append(run(splat_ops("cpu"), splats, features, cameras))
    for a, b in zip(outcomes[0].splatted, outcomes[1].splatted, strict=True):
        assert torch.equal(a, b)
    for name, gradient in outcomes[0].gradients.items():
        assert torch.equal(gradient, outcomes[1].gradients[name]), name


def test_two_runs_are_identical():
    splats, cameras = random_splats(200, 13), cameras_around(1)
    features = torch.rand(1, 200, 3, generator=seeded(14))
    a, b = (run(splat_ops("cpu"), splats, features, cameras) for _ in range(2))
    assert all(torch.equal(a.gradients[name], b.gradients[name]) for name in a.gradients)


def test_screen_gradient_is_the_derivative_by_shifting_the_principal_point():
    check_screen_gradient(splat_ops("cpu").splat, count=100, side=32, radius=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize("scene", SCENES)
def test_cuda_agrees_with_the_reference(scene, backend):
    if backend == "gsplat" and gsplat_state.compiled() is None:
        pytest.skip("gsplat is not compiled: sdi-gs doctor --build")
    splats, views, size, distance = SCENES[scene]
    cameras = cameras_around(views, size, distance)
    features = torch.rand(views, len(splats.means), 3, generator=seeded(9))
    fast = run(
        splat_ops("cuda", backend),
        Splats(*(t.cuda() for t in splats)),
        features.cuda(),
        cameras.to("cuda"),
    )
    exact = run(
        splat_ops("cpu", "reference"),
        Splats(*(t.double() for t in splats)),
        features.double(),
        Cameras(cameras.world_to_cam.double(), cameras.intrinsics.double(), *size[::-1]),
    )
    for name in ("features", "depth", "alpha"):
        a = getattr(fast.splatted, name).detach().double().cpu()
        b = getattr(exact.splatted, name).detach()
        error = (a - b).abs() / (1.0 + b.abs())
        assert float(error.quantile(0.99)) < 1e-4, name
        assert float(error.max()) < 2e-2, name
    for name, expected in exact.gradients.items():
        if float(expected.norm()) > 1e-6:
            assert cosine(fast.gradients[name].cpu(), expected) > 0.999, name
            assert relative_l2(fast.gradients[name].cpu(), expected) < 3e-2, name
