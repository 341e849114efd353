# SPDX-License-Identifier: Apache-2.0
"""Where rays look: brute force, and numba against the reference bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from representations.ops.fields import ray_cpu, ray_reference
from representations.ops.fields.ray_types import MAX_STEPS, MarchSpec, Rays, Samples

from .ray_scenes import BACKENDS, each_backend, random_march, rays_of


def brute_force(
    origin: list[float], direction: list[float], occupied: Tensor, spec: MarchSpec, jitter: float
) -> list[float]:
    """Starts of the intervals of one ray, one step after the other."""
    near, far = spec.near, math.inf
    for o, d in zip(origin, direction, strict=True):
        if d != 0:
            faces = sorted([(-spec.radius - o) / d, (spec.radius - o) / d])
            near, far = max(near, faces[0]), min(far, faces[1])
        elif abs(o) > spec.radius:
            return []
    starts: list[float] = []
    size = 2 * spec.radius / len(occupied)
    k = 0
    while near + k * spec.step < far and len(starts) < spec.max_samples:
        start = near + (k + jitter) * spec.step
        t = start + 0.5 * spec.step
        point = [o + t * d for o, d in zip(origin, direction, strict=True)]
        if t < far and max(map(abs, point)) <= spec.radius:
            cell = [min(int((x + spec.radius) / size), len(occupied) - 1) for x in point]
            if occupied[cell[0], cell[1], cell[2]]:
                starts.append(start)
        k += 1
    return starts


@pytest.mark.parametrize("seed", range(12))
def test_the_reference_finds_what_brute_force_finds(seed):
    rays, occupied, spec, jitter = random_march(seed, 40, torch.float64)
    rays = rays._replace(directions=torch.nn.functional.normalize(rays.directions, dim=-1))
    samples = ray_reference.march(rays, occupied, spec, jitter)
    expected = [
        brute_force(o, d, occupied, spec, u)
        for o, d, u in zip(
            rays.origins.tolist(), rays.directions.tolist(), jitter.tolist(), strict=True
        )
    ]
    assert samples.offsets.diff().tolist() == [len(ray) for ray in expected]
    flat = [start for ray in expected for start in ray]
    assert samples.start.tolist() == pytest.approx(flat, abs=1e-12)
    assert (samples.end - samples.start).tolist() == pytest.approx([spec.step] * len(flat))
    assert samples.ray.tolist() == [i for i, ray in enumerate(expected) for _ in ray]
    assert len(flat) > 0


@pytest.mark.parametrize("seed", range(24))
def test_numba_finds_the_samples_of_the_reference_bit_for_bit(seed):
    arguments = random_march(seed, 300)
    fast, exact = (ops.march(*arguments) for ops in (ray_cpu, ray_reference))
    for name, a, b in zip(Samples._fields, fast, exact, strict=True):
        assert torch.equal(a, b), name
    assert len(fast.ray) > 0


@pytest.mark.skipif("triton, interpreted" not in BACKENDS, reason="needs Triton and no card")
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 8, 11])
def test_triton_finds_the_samples_of_the_reference_bit_for_bit(seed):
    arguments = random_march(seed, 150)  # more than one block of rays
    kernels = BACKENDS["triton, interpreted"].ops
    fast, exact = (ops.march(*arguments) for ops in (kernels, ray_reference))
    for name, a, b in zip(Samples._fields, fast, exact, strict=True):
        assert torch.equal(a, b), name
    assert len(fast.ray) > 0


@pytest.mark.parametrize("seed", [3, 15, 27])  # the finest grid and step
def test_jumps_over_empty_cells_survive_rounding(seed):
    # 1e5 units away, float32 places points only to 0.008, while a step is 0.013: where a cell
    # ends cannot be computed well, and the samples must not depend on it.
    rays, occupied, spec, jitter = random_march(seed, 300)
    rays = rays._replace(origins=rays.origins - 1e5 * rays.directions)
    fast, exact = (ops.march(rays, occupied, spec, jitter) for ops in (ray_cpu, ray_reference))
    assert all(torch.equal(a, b) for a, b in zip(fast, exact, strict=True))
    assert len(fast.ray) > 0


@each_backend
def test_samples_lie_in_occupied_cells_and_touch(backend):
    rays, occupied, spec, jitter = random_march(3, 300, backend.dtype)
    samples = backend.ops.march(rays, occupied, spec, jitter)
    points = samples.positions(rays)
    assert float(points.abs().max()) <= spec.radius
    cells = ((points + spec.radius) * (len(occupied) / (2 * spec.radius))).long()
    cells = cells.clamp(max=len(occupied) - 1)
    assert bool(occupied[cells[:, 0], cells[:, 1], cells[:, 2]].all())
    same = samples.ray[1:] == samples.ray[:-1]
    gap = (samples.start[1:] - samples.end[:-1])[same]
    assert float(gap.min()) == 0.0  # neighbours share a boundary to the last bit
    assert bool((gap[gap > 0] > 0.9 * spec.step).all())


@each_backend
def test_the_length_seen_is_the_chord_of_the_cube(backend):
    rays = rays_of(
        backend.dtype,
        ([-3, 0.2, 0.1], [1, 0, 0]),  # through
        ([-3, -3, -3], [1, 1, 1]),  # corner to corner
        ([0, 0, 0], [0, -1, 0]),  # from the inside
        ([0.5, 0.5, 5], [0, 0, -1]),
        ([-2, 0, 0], [1, 1, 0]),  # grazes an edge and misses
        ([3, 0, 0], [1, 0, 0]),  # behind
        ([-3, 1.5, 0], [1, 0, 0]),  # parallel and outside
        ([-3, 1.0, 0], [1, 0, 0]),  # parallel, on a face
    )
    spec = MarchSpec(radius=1.0, step=0.01, max_samples=1000)
    occupied = torch.ones(4, 4, 4, dtype=torch.bool)
    zeros = torch.zeros(len(rays.origins), dtype=backend.dtype)
    samples = backend.ops.march(rays, occupied, spec, zeros)
    lengths = zeros.index_add(0, samples.ray, samples.end - samples.start)
    chords = [2.0, 2 * math.sqrt(3), 1.0, 2.0, 0.0, 0.0, 0.0, 2.0]
    # The last interval is kept or not as a whole: half a step.
    assert lengths.tolist() == pytest.approx(chords, abs=0.5 * spec.step + 1e-4)
    first = samples.start[samples.offsets[:4]].tolist()
    assert first == pytest.approx([2.0, 2 * math.sqrt(3), 0.0, 4.0], abs=1e-6)
    sigma = torch.full_like(samples.start, 0.7)
    out = backend.ops.composite(sigma, sigma[:, None], samples, len(zeros))
    expected = [1 - math.exp(-0.7 * chord) for chord in chords]
    assert out.opacity.tolist() == pytest.approx(expected, abs=0.7 * 0.5 * spec.step + 1e-4)


@each_backend
def test_the_near_distance_and_the_jitter_move_the_first_boundary(backend):
    rays = rays_of(backend.dtype, *[([0, 0, 0], [0, 0, 1])] * 3)
    spec = MarchSpec(radius=1.0, step=0.25, max_samples=10, near=0.125)
    jitter = torch.tensor([0.0, 0.5, 0.75], dtype=backend.dtype)
    samples = backend.ops.march(rays, torch.ones(1, 1, 1, dtype=torch.bool), spec, jitter)
    starts = [samples.start[a:b].tolist() for a, b in samples.offsets.unfold(0, 2, 1).tolist()]
    assert starts == [  # sums of powers of two: exact
        [0.125, 0.375, 0.625],  # the next middle is 1.0, on the face where the ray leaves
        [0.25, 0.5, 0.75],
        [0.3125, 0.5625, 0.8125],
    ]


@each_backend
def test_the_first_samples_are_kept_and_an_empty_grid_has_none(backend):
    rays = rays_of(backend.dtype, ([-3, 0.1, 0.1], [1, 0, 0]), ([0.1, 0.1, 3], [0, 0, -1]))
    zeros = torch.zeros(2, dtype=backend.dtype)
    occupied = torch.ones(8, 8, 8, dtype=torch.bool)
    everything = backend.ops.march(rays, occupied, MarchSpec(1.0, 0.1, 100), zeros)
    few = backend.ops.march(rays, occupied, MarchSpec(1.0, 0.1, 3), zeros)
    assert few.offsets.tolist() == [0, 3, 6]
    for i in range(2):
        low = int(everything.offsets[i])
        assert torch.equal(few.start[3 * i : 3 * i + 3], everything.start[low : low + 3])
    none = backend.ops.march(rays, ~occupied, MarchSpec(1.0, 0.1, 100), zeros)
    assert none.offsets.tolist() == [0, 0, 0]
    assert len(none.start) == 0
    sigma = zeros[:0].requires_grad_()
    out = backend.ops.composite(sigma, zeros.new_zeros(0, 3), none, 2)
    assert out.features.tolist() == [[0.0] * 3] * 2
    out.features.sum().backward()
    nobody = Rays(zeros.new_zeros(0, 3), zeros.new_zeros(0, 3))
    assert backend.ops.march(nobody, occupied, MarchSpec(1.0, 0.1, 3), zeros[:0])[3].tolist() == [0]


def test_chunks_do_not_show(monkeypatch):
    arguments = random_march(1, 100)
    whole = ray_reference.march(*arguments)
    monkeypatch.setattr(ray_reference, "CHUNK", 7 * arguments[2].steps)
    for a, b in zip(ray_reference.march(*arguments), whole, strict=True):
        assert torch.equal(a, b)


@each_backend
def test_a_march_says_what_does_not_fit(backend):
    rays = rays_of(backend.dtype, ([0, 0, 0], [1, 0, 0]))
    grid, spec = torch.ones(2, 2, 2, dtype=torch.bool), MarchSpec(1.0, 0.1, 3)
    zero = torch.zeros(1, dtype=backend.dtype)
    nan = torch.full_like(rays.origins, torch.nan)
    for arguments, words in (
        ((rays._replace(directions=2 * rays.directions), grid, spec, zero), "normalize"),
        ((rays._replace(directions=nan), grid, spec, zero), "normalize"),
        ((rays._replace(origins=nan), grid, spec, zero), "origins hold inf or nan"),
        ((rays._replace(origins=nan[:, :2]), grid, spec, zero), r"needs \(1, 3\)"),
        ((rays, grid.float(), spec, zero), "torch.bool"),
        ((rays, grid[:1], spec, zero), r"\[R, R, R\]"),
        ((rays, grid, spec, zero + 1), r"outside \[0, 1\)"),
        ((rays, grid, spec, zero[:0]), "jitter has shape"),
        ((rays, grid, spec, zero.half()), "float16"),
    ):
        with pytest.raises(ValueError, match=words):
            backend.ops.march(*arguments)


def test_a_spec_says_what_is_allowed():
    for arguments, words in (
        ((0.0, 0.1, 3), "radius is 0.0"),
        ((1.0, math.nan, 3), "step is nan"),
        ((1.0, 0.1, 0), "max_samples is 0"),
        ((1.0, 0.1, 3, -1.0), "near is -1.0"),
        ((1.0, 1e-6, 3), f"at most {MAX_STEPS}"),
    ):
        with pytest.raises(ValueError, match=words):
            MarchSpec(*arguments)
    assert MarchSpec(1.0, 4.0 / MAX_STEPS, 3).steps <= MAX_STEPS  # what the message recommends
