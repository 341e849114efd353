# SPDX-License-Identifier: Apache-2.0
"""The hash encoding against its definition, and every back-end against the reference."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from representations.ops import triton_launch
from representations.ops.fields import hash_cpu, hash_grid, hash_kernels
from representations.ops.fields.hash_grid import HashGridSpec

from .helpers import relative_l2, seeded

SPECS = {
    "all dense": HashGridSpec(3, 2, 19, 4, 1.5),
    "all hashed": HashGridSpec(3, 2, 4, 4, 2.0),
    "dense, then hashed": HashGridSpec(6, 2, 9, 5, 1.4),
    "smallest": HashGridSpec(1, 2, 1, 2, 1.0),
    "one feature": HashGridSpec(4, 1, 8, 3, 1.7),
    "four features": HashGridSpec(4, 4, 8, 3, 1.7),
    "eight features": HashGridSpec(2, 8, 8, 5, 2.3),
    "fine": HashGridSpec(4, 2, 12, 16, 4.0),
}


def random_table(spec: HashGridSpec, seed: int = 0) -> Tensor:
    return torch.randn(
        spec.entries, spec.features, generator=seeded(seed), dtype=torch.float64
    ).requires_grad_()


def points(spec: HashGridSpec, count: int, margin: float = 5e-3, corners: bool = True) -> Tensor:
    """Random points at least ``margin`` of a cell away from every face, where the encoding has a
    derivative; the first are corners of the cube, which may lie on faces."""
    x = torch.rand(3 * count + 100, 3, generator=seeded(1), dtype=torch.float64) * 0.998 + 0.001
    x = x.float().double()  # the same points in both precisions
    for level in spec.layout:
        place = (x * level.scale + 0.5) % 1.0
        x = x[((place > margin) & (place < 1 - margin)).all(-1)]
    x = x[:count]
    ends = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.float64)
    if corners and count >= 8:
        x[: len(ends)] = ends
    return x


def rounding(spec: HashGridSpec) -> float:
    """A position in cells is rounded to a float32; three axes, features of a few units."""
    return 3e-6 + 1.5e-6 * spec.layout[-1].resolution


# The reference against the definition.


def test_the_default_grid_has_the_numbers_of_tiny_cuda_nn():
    spec = HashGridSpec()
    assert [level.resolution for level in spec.layout] == [
        16, 24, 34, 49, 71, 102, 148, 213, 308, 446, 646, 934, 1352, 1956, 2831, 4096,
    ]  # fmt: skip
    assert [level.dense for level in spec.layout] == [True] * 5 + [False] * 11
    assert [level.entries for level in spec.layout[:6]] == [
        4096, 13824, 39304, 117656, 357912, 524288,
    ]  # fmt: skip
    assert all(b.offset == a.offset + a.entries for a, b in pairwise(spec.layout))
    assert spec.entries == 6_299_960
    assert spec.parameters == 12_599_920
    assert spec.megabytes == pytest.approx(50.4, abs=0.01)
    assert spec.width == 32
    assert HashGridSpec(per_level_scale=1.381912879967776).entries == 6_098_120


@pytest.mark.parametrize("levels", [2, 5, 8, 16])
@pytest.mark.parametrize("finest", [16, 17, 64, 100, 256, 1000, 2048, 4096, 8192])
def test_the_finest_resolution_can_be_given(levels: int, finest: int):
    spec = HashGridSpec.reaching(finest, levels=levels)
    resolutions = [level.resolution for level in spec.layout]
    assert (resolutions[0], resolutions[-1]) == (16, finest)
    assert resolutions == sorted(resolutions)
    assert HashGridSpec.reaching(4096).layout == HashGridSpec().layout


def test_a_dense_level_by_hand():
    # One level of 2 vertices per axis: scale 1, vertex (i, j, k) in row i + 2 j + 4 k.
    spec = HashGridSpec(levels=1, features=1, base_resolution=2, per_level_scale=1.0)
    assert spec.layout[0] == (1.0, 2, 8, 0, True)
    table = torch.tensor([[3.0], [1.0], [4.0], [1.0], [5.0], [9.0], [2.0], [6.0]]).double()
    x = torch.tensor([[0.25, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).double()
    out = hash_grid.encode(table, x, spec)
    # (0.75, 1, 0.5): between rows 2, 3 at 3/4 and between 6, 7 at 3/4, half of each.
    first = 0.5 * (0.25 * 4 + 0.75 * 1) + 0.5 * (0.25 * 2 + 0.75 * 6)
    # (1.5, 0.5, 0.5): the mean of rows 1, 3, 5, 7 and, one vertex further, 2, 4, 6, 8 mod 8 = 0.
    second = (1 + 1 + 9 + 6 + 4 + 5 + 2 + 3) / 8
    # (1.5, 1.5, 1.5): rows 7, 8, 9, 10, 11, 12, 13, 14, all but the first past the end.
    third = (6 + 3 + 1 + 4 + 1 + 5 + 9 + 2) / 8
    torch.testing.assert_close(out[:, 0], torch.tensor([first, second, third]).double())


def test_a_hashed_row_by_hand():
    # Scale 7; vertex (4, 2, 3) is at x = (3.5, 1.5, 2.5) / 7. Of the products only the lowest 8
    # bits count: 4 xor (2 * 0xB1 = 0x162) xor (3 * 0x95 = 0x1BF) = 0x04 ^ 0x62 ^ 0xBF = 0xD9.
    spec = HashGridSpec(levels=1, features=1, log2_size=8, base_resolution=8, per_level_scale=1.0)
    table = torch.arange(256, dtype=torch.float64)[:, None]
    x = torch.tensor([[3.5, 1.5, 2.5]], dtype=torch.float64) / 7
    assert float(hash_grid.encode(table, x, spec)) == pytest.approx(0xD9, abs=1e-9)


def float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def by_definition(numbers: list[float], point: list[float], spec: HashGridSpec) -> list[float]:
    """The encoding of one point from the flat parameters, in plain integers and floats."""
    growth = float32(math.log2(float32(spec.per_level_scale)))
    found: list[float] = []
    start = 0
    for level in range(spec.levels):
        scale = float32(
            float32(float32(2.0 ** float32(level * growth)) * spec.base_resolution) - 1.0
        )
        resolution = math.ceil(scale) + 1
        size = min((resolution**3 + 7) // 8 * 8, 2**spec.log2_size)
        position = [scale * coordinate + 0.5 for coordinate in point]
        blend = [0.0] * spec.features
        for corner in range(8):
            weight, vertex = 1.0, []
            for axis in range(3):
                below = math.floor(position[axis])
                share = position[axis] - below
                above = (corner >> axis) & 1
                weight *= share if above else 1.0 - share
                vertex.append(below + above)
            if resolution**3 <= size:
                row = vertex[0] + vertex[1] * resolution + vertex[2] * resolution**2
            else:
                row = 0
                for coordinate, prime in zip(vertex, (1, 2654435761, 805459861), strict=True):
                    row ^= coordinate * prime % 2**32
            row %= size
            for f in range(spec.features):
                blend[f] += weight * numbers[start + row * spec.features + f]
        found += blend
        start += size * spec.features
    assert start == len(numbers)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_the_reference_is_the_definition(name: str):
    spec = SPECS[name]
    table, x = random_table(spec).detach(), points(spec, 30)
    numbers = table.flatten().tolist()
    expected = [by_definition(numbers, point, spec) for point in x.tolist()]
    out = hash_grid.encode(table, x, spec)
    torch.testing.assert_close(out, torch.tensor(expected, dtype=out.dtype), atol=1e-12, rtol=1e-12)


def test_a_dense_level_reproduces_a_linear_function():
    spec = HashGridSpec(levels=1, features=1, base_resolution=9, per_level_scale=1.0)
    slope = torch.tensor([1.5, -2.0, 0.75], dtype=torch.float64)
    step = torch.arange(9, dtype=torch.float64)
    k, j, i = torch.meshgrid(step, step, step, indexing="ij")
    vertices = (torch.stack([i, j, k], dim=-1).reshape(-1, 3) - 0.5) / 8
    table = torch.zeros(spec.entries, 1, dtype=torch.float64)
    table[: 9**3, 0] = vertices @ slope + 0.3
    x = torch.rand(200, 3, generator=seeded(3), dtype=torch.float64) * 0.93  # before the last half
    features, jacobian = hash_grid.encode_jacobian(table, x, spec)
    torch.testing.assert_close(features[:, 0], x @ slope + 0.3, atol=1e-12, rtol=0)
    torch.testing.assert_close(jacobian[:, 0], slope.expand(200, 3), atol=1e-11, rtol=0)
    torch.testing.assert_close(hash_grid.encode(table, x, spec), features, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["all dense", "all hashed", "one feature"])
def test_derivatives_of_the_reference_against_differences(name: str):
    spec = SPECS[name]
    table, x = random_table(spec), points(spec, 5, corners=False).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, p: hash_grid.encode(t, p, spec), (table, x))
    assert torch.autograd.gradcheck(
        lambda t: tuple(hash_grid.encode_jacobian(t, x.detach(), spec)), (table,)
    )


@pytest.mark.parametrize("name", SPECS)
def test_the_jacobian_is_the_derivative_by_position(name: str):
    spec = SPECS[name]
    table, x = random_table(spec).detach(), points(spec, 20, corners=False)
    features, jacobian = hash_grid.encode_jacobian(table, x, spec)
    torch.testing.assert_close(features, hash_grid.encode(table, x, spec))
    by_autograd = torch.autograd.functional.jacobian(
        lambda p: hash_grid.encode(table, p, spec).sum(0), x
    ).transpose(0, 1)
    torch.testing.assert_close(jacobian, by_autograd)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    # Inside a cell the encoding is linear along each axis: only rounding is left.
    by_difference = torch.stack(
        [
            (hash_grid.encode(table, x + h, spec) - hash_grid.encode(table, x - h, spec)) / 2e-6
            for h in step
        ],
        dim=-1,
    )
    torch.testing.assert_close(jacobian, by_difference, atol=1e-7, rtol=1e-7)


# Back-ends against the reference.


def outcome(
    module: ModuleType, table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
) -> dict[str, Tensor]:
    """Values, and gradients of fixed random pulls on every output that has one."""
    g = seeded(7)

    def pull(out: Tensor) -> Tensor:
        return torch.randn(out.shape, generator=g).to(out)

    t, p = table.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    out = module.encode(t, p, spec, active)
    d_table, d_x = torch.autograd.grad(out, (t, p), pull(out))
    features, jacobian = module.encode_jacobian(t, p, spec, active)
    both = (features * pull(features)).sum() + (jacobian * pull(jacobian)).sum()
    (d_both,) = torch.autograd.grad(both, t)
    named = {"out": out, "d_table": d_table, "d_x": d_x, "features": features,
             "jacobian": jacobian, "d_both": d_both}  # fmt: skip
    return {name: tensor.detach().cpu() for name, tensor in named.items()}


def compare(
    module: ModuleType, spec: HashGridSpec, count: int, active: int | None, device: str = "cpu"
) -> None:
    table, x = random_table(spec).detach(), points(spec, count)
    exact = outcome(hash_grid, table, x, spec, active)
    fast = outcome(module, table.float().to(device), x.float().to(device), spec, active)
    for name, expected in exact.items():
        assert fast[name].shape == expected.shape, name
        assert torch.isfinite(fast[name]).all(), name
        if name in ("out", "features"):
            error = (fast[name].double() - expected).abs().max() if count else 0.0
            assert float(error) < 2.0 * rounding(spec), name
        elif float(expected.norm()) == 0.0:
            assert not bool(fast[name].any()), name
        else:
            assert relative_l2(fast[name], expected) < rounding(spec), name


@pytest.mark.parametrize("name", SPECS)
def test_numba_agrees_with_the_reference(name: str):
    compare(hash_cpu, SPECS[name], 400, None)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129])
def test_any_number_of_points(count: int):
    compare(hash_cpu, SPECS["dense, then hashed"], count, None)


@pytest.mark.parametrize("active", [1, 3, 6])
def test_levels_that_are_off_read_as_zero_and_get_no_gradient(
    active: int, monkeypatch: pytest.MonkeyPatch
):
    spec = SPECS["dense, then hashed"]
    with monkeypatch.context() as patch:  # memory that nobody has written is not zero
        patch.setattr(np, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
        compare(hash_cpu, spec, 60, active)
    table, x = random_table(spec).detach(), points(spec, 60)
    full, part = (outcome(hash_grid, table, x, spec, a) for a in (None, active))
    width, rows = active * spec.features, sum(level.entries for level in spec.layout[:active])
    for name in ("out", "features", "jacobian"):
        assert torch.equal(part[name][:, :width], full[name][:, :width]), name
        assert not bool(part[name][:, width:].any()), name
    for name in ("d_table", "d_both"):
        assert bool(part[name][:rows].any()), name
        assert not bool(part[name][rows:].any()), name


def test_strides_do_not_matter():
    spec = SPECS["dense, then hashed"]
    x = points(spec, 50).float()
    table = random_table(spec).detach().float().T.contiguous().T.requires_grad_()
    spread = torch.stack([x, x], dim=-1)[..., 0]
    out = hash_cpu.encode(table, spread, spec)
    out.sum().backward()  # an expanded gradient
    plain = table.detach().contiguous().requires_grad_()
    expected = hash_cpu.encode(plain, x, spec)
    expected.backward(torch.ones_like(expected))
    assert torch.equal(out, expected)
    assert torch.equal(table.grad, plain.grad)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_the_numbers_do_not_depend_on_threads():
    spec = SPECS["dense, then hashed"]
    table, x = random_table(spec).detach().float(), points(spec, 3000).float()
    outcomes = []
    for count in (1, 2):
        torch.set_num_threads(count)
        outcomes.append(outcome(hash_cpu, table, x, spec))
    same(*outcomes)


def test_the_numbers_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch):
    spec = SPECS["dense, then hashed"]
    table, x = random_table(spec).detach().float(), points(spec, 1000).float()
    before = outcome(hash_cpu, table, x, spec)
    monkeypatch.setattr(hash_kernels, "BLOCK", 70)
    same(before, outcome(hash_cpu, table, x, spec))


def test_the_position_is_a_constant_of_the_jacobian():
    spec = SPECS["all dense"]
    table, x = random_table(spec).detach(), points(spec, 9).requires_grad_()
    for module, dtype in ((hash_grid, torch.float64), (hash_cpu, torch.float32)):
        features, jacobian = module.encode_jacobian(table.to(dtype), x.to(dtype), spec)
        assert not features.requires_grad
        assert not jacobian.requires_grad


needs_interpreter = pytest.mark.skipif(
    not triton_launch.available() or torch.cuda.is_available(), reason="needs Triton and no card"
)


@needs_interpreter
@pytest.mark.parametrize("name", SPECS)
def test_triton_interpreted_agrees_with_the_reference(name: str):
    from representations.ops.fields import hash_triton

    compare(hash_triton, SPECS[name], 60, None)


@needs_interpreter
@pytest.mark.parametrize(("count", "active"), [(0, None), (1, 3), (257, 1)])
def test_triton_takes_any_number_of_points_and_levels(count: int, active: int | None):
    from representations.ops.fields import hash_triton

    compare(hash_triton, SPECS["dense, then hashed"], count, active)


@needs_interpreter
def test_triton_does_not_mind_strides():
    from representations.ops.fields import hash_triton

    spec = SPECS["dense, then hashed"]
    x = points(spec, 20).float()
    table = random_table(spec).detach().float().T.contiguous().T.requires_grad_()
    spread = torch.stack([x, x], dim=-1)[..., 0]
    hash_triton.encode(table, spread, spec).sum().backward()  # an expanded gradient
    plain = table.detach().contiguous().requires_grad_()
    hash_grid.encode(plain, x, spec).sum().backward()
    torch.testing.assert_close(table.grad, plain.grad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("active", [None, 1])
@pytest.mark.parametrize("name", SPECS)
def test_cuda_agrees_with_the_reference(name: str, active: int | None):
    from representations.ops.fields import hash_cuda

    compare(hash_cuda, SPECS[name], 400, active, "cuda")


# What is refused.


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"levels": 0}, "levels=0"),
        ({"levels": 33}, "levels=33"),
        ({"features": 3}, "features=3"),
        ({"log2_size": 0}, "log2_size=0"),
        ({"log2_size": 29}, "log2_size=29"),
        ({"base_resolution": 1}, "base_resolution=1"),
        ({"per_level_scale": 0.9}, r"per_level_scale=0\.9"),
        ({"per_level_scale": 2.2}, r"per_level_scale=2\.2"),
        ({"per_level_scale": math.nan}, "per_level_scale=nan"),
    ],
)
def test_grids_that_cannot_be(settings: dict[str, float], word: str):
    with pytest.raises(ValueError, match=word + r".*allowed is .*write "):
        HashGridSpec(**settings)  # type: ignore[arg-type]


def test_resolutions_that_cannot_be_reached():
    for finest, levels in ((8, 16), (2**21, 16), (32, 1)):
        with pytest.raises(ValueError, match=f"max_resolution={finest} .*write max_resolution="):
            HashGridSpec.reaching(finest, levels=levels)


@pytest.mark.parametrize("module", [hash_grid, hash_cpu])
def test_arguments_that_do_not_fit(module: ModuleType):
    spec = SPECS["all dense"]
    table, x = random_table(spec).detach().float(), points(spec, 9).float()
    for call in (module.encode, module.encode_jacobian):
        for bad, word in (
            ((table[1:], x), "table has shape"),
            ((table, x[:, :2]), "x has shape"),
            ((table, x.double()), "float64"),
            ((table, x + 0.5), "reaches from"),
            ((table, x * math.nan), "reaches from nan"),
        ):
            with pytest.raises(ValueError, match=word):
                call(*bad, spec)
        for active in (0, 4):
            with pytest.raises(ValueError, match=f"active={active} .*1 to 3"):
                call(table, x, spec, active)
    with pytest.raises(ValueError, match='convert it, or use back-end "reference"'):
        hash_cpu.encode(table.double(), x.double(), spec)
