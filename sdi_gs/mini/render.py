# SPDX-License-Identifier: Apache-2.0
"""Ray casting of :class:`Solid` on the CPU with Embree: the truth that mini learns from.

Shading is Lambertian with a light that belongs to the object (from its front, its left and
above), so that a surface point has one colour from every side (a field without view dependence
can reproduce it) and the front of every object is brighter than its back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from representations.cameras import rays
from representations.interface import Cameras

from .shapes import Solid, Vec3

_LIGHT = np.array([0.78, 0.38, 0.50])
AMBIENT, SKY, KEY = 0.66, 0.12, 0.24  # weights of constant, upward and light-facing shade


@dataclass(frozen=True)
class Cast:
    """One view before colouring: recolouring it costs nothing, casting it does."""

    part: np.ndarray  # [S, S, H, W] int16, -1 where the ray leaves; S x S samples per pixel
    shade: np.ndarray  # [S, S, H, W] float32

    def paint(self, palette: np.ndarray, background: Vec3 = (1.0, 1.0, 1.0)) -> np.ndarray:
        """RGB float32 [3, H, W] in [0, 1]; ``palette`` is [P, 3]."""
        table = np.concatenate([palette, np.array([background])]).astype(np.float32)
        rgb = table[self.part]  # part -1 picks the last row, the background
        lit = np.where(self.part >= 0, self.shade, 1.0).astype(np.float32)
        mean: np.ndarray = np.clip(rgb * lit[..., None], 0.0, 1.0).mean(axis=(0, 1))
        return mean.transpose(2, 0, 1)

    def coverage(self) -> np.ndarray:
        """Share of a pixel's rays that hit, [H, W] in [0, 1]."""
        share: np.ndarray = (self.part >= 0).mean(axis=(0, 1)).astype(np.float32)
        return share


def _supersampled(cameras: Cameras, samples: int) -> Cameras:
    scale = torch.tensor([float(samples), float(samples), 1.0])
    return Cameras(
        cameras.world_to_cam,
        cameras.intrinsics * scale[:, None],
        cameras.width * samples,
        cameras.height * samples,
    )


def cast(solid: Solid, cameras: Cameras, samples: int = 2) -> list[Cast]:
    """Cast ``samples`` x ``samples`` rays per pixel of every camera against ``solid``."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    triangles = solid.vertices[solid.faces].astype(np.float32)  # [F, 3, 3]
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    scene = EmbreeScene()
    TriangleMesh(scene, triangles)

    origins, directions = rays(_supersampled(cameras, samples))
    height, width = cameras.height, cameras.width
    light = _LIGHT / np.linalg.norm(_LIGHT)
    out = []
    for view in range(len(cameras)):
        o = np.ascontiguousarray(origins[view].reshape(-1, 3).numpy(), dtype=np.float32)
        d = np.ascontiguousarray(directions[view].reshape(-1, 3).numpy(), dtype=np.float32)
        face = scene.run(o, d)  # [R] index of the first triangle hit, -1 for none
        n = normals[face]
        n = n * -np.sign((n * d).sum(axis=1, keepdims=True))  # towards the camera
        shade = AMBIENT + SKY * n[:, 2] + KEY * (n @ light)
        part = np.where(face >= 0, solid.face_part[face], -1).astype(np.int16)
        grid = (height, samples, width, samples)
        out.append(
            Cast(
                part.reshape(grid).transpose(1, 3, 0, 2),
                shade.astype(np.float32).reshape(grid).transpose(1, 3, 0, 2),
            )
        )
    return out
