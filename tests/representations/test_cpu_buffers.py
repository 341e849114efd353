# SPDX-License-Identifier: Apache-2.0
"""Large buffers are used again, but never while anything still looks at them."""

from __future__ import annotations

import gc
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from representations.ops import cpu_buffers
from representations.ops.cpu_buffers import SMALLEST, borrow
from representations.ops.fields import hash_cpu
from representations.ops.fields.hash_grid import HashGridSpec

LARGE = (SMALLEST // 8, 2)


@pytest.fixture(autouse=True)
def none_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_buffers, "_waiting", deque())


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


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Arrays of ever other lengths, as the samples of a picture are: the oldest are given back."""
    monkeypatch.setattr(cpu_buffers, "KEPT", 10 * SMALLEST)
    for rows in range(SMALLEST // 4, SMALLEST, 997):
        array = borrow((rows,))
        array[:] = 1.0
        del array
        assert sum(one.nbytes for one in cpu_buffers._waiting) <= 10 * SMALLEST
    sizes = [one.nbytes for one in cpu_buffers._waiting]
    assert sizes
    assert max(sizes) > 3.5 * SMALLEST  # the newest are still there


@given(st.integers(SMALLEST, 1 << 40))
def test_sizes_are_rounded_up_by_an_eighth_at_most(size: int):
    rounded = cpu_buffers._rounded(size)
    assert size <= rounded <= size * 1.125
    assert rounded % 4 == 0
    assert cpu_buffers._rounded(rounded) == rounded


def test_lengths_that_change_share_their_buffers():
    starts = set()
    for rows in range(500_000, 520_000, 1000):
        array = borrow((rows,))
        starts.add(address(array))
        del array
    assert len(starts) == 1


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
