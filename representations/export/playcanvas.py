# SPDX-License-Identifier: Apache-2.0
"""Files by PlayCanvas's splat-transform, a program for Node.js: SOG, and a viewer as one page."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..cameras import spherical_to_position
from ..cloud import SplatCloud
from ..files import write_bytes
from .layout import DEFAULT, Layout, require_scales
from .packed import MissingTool
from .ply import write_ply
from .splat import LOG_SCALES

KINDS = ("sog", "html")

PACKAGE = "@playcanvas/splat-transform"
RANGE = ">=2.7 <4"
"""Versions tried: 2.7.1, which npm chooses for Node.js 20, and 3.7.0, which asks for 22."""

TIMEOUT_S = 900.0
"""npx may have to fetch some 80 MB first."""

PAGE_FOV_DEG = 40.0
PAGE_AZIMUTH_DEG, PAGE_ELEVATION_DEG = 30.0, 15.0
PAGE_BACKGROUND = (0.35, 0.35, 0.35)
"""Neither dark nor bright things are lost on it, nor the white buttons of the page."""


def found() -> bool:
    """Whether splat-transform can be started, by itself or by npx."""
    return bool(shutil.which("splat-transform") or shutil.which("npx"))


def find_tool() -> list[str]:
    """The beginning of a command line: splat-transform itself, or npx, which fetches it.

    Raises :class:`MissingTool` when neither is on the PATH.
    """
    installed = shutil.which("splat-transform")
    if installed is not None:
        return [installed]
    npx = shutil.which("npx")
    if npx is not None:
        return [npx, "--yes", "--loglevel=error", f"--package={PACKAGE}@{RANGE}", "splat-transform"]
    raise MissingTool(
        f"sog and html are written by {PACKAGE}, which needs Node.js, and neither splat-transform "
        "nor npx is on the PATH: install Node.js 20 or newer from https://nodejs.org (npx comes "
        f"with it and fetches the rest), or 'npm install -g {PACKAGE}'; the Python package "
        "gaussforge writes sog too, and ply, splat, spz and gltf-splats do without"
    )


def write_by_splat_transform(
    path: str | Path, cloud: SplatCloud, kind: str, layout: Layout = DEFAULT
) -> int:
    """Write as "sog" or "html"; returns how many splats the file has.

    The file is written whole or not at all. Raises ValueError when no splat is left or the program
    fails, :class:`MissingTool` without Node.js, OSError when the disk refuses.
    """
    if kind not in KINDS:
        raise ValueError(f"splat format {kind!r} is not one of {', '.join(KINDS)}")
    tool = find_tool()
    with tempfile.TemporaryDirectory() as folder:
        source, draft = Path(folder) / "splats.ply", Path(folder) / f"draft.{kind}"
        require_scales(layout.apply(cloud), *LOG_SCALES, f"a {kind}")
        count = write_ply(source, cloud, layout)
        # Its harmonics are clustered on the CPU: without a graphics driver it would not start.
        command = [*tool, "-q", "-w", "-g", "cpu"]
        if kind == "html":
            settings = Path(folder) / "settings.json"
            settings.write_text(json.dumps(page_settings(cloud)), encoding="utf-8")
            command += ["--viewer-settings", str(settings)]
        _run([*command, str(source), str(draft)], draft)
        raw = draft.read_bytes()
    write_bytes(path, raw)
    return count


def page_settings(cloud: SplatCloud) -> dict[str, Any]:
    """How the page begins: the whole shape, seen from a little left of its front.

    The default of the program suits rooms; an object of ours would be small and seen from behind.
    """
    solid = cloud.finite() & (cloud.opacity_logit > 0.0)
    means = cloud.means[solid if bool(solid.any()) else cloud.finite()].detach().cpu().double()
    center = 0.5 * (means.amin(0) + means.amax(0))
    radius = max(float((means - center).norm(dim=-1).max()), 1e-3)
    distance = 1.1 * radius / math.sin(math.radians(PAGE_FOV_DEG / 2))
    angles = torch.tensor([[PAGE_AZIMUTH_DEG], [PAGE_ELEVATION_DEG], [distance]]).double()
    position = center + spherical_to_position(*angles)[0]

    def in_page(point: torch.Tensor) -> list[float]:
        x, y, z = point.tolist()
        return [-x, z, y]  # the page turns the frame of a file by half a turn about z

    return {
        "version": 2,
        "tonemapping": "linear",
        "highPrecisionRendering": False,
        "background": {"color": list(PAGE_BACKGROUND)},
        "postEffectSettings": {
            "sharpness": {"enabled": False, "amount": 0},
            "bloom": {"enabled": False, "intensity": 0.1, "blurLevel": 2},
            "grading": {
                "enabled": False, "brightness": 1, "contrast": 1, "saturation": 1,
                "tint": [1, 1, 1],
            },
            "vignette": {
                "enabled": False, "intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1,
            },
            "fringing": {"enabled": False, "intensity": 0.5},
        },
        "animTracks": [],
        "cameras": [
            {
                "initial": {
                    "position": in_page(position), "target": in_page(center), "fov": PAGE_FOV_DEG,
                }
            }
        ],
        "annotations": [],
        "startMode": "default",
    }  # fmt: skip


def _run(command: list[str], draft: Path) -> None:
    """Run it; ValueError unless it leaves a file."""
    quiet = {**os.environ, "npm_config_update_notifier": "false"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=quiet,
            timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"splat-transform was not done after {TIMEOUT_S / 60:.0f} minutes; if npx could not "
            f"fetch it, install it first: npm install -g {PACKAGE}"
        ) from None
    # It ends with 0 after some failures too, so the file is what counts.
    if done.returncode == 0 and draft.is_file() and draft.stat().st_size > 0:
        return
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
    hint = "see whether 'splat-transform --version' works"
    if "--yes" in command:  # by npx
        hint = (
            "npx fetches it from the npm registry on first use: look at the network, or install "
            f"it once with 'npm install -g {PACKAGE}'"
        )
    raise ValueError(
        f"splat-transform wrote no file (exit code {done.returncode}): {said or 'no message'}; "
        f"{hint}"
    )
