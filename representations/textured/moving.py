# SPDX-License-Identifier: Apache-2.0
"""A triangle mesh whose corners are trained, in coordinates in which a step is smooth.

Trained is u = (I + lambda L) v instead of the corners v, L the combinatorial Laplacian of the mesh:
a gradient that pulls at single corners, as an outline does, moves what is around them as well
(Nicolet et al. 2021, "Large Steps in Inverse Rendering of Geometry").
Corners of one place, which a seam of the texture has made two of, are one here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.meshes import Edges, edges_of

GRAZING = 0.1
"""Cosine between a ray and a normal under which where it meets the triangle has no gradient."""


class MovingShape:
    """The corners of a mesh as a parameter.

    Args:
        vertices: [V, 3], those that begin.
        faces: [F, 3].
        smooth: lambda; 0 moves each corner by itself.
        weld: [V] which vertices are one; None: those that are at the same place.
    """

    def __init__(
        self, vertices: np.ndarray, faces: np.ndarray, smooth: float, weld: np.ndarray | None = None
    ) -> None:
        self.weld = welded(vertices) if weld is None else torch.from_numpy(weld)
        self.faces = self.weld[torch.from_numpy(faces)]
        self.edges: Edges = edges_of(self.faces.numpy())
        self._solve = _solver(self.edges, int(self.weld.max()) + 1, smooth)
        place = np.zeros((int(self.weld.max()) + 1, 3))
        place[self.weld.numpy()] = vertices
        self.u = torch.nn.Parameter(torch.from_numpy(self._solve.product(place)))

    def to(self, device: torch.device) -> MovingShape:
        """This, with what is on a device moved there."""
        self.weld, self.faces = self.weld.to(device), self.faces.to(device)
        self.edges = Edges(*(part.to(device) for part in self.edges))
        self.u = torch.nn.Parameter(self.u.detach().to(device))
        return self

    def corners(self) -> Tensor:
        """[W, 3] float64 in the world, with gradient to ``u``; one for each welded place."""
        out: Tensor = _Solved.apply(self.u, self._solve)
        return out

    def normal_consistency(self, corners: Tensor) -> Tensor:
        """Mean of 1 - cos of the angle between neighbouring triangles; 0 for a plane."""
        a, b = corners[self.edges.ends].unbind(1)
        one, other = corners[self.edges.opposite].unbind(1)
        first = torch.linalg.cross(b - a, one - a)
        second = torch.linalg.cross(other - a, b - a)
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1, eps=1e-12)
        shared = self.edges.opposite[:, 0] != self.edges.opposite[:, 1]
        if not bool(shared.any()):
            return corners.sum() * 0.0
        return (1.0 - cosine[shared]).mean()


def welded(vertices: np.ndarray) -> Tensor:
    """Numbers [V] int64 from 0 on, the same for vertices [V, 3] of one place."""
    _, number = np.unique(vertices, axis=0, return_inverse=True)
    return torch.from_numpy(np.ascontiguousarray(number.reshape(-1), np.int64))


def vertex_normals(corners: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [W, 3] of corners [W, 3], means of those of their faces by area; up where they
    have none."""
    a, b, c = corners[faces].unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(corners)
    for corner in range(3):
        total = total.index_add(0, faces[:, corner], across)
    none = (total == 0).all(-1, keepdim=True)
    total = torch.where(none, total.new_tensor([0.0, 0.0, 1.0]), total)
    return torch.nn.functional.normalize(total, dim=-1, eps=1e-30)


def met_at(corners: Tensor, origins: Tensor, directions: Tensor, weight: Tensor) -> Tensor:
    """Weights [K, 3] of the corners [K, 3, 3] float64 where rays meet the planes of their triangles
    (Moeller and Trumbore 1997), with gradient; ``weight`` [K, 3] as it is, and without, where a ray
    only grazes: a small move of a corner changes those by much and the picture by little."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    origins, directions = origins.to(corners), directions.to(corners)
    across = torch.linalg.cross(directions, second)
    scale = (first * across).sum(1)
    area = torch.linalg.cross(first, second).norm(dim=1) * directions.norm(dim=1)
    sure = (scale.abs() > GRAZING * area).detach()
    scale = torch.where(sure, scale, torch.ones_like(scale))
    away = origins - corners[:, 0]
    u = (away * across).sum(1) / scale
    v = (directions * torch.linalg.cross(away, first)).sum(1) / scale
    found = torch.stack([1.0 - u - v, u, v], dim=1)
    return torch.where(sure[:, None], found, weight.to(found))


class _Solver:
    """I + lambda L and its inverse, on the CPU in double precision."""

    def __init__(self, matrix: Any) -> None:
        from scipy.sparse.linalg import splu

        self.product = matrix.dot
        self._factors = splu(matrix.tocsc())

    def __call__(self, values: Tensor) -> Tensor:
        solved = self._factors.solve(values.detach().double().cpu().numpy())
        return torch.from_numpy(np.ascontiguousarray(solved)).to(values)


def _solver(edges: Edges, count: int, smooth: float) -> _Solver:
    from scipy import sparse

    ends = np.unique(edges.ends.numpy(), axis=0)
    i, j = np.concatenate([ends, ends[:, ::-1]]).T
    beside = sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(count, count))
    degree = sparse.diags(np.asarray(beside.sum(1)).reshape(-1))
    return _Solver((sparse.identity(count) + smooth * (degree - beside)).tocsr())


class _Solved(torch.autograd.Function):
    """The inverse times u; the matrix is symmetric, and so is what a gradient goes through."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, solve: _Solver) -> Tensor:
        ctx.solve = solve
        return solve(u)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradient), None
