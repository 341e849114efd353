# SPDX-License-Identifier: Apache-2.0
"""Large buffers are used again, but never while anything still looks at them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from representations.ops import cpu_buffers, hash_cpu
from representations.ops.cpu_buffers import KEPT, SMALLEST, borrow
from representations.ops.hash_grid import HashGridSpec

LARGE = (SMALLEST // 8, 2)


@pytest.fixture(autouse=True)
def none_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_buffers, "_free", {})


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "keep",
    [
        lambda a: a,
        lambda a: a[5:],
        lambda a: a.view(np.float64).T[0],
        torch.from_numpy,
        lambda a: torch.from_numpy(a).view(-1)[7:],
        lambda a: torch.from_numpy(a).numpy(),
    ],
    ids=["array", "part", "other type", "tensor", "part of a tensor", "array of a tensor"],
)
def test_memory_in_use_is_not_handed_out(keep):
    kept = keep(borrow(LARGE))
    kept[:] = 3.0
    gc.collect()
    others = [borrow(LARGE) for _ in range(3)]
    for other in others:
        other[:] = 0.0
    assert kept.min() == 3.0
    first = address(kept.numpy() if isinstance(kept, torch.Tensor) else kept)
    del kept, others, other
    whole = [borrow(LARGE) for _ in range(4)]
    starts = [address(array) for array in whole]
    assert any(start <= first < start + whole[0].nbytes for start in starts)


def test_memory_is_used_again_and_small_arrays_are_left_alone():
    one = borrow(LARGE)
    start = address(one)
    assert one.shape == LARGE
    assert one.dtype == np.float32
    assert one.flags.c_contiguous
    assert one.flags.writeable
    del one
    again = borrow(LARGE[::-1])  # another shape, as many bytes
    assert address(again) == start
    assert borrow((0, 3)).shape == (0, 3)
    assert borrow((3,)).base is None


def test_only_a_few_wait():
    many = [borrow(LARGE) for _ in range(2 * KEPT)]
    del many
    assert [len(waiting) for waiting in cpu_buffers._free.values()] == [KEPT]


def test_a_gradient_that_is_kept_survives_the_next_one():
    spec = HashGridSpec(levels=4, features=2, log2_size=17)
    table = torch.zeros(spec.entries, 2, requires_grad=True)
    x = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0))
    assert table.numel() * 4 >= SMALLEST

    def gradient(pull: float) -> torch.Tensor:
        features = hash_cpu.encode(table, x, spec)
        return torch.autograd.grad(features.sum() * pull, table)[0]

    first = gradient(1.0)
    copy = first.clone()
    second = gradient(-2.0)
    assert torch.equal(first, copy)
    assert torch.equal(second, -2.0 * first)
    assert float(first.sum()) == pytest.approx(40_000 * spec.width, rel=1e-4)
