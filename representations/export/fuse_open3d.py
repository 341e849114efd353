# SPDX-License-Identifier: Apache-2.0
"""Depth fusion by open3d (the extra ``open3d``): a second opinion on :func:`surface.fuse`.

Unlike our own fusion it takes no notice of pixels that show nothing, and it leaves a hole wherever
no picture looks. The volume is a uniform one: open3d's growing volume finds no surface at all in
pictures of this kind (version 0.20).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..checks import pip_install
from ..interface import Cameras, Render
from .mesh import Mesh, MeshError, keep_large_parts
from .painting import SURFACE_ALPHA
from .surface import NOTHING_SOLID, TRUNCATION_VOXELS, Extracted


def _open3d() -> Any:
    try:
        import open3d
    except ImportError as error:
        raise MeshError(
            f"the mesher open3d needs a package that cannot be imported here ({error}): "
            f"{pip_install('open3d')}, or take the mesher 'default', which needs nothing more"
        ) from None
    return open3d


def fuse(
    renders: Iterable[Render], cameras: Cameras, *, radius: float, resolution: int = 96
) -> Extracted:
    """Fuse depth pictures on a lattice of ``resolution`` cells along each axis of
    [-radius, radius]^3.

    Raises MeshError when no picture shows a surface, or without open3d.
    """
    o3d = _open3d()
    volume = o3d.pipelines.integration.UniformTSDFVolume(
        length=2.0 * radius,
        resolution=resolution,
        sdf_trunc=TRUNCATION_VOXELS * 2.0 * radius / resolution,
        color_type=o3d.pipelines.integration.TSDFVolumeColorType.RGB8,
        origin=np.full((3, 1), -radius),
    )
    for i, render in enumerate(renders):
        camera = cameras[i : i + 1]
        volume.integrate(_picture(o3d, render), *_pose(o3d, camera))
    found = volume.extract_triangle_mesh()
    if len(found.triangles) == 0:
        raise MeshError(NOTHING_SOLID)
    mesh = Mesh(
        np.asarray(found.vertices, np.float32),
        np.asarray(found.triangles, np.int64),
        np.asarray(found.vertex_colors, np.float32),
    )
    kept, parts = keep_large_parts(mesh)
    return Extracted(kept.check(), 0.0, parts)


def _picture(o3d: Any, render: Render) -> Any:
    """Colour and depth as open3d wants them; a depth of 0 says that nothing is known."""
    alpha = render.alpha[0, 0]
    solid = alpha > SURFACE_ALPHA
    color = (render.rgb[0] / alpha.clamp(min=SURFACE_ALPHA)).clamp(0.0, 1.0).permute(1, 2, 0)
    depth = (render.depth[0, 0] * solid).float()
    return o3d.geometry.RGBDImage.create_from_color_and_depth(
        o3d.geometry.Image(np.ascontiguousarray((color * 255 + 0.5).byte().numpy())),
        o3d.geometry.Image(np.ascontiguousarray(depth.numpy())),
        depth_scale=1.0,
        depth_trunc=float(depth.max()) + 1.0,
        convert_rgb_to_intensity=False,
    )


def _pose(o3d: Any, camera: Cameras) -> tuple[Any, np.ndarray]:
    """open3d counts pixels from their centres, we from their corners: half a pixel between."""
    k = camera.intrinsics[0].double().numpy()
    intrinsic = o3d.camera.PinholeCameraIntrinsic(
        camera.width, camera.height, k[0, 0], k[1, 1], k[0, 2] - 0.5, k[1, 2] - 0.5
    )
    return intrinsic, camera.world_to_cam[0].double().numpy()
