# SPDX-License-Identifier: Apache-2.0
"""What rays see: closed forms and invariances of compositing, and the fast back-ends."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from representations.ops.fields import ray_cpu, ray_cuda, ray_reference
from representations.ops.fields.ray_types import STOP, Rays, Samples

from .helpers import relative_l2, seeded
from .ray_scenes import (
    BACKENDS,
    Backend,
    cast,
    each_backend,
    evenly,
    pack,
    pulled,
    random_march,
    random_samples,
)


@each_backend
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_constant_density_is_exact_at_any_number_of_samples(backend, count):
    sigma, length, colour = 1.3, 1.7, torch.tensor([0.2, -3.0], dtype=backend.dtype)
    samples = evenly(0.4, 0.4 + length, count, backend.dtype)
    density = torch.full((count,), sigma, dtype=backend.dtype, requires_grad=True)
    out = backend.ops.composite(density, colour.expand(count, 2), samples, 1)
    expected = 1.0 - math.exp(-sigma * length)
    assert out.opacity.item() == pytest.approx(expected, abs=backend.rounding)
    assert out.features[0].tolist() == pytest.approx(
        (expected * colour).tolist(), abs=5 * backend.rounding
    )
    out.opacity.sum().backward()  # every piece of thickness counts alike: delta exp(-sigma length)
    slope = length / count * math.exp(-sigma * length)
    assert density.grad.tolist() == pytest.approx([slope] * count, abs=backend.rounding)


@each_backend
def test_two_slabs_and_a_gap_by_hand(backend):
    samples = pack([[(1.0, 1.5), (1.5, 2.0), (2.0, 2.75)], [], [(0.0, 2.0)]], backend.dtype)
    sigma = torch.tensor([2.0, 0.0, 0.8, 0.5], dtype=backend.dtype)
    features = torch.tensor([[1.0], [100.0], [10.0], [4.0]], dtype=backend.dtype)
    out = backend.ops.composite(sigma, features, samples, 3)
    first, second = 1 - math.exp(-1.0), math.exp(-1.0) * (1 - math.exp(-0.6))
    third = 1 - math.exp(-1.0)
    close = {"abs": 10 * backend.rounding}
    assert out.weights.tolist() == pytest.approx([first, 0.0, second, third], **close)
    assert out.opacity.tolist() == pytest.approx([first + second, 0.0, third], **close)
    assert out.features[:, 0].tolist() == pytest.approx(
        [first + 10 * second, 0.0, 4 * third], **close
    )


@each_backend
@pytest.mark.parametrize("wall", [1e4, 1e30])
def test_an_opaque_wall_takes_the_colour_of_its_front(backend, wall):
    samples = evenly(0.0, 4.0, 4, backend.dtype)
    sigma = torch.tensor([0.0, wall, 5.0, wall], dtype=backend.dtype, requires_grad=True)
    features = torch.eye(4, dtype=backend.dtype, requires_grad=True)
    out = backend.ops.composite(sigma, features, samples, 1)
    assert out.features[0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert out.opacity.tolist() == [1.0]
    (out.features * torch.arange(4.0).to(backend.dtype)).sum().backward()
    # Density in the gap takes light from the wall, whose gradient is 1: 0 - 1. The rest is hidden.
    assert sigma.grad.tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert features.grad[:, 0].tolist() == [0.0, 0.0, 0.0, 0.0]


@each_backend
def test_what_hides_a_faint_haze_in_front_of_a_wall_is_not_rounding(backend):
    # The light in front of a wall must not be found by subtracting the wall from a sum.
    samples = evenly(0.0, 2.0, 2, backend.dtype)
    out = backend.ops.composite(
        torch.tensor([0.3, 1e8], dtype=backend.dtype),
        torch.eye(2, dtype=backend.dtype), samples, 1,
    )  # fmt: skip
    haze = 1 - math.exp(-0.3)
    assert out.features[0].tolist() == pytest.approx([haze, 1 - haze], abs=backend.rounding)


def test_a_gaussian_ball_converges_with_the_square_of_the_step():
    # Cut off where the density still has a slope: a rule that takes ends or forgets half a step
    # would fall back to first order.
    peak, width, a, b = 1.5, 0.4, -0.5, 0.3

    def error(count: int) -> float:
        samples = evenly(2.0 + a, 2.0 + b, count)
        sigma = peak * torch.exp(-((samples.middle - 2.0) ** 2) / (2 * width**2))
        out = ray_reference.composite(sigma, sigma[:, None], samples, 1)
        root = math.sqrt(2) * width
        depth = peak * width * math.sqrt(math.pi / 2) * (math.erf(b / root) - math.erf(a / root))
        return abs(float(out.opacity) - (1.0 - math.exp(-depth)))

    errors = [error(count) for count in (16, 32, 64, 128)]
    for coarse, fine in pairwise(errors):
        # The next term of the error is of fourth order: at 16 samples it moves the 2 by 0.01.
        assert math.log2(coarse / fine) == pytest.approx(2.0, abs=0.02)


@each_backend
def test_moments_of_the_distance_in_a_constant_fog(backend):
    # t and t^2 as features give the variance of the depth along the ray.
    sigma, length = 0.9, 2.0
    x = sigma * length
    first = (1 - math.exp(-x) * (1 + x)) / sigma
    second = (2 - math.exp(-x) * (x * x + 2 * x + 2)) / sigma**2

    def errors(count: int) -> list[float]:
        samples = evenly(0.0, length, count, backend.dtype)
        t = samples.middle
        out = backend.ops.composite(
            torch.full_like(t, sigma), torch.stack([t, t * t], dim=-1), samples, 1
        )
        return [float(out.features[0, 0]) - first, float(out.features[0, 1]) - second]

    for coarse, fine in zip(errors(16), errors(32), strict=True):
        assert abs(fine) < 2e-3
        # Second order; the next term moves the 4 by 0.015, float32 by a few thousandths.
        assert coarse / fine == pytest.approx(4.0, abs=0.05)


@each_backend
def test_weights_sum_to_one_minus_the_light_that_is_left(backend):
    sigma, features, samples = random_samples(50, 1, density=1.0)
    out = backend.ops.composite(
        sigma.to(backend.dtype), features.to(backend.dtype), cast(samples, backend.dtype), 50
    )
    for ray in range(50):
        low, high = samples.offsets[ray : ray + 2].tolist()
        left = math.prod(
            math.exp(-float(sigma[i]) * (float(samples.end[i]) - float(samples.start[i])))
            for i in range(low, high)
        )
        assert left > STOP
        assert float(out.opacity[ray]) == pytest.approx(1 - left, abs=backend.rounding)
        assert float(out.weights[low:high].sum()) == pytest.approx(1 - left, abs=backend.rounding)
    assert not out.weights.requires_grad


@each_backend
def test_cutting_intervals_in_two_changes_nothing(backend):
    sigma, features, samples = random_samples(30, 2, density=1.0)
    cut = samples.start + (samples.end - samples.start) * torch.rand(
        len(sigma), generator=seeded(4)
    )
    halves = Samples(
        samples.ray.repeat_interleave(2),
        torch.stack([samples.start, cut], dim=-1).flatten(),
        torch.stack([cut, samples.end], dim=-1).flatten(),
        2 * samples.offsets,
    )
    whole = pulled(backend, sigma, features, samples)
    parts = pulled(
        backend, sigma.repeat_interleave(2), features.repeat_interleave(2, dim=0), halves
    )
    close = {"atol": 10 * backend.rounding, "rtol": 0}
    torch.testing.assert_close(parts[0].features, whole[0].features, **close)
    torch.testing.assert_close(parts[0].opacity, whole[0].opacity, **close)
    # What acts on both halves acts on the whole: their gradients add up to its gradient.
    torch.testing.assert_close(parts[1].view(-1, 2).sum(1), whole[1], **close)
    torch.testing.assert_close(parts[2].view(-1, 2, 3).sum(1), whole[2], **close)


@each_backend
def test_the_stop_leaves_out_less_than_it_promises(backend):
    sigma, features, samples = random_samples(60, 5, longest=150, density=6.0)
    out, d_sigma, d_features = pulled(backend, sigma, features, samples)
    stopped = 0
    for ray in range(60):
        low, high = samples.offsets[ray : ray + 2].tolist()
        light, full = 1.0, torch.zeros(3, dtype=torch.float64)
        for i in range(low, high):
            delta = float(samples.end[i]) - float(samples.start[i])
            weight = light * -math.expm1(-float(sigma[i]) * delta)
            full += weight * features[i].double()
            seen = light >= STOP
            stopped += not seen
            assert float(out.weights[i]) == pytest.approx(weight if seen else 0.0, abs=1e-6)
            if not seen:
                assert float(d_sigma[i]) == 0.0
                assert d_features[i].tolist() == [0.0] * 3
            light *= math.exp(-float(sigma[i]) * delta)
        bound = STOP + backend.rounding
        assert abs(float(out.opacity[ray]) - (1 - light)) <= bound
        brightest = float(features[low:high].abs().max()) if high > low else 0.0
        error = (out.features[ray].double() - full).abs().max()
        assert float(error) <= bound * brightest + 10 * backend.rounding
    assert stopped > 500


def test_gradients_of_the_reference_against_finite_differences():
    sigma, features, samples = random_samples(6, 6, longest=6)
    samples = cast(samples, torch.float64)
    sigma = (sigma.double() + 0.1).requires_grad_()
    features = features.double().requires_grad_()

    def of(s: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        out = ray_reference.composite(s, f, samples, 6)
        return out.features, out.opacity

    assert 0 in samples.offsets.diff()  # an empty ray is among them
    assert torch.autograd.gradcheck(of, (sigma, features))


SCENES = {
    # rays, longest, density
    "haze": (40, 30, 1e-4),
    "fog": (60, 40, 3.0),
    "long": (20, 400, 4.0),
    "solid": (60, 40, 1e3),
    "light underflows": (60, 40, 1e6),
    "empty": (3, 0, 1.0),
    "no ray": (0, 5, 1.0),
}


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("scene", SCENES)
def test_kernels_composite_like_the_reference(scene, name):
    rays, longest, density = SCENES[scene]
    inputs = random_samples(rays, 7, longest, density)
    fast, exact = (pulled(BACKENDS[b], *inputs) for b in (name, "reference"))
    for name in ("features", "opacity", "weights"):
        a, b = getattr(fast[0], name), getattr(exact[0], name)
        torch.testing.assert_close(a.double(), b, atol=2e-6, rtol=2e-6, msg=name)
    for a, b in zip(fast[1:], exact[1:], strict=True):
        # Light and weights are stored in float32 between the passes: 6e-8 of each term.
        torch.testing.assert_close(a.double(), b, atol=5e-7, rtol=1e-5)
        assert relative_l2(a, b) < 1e-6 or float(b.norm()) == 0.0


def test_numba_refuses_a_second_derivative():
    sigma, features, samples = random_samples(5, 8)
    sigma.requires_grad_()
    out = ray_cpu.composite(sigma, features, samples, 5)
    (slope,) = torch.autograd.grad(out.opacity.square().sum(), sigma, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_numbers_do_not_depend_on_threads():
    rays, occupied, spec, jitter = random_march(9, count=200)
    inputs = random_samples(200, 9)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        out, *gradients = pulled(BACKENDS["cpu"], *inputs)
        results.append((*ray_cpu.march(rays, occupied, spec, jitter), *out, *gradients))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@each_backend
def test_a_composite_says_what_does_not_fit(backend):
    samples = evenly(0.0, 1.0, 2, backend.dtype)
    sigma = torch.ones(2, dtype=backend.dtype)
    features = torch.ones(2, 3, dtype=backend.dtype)
    late = samples._replace(offsets=torch.tensor([0, 3]))
    for arguments, words in (
        ((-sigma, features, samples, 1), "softplus"),
        ((sigma * torch.nan, features, samples, 1), "softplus"),
        ((sigma[:1], features, samples, 1), "sigma has shape"),
        ((sigma, features[:, 0], samples, 1), r"needs \(2, 1\)"),
        ((sigma, features, samples, 2), "offsets has shape"),
        ((sigma, features, late, 1), "offsets do not rise"),
        ((sigma, features, samples._replace(ray=samples.ray.int()), 1), "torch.int64"),
        ((sigma, features.half(), samples, 1), "float16"),
    ):
        with pytest.raises(ValueError, match=words):
            backend.ops.composite(*arguments)


def test_the_fast_back_ends_name_the_tensor_they_cannot_take():
    sigma, features, samples = random_samples(3, 10)
    with pytest.raises(ValueError, match=r"got sigma in torch\.float64"):
        ray_cpu.composite(sigma.double(), features.double(), cast(samples, torch.float64), 3)
    with pytest.raises(ValueError, match=r"cuda device, got sigma in torch\.float32 on cpu"):
        ray_cuda.composite(sigma, features, samples, 3)
    with pytest.raises(ValueError, match="cuda device, got origins"):
        ray_cuda.march(*random_march(0, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(4))
def test_cuda_agrees_with_the_reference(seed):
    rays, occupied, spec, jitter = random_march(seed, 300)
    on_cpu = ray_reference.march(rays, occupied, spec, jitter)
    on_cuda = ray_cuda.march(Rays(*(t.cuda() for t in rays)), occupied.cuda(), spec, jitter.cuda())
    for name, a, b in zip(Samples._fields, on_cuda, on_cpu, strict=True):
        assert torch.equal(a.cpu(), b), name  # IEEE arithmetic, one operation per kernel
    sigma, features, samples = random_samples(60, seed)
    cuda = Backend(ray_cuda, torch.float32, 1e-6)
    moved = Samples(*(t.cuda() for t in samples))
    fast = pulled(cuda, sigma.cuda(), features.cuda(), moved)
    exact = pulled(BACKENDS["reference"], sigma, features, samples)
    torch.testing.assert_close(
        fast[0].features.double().cpu(), exact[0].features, atol=1e-4, rtol=0
    )
    for a, b in zip(fast[1:], exact[1:], strict=True):
        assert relative_l2(a.cpu(), b) < 1e-4
