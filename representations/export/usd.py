# SPDX-License-Identifier: Apache-2.0
"""Splats for OpenUSD (26.03 and newer): one ``ParticleField3DGaussianSplat``, by the package
usd-core (the extra ``usd``), as text (.usda), binary (.usdc) or a package (.usdz).

Scales and opacities are as they are, rotations w, x, y, z, harmonics splat by splat in the order of
3D Gaussian Splatting. The stage says its axis: y up, or z up with ``Layout(up="z")``. A program
that does not know the schema finds nothing to draw.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import pip_install
from ..cloud import SplatCloud
from ..files import write_atomically
from ..ops.constants import SH_DC
from ..transfer import linear_of
from .layout import DEFAULT, Layout, require_scales
from .packed import MissingTool

KINDS = ("usda", "usdc", "usdz")
LOG_SCALES = (-87.0, 88.0)
"""Whose exponentials are neither 0 nor infinite in float32."""

REACH = 3.0  # standard deviations of a splat that its extent holds
PRIM = "Splats"


def _pxr() -> tuple[Any, Any, Any, Any]:
    try:
        from pxr import Usd, UsdGeom, UsdVol, Vt

        UsdVol.ParticleField3DGaussianSplat  # noqa: B018  of 26.03 and newer
    except (ImportError, AttributeError) as error:
        raise MissingTool(
            f"USD is written by the Python package usd-core, 26.3 or newer, which is not here "
            f"({error}): {pip_install('usd-core>=26.3')}; gltf-splats, ply and splat need nothing "
            "more"
        ) from None
    return Usd, UsdGeom, UsdVol, Vt


def write_usd(path: str | Path, cloud: SplatCloud, kind: str, layout: Layout = DEFAULT) -> int:
    """Write splats of our world frame as one of KINDS; returns how many the file has.

    Raises ValueError for another ``layout.up`` than y and z, when no splat is left or one does not
    fit, :class:`MissingTool` without usd-core, OSError when the disk refuses; the old file
    survives.
    """
    if kind not in KINDS:
        raise ValueError(f"USD format {kind!r} is not one of {', '.join(KINDS)}")
    if layout.up not in (None, "y", "z"):
        raise ValueError(f"up={layout.up}: a USD stage has y or z up; write up=y or up=z")
    tools = _pxr()
    cloud = layout.apply(cloud, "y")
    require_scales(cloud, *LOG_SCALES, "a USD file")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"splats.{'usdc' if kind == 'usdz' else kind}"
        _stage(tools, draft, cloud, layout.up or "y")
        if kind == "usdz":
            draft = _package(draft)
        with draft.open("rb") as made:
            size = draft.stat().st_size
            write_atomically(path, lambda stream: shutil.copyfileobj(made, stream), needed=size)
    return len(cloud)


def _stage(tools: tuple[Any, Any, Any, Any], draft: Path, cloud: SplatCloud, up: str) -> None:
    usd, geom, vol, vt = tools
    stage = usd.Stage.CreateNew(str(draft))
    geom.SetStageUpAxis(stage, geom.Tokens.z if up == "z" else geom.Tokens.y)
    geom.SetStageMetersPerUnit(stage, 1.0)
    splats = vol.ParticleField3DGaussianSplat.Define(stage, f"/{PRIM}")
    stage.SetDefaultPrim(splats.GetPrim())

    def triples(values: torch.Tensor) -> Any:
        return vt.Vec3fArray.FromNumpy(np.ascontiguousarray(values.reshape(-1, 3).numpy()))

    scale = cloud.log_scale.exp()
    opacity = cloud.opacity_logit.sigmoid()
    splats.CreatePositionsAttr(triples(cloud.means))
    splats.CreateScalesAttr(triples(scale))
    xyzw = np.ascontiguousarray(cloud.quat_wxyz.numpy()[:, [1, 2, 3, 0]])  # as its memory lies
    splats.CreateOrientationsAttr(vt.QuatfArray.FromNumpy(xyzw))
    splats.CreateOpacitiesAttr(vt.FloatArray.FromNumpy(np.ascontiguousarray(opacity.numpy())))
    splats.CreateRadianceSphericalHarmonicsDegreeAttr(cloud.sh_degree)
    whole = torch.cat([cloud.sh_dc[:, None], cloud.sh_rest], dim=1)
    shs = splats.CreateRadianceSphericalHarmonicsCoefficientsAttr(triples(whole))
    # The schema does not ask for them; NVIDIA's rule VG.035 does.
    shs.SetMetadata("interpolation", geom.Tokens.vertex)
    shs.SetMetadata("elementSize", whole.shape[1])
    splats.CreateProjectionModeHintAttr("perspective")
    splats.CreateSortingModeHintAttr("zDepth")
    reach = REACH * scale.amax(-1, keepdim=True)
    ends = torch.stack([(cloud.means - reach).amin(0), (cloud.means + reach).amax(0)])
    splats.CreateExtentAttr(triples(ends))
    seen = splats.CreateDisplayColorPrimvar(geom.Tokens.vertex)
    seen.Set(triples(linear_of((0.5 + SH_DC * cloud.sh_dc).clamp(0.0, 1.0))))
    stage.GetRootLayer().Save()


def _package(draft: Path) -> Path:
    from pxr import Sdf, UsdUtils

    packed = draft.with_suffix(".usdz")
    if not UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(draft)), str(packed)):
        raise ValueError("usd-core wrote no .usdz; write a .usdc, which holds the same")
    return packed
