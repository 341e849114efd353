# SPDX-License-Identifier: Apache-2.0
"""What nerfacc compiles, written again for the CPU: the three functions of its library that our
back-end reaches, in float32, after their documentation and what their kernels were seen to do."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

F = np.float32
AHEAD = F(1e-6)  # of an entrance: where the first cell is looked up


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _walk(  # type: ignore[no-untyped-def]
    origin, direction, occupied, low, high, near, entry, leave, step, limit, starts, ends
):
    """Samples of one ray, cell after cell; returns their number."""
    if not entry < leave:
        return 0
    res = np.array(occupied.shape)
    cell, last = np.zeros(3, np.int64), np.zeros(3, np.int64)
    turn = np.zeros(3, np.int64)  # which way the cells go
    border, apart = np.zeros(3, np.float32), np.zeros(3, np.float32)  # next border, and between two
    for a in range(3):
        size = (high[a] - low[a]) / F(res[a])
        inverse = F(1.0) / direction[a] if direction[a] != 0 else F(0.0)
        begin = origin[a] + direction[a] * (entry + AHEAD)
        finish = origin[a] + direction[a] * (leave - AHEAD)
        cell[a] = min(max(int((begin - low[a]) / (high[a] - low[a]) * F(res[a])), 0), res[a] - 1)
        last[a] = min(max(int((finish - low[a]) / (high[a] - low[a]) * F(res[a])), 0), res[a] - 1)
        if direction[a] == 0:
            border[a], apart[a] = leave, leave
            continue
        turn[a] = 1 if direction[a] > 0 else -1
        ahead = F(cell[a] + (1 if direction[a] > 0 else 0))
        border[a] = (low[a] + (ahead * size - begin)) * inverse + entry
        apart[a] = size * inverse * F(turn[a])
    count, t = 0, near
    while t + step * F(0.5) < entry:
        t += step
    while count < limit:
        reach = min(min(border[0], min(border[1], border[2])), leave)
        full = occupied[cell[0], cell[1], cell[2]]
        while t + step * F(0.5) < reach and count < limit:
            if full:
                starts[count], ends[count] = t, t + step
                count += 1
            t += step
        if border[0] < border[1] and border[0] < border[2]:
            a = 0
        elif border[1] < border[2]:
            a = 1
        else:
            a = 2
        if cell[a] == last[a]:
            break
        cell[a] += turn[a]
        border[a] += apart[a]
    return count


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _walk_all(  # type: ignore[no-untyped-def]
    origins, directions, occupied, box, near, entry, leave, step, limit, most
):
    counts = np.zeros(len(origins), np.int64)
    starts = np.zeros((len(origins), most), np.float32)
    ends = np.zeros((len(origins), most), np.float32)
    for i in range(len(origins)):
        counts[i] = _walk(
            origins[i], directions[i], occupied, box[:3], box[3:], near[i], entry[i], leave[i],
            step, limit, starts[i], ends[i],
        )  # fmt: skip
    return counts, starts, ends


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _sum(first, counts, values, backward):  # type: ignore[no-untyped-def]
    out = np.zeros_like(values)
    for ray in range(len(counts)):
        total = F(0.0)
        for k in range(counts[ray]):
            at = first[ray] + (counts[ray] - 1 - k if backward else k)
            out[at] = total
            total += values[at]
    return out


def _spec(counts: np.ndarray, ray: np.ndarray, **more: np.ndarray) -> SimpleNamespace:
    given = {"chunk_cnts": counts, "chunk_starts": counts.cumsum() - counts, "ray_indices": ray}
    given |= {"vals": more.pop("vals").astype(np.float32)} | more
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in given.items()}
    absent = dict.fromkeys(("is_left", "is_right", "is_valid"))
    return SimpleNamespace(**(absent | tensors))


def traverse_grids(
    origins: Tensor, directions: Tensor, mask: Tensor, binaries: Tensor, boxes: Tensor,
    t_sorted: Tensor, t_indices: Tensor, hits: Tensor, near: Tensor, far: Tensor, step: float,
    cone: float, *how: Any,
) -> tuple[SimpleNamespace, SimpleNamespace, None]:  # fmt: skip
    """Edges of intervals, and their middles; one grid."""
    *wanted, limit, over_allocate = how
    assert wanted == [True, True, True]
    assert (cone, over_allocate, len(binaries)) == (0.0, False, 1)
    assert mask.all()
    assert t_indices.tolist() == [[0, 1]] * len(origins)
    for tensor in (origins, directions, boxes, t_sorted, near, far):  # what C++ takes on trust
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
    assert len(origins) > 0
    assert step > 0
    entry = torch.where(hits[:, 0], torch.maximum(t_sorted[:, 0], near), 1.0)
    leave = torch.where(hits[:, 0], torch.minimum(t_sorted[:, 1], far), 0.0)
    most = max(1, int((float(leave.max()) - float(near.min())) / step) + 2)
    counts, starts, ends = _walk_all(
        *(t.numpy() for t in (origins, directions, binaries[0], boxes[0], near, entry, leave)),
        F(step), limit if limit > 0 else most, most,
    )  # fmt: skip
    kept = np.arange(most)[None] < counts[:, None]
    ray = np.repeat(np.arange(len(counts)), counts)
    first, last = starts[kept], ends[kept]
    # An edge between two samples that touch is there once.
    touch = np.zeros(len(ray), bool)
    touch[1:] = (ray[1:] == ray[:-1]) & (first[1:] == last[:-1])
    edges = np.stack([first, last], -1).reshape(-1)
    left = np.tile([True, False], len(ray))
    right, whole = ~left, np.ones(len(edges), bool)
    left[1:-1:2] |= touch[1:]
    whole[2::2] = ~touch[1:]
    owner = np.repeat(ray, 2)[whole]
    intervals = _spec(
        np.bincount(owner, minlength=len(counts)), owner, vals=edges[whole], is_left=left[whole],
        is_right=right[whole],
    )  # fmt: skip
    middles = _spec(counts, ray, vals=(first + last) * F(0.5), is_valid=np.ones(len(ray), bool))
    return intervals, middles, None


def exclusive_sum(
    first: Tensor, counts: Tensor, values: Tensor, normalize: bool, backward: bool
) -> Tensor:
    """What lies in front of each value on its ray; behind it, for a gradient."""
    assert not normalize
    assert first.dtype == counts.dtype == torch.int64
    assert values.dtype == torch.float32
    given = (t.detach().contiguous().numpy() for t in (first, counts, values))
    return torch.from_numpy(_sum(*given, backward))


def library() -> ModuleType:
    """As the compiled one is imported."""
    made = ModuleType("nerfacc_cuda")
    made.traverse_grids, made.exclusive_sum = traverse_grids, exclusive_sum  # type: ignore[attr-defined]
    return made
