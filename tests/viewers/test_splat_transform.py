# SPDX-License-Identifier: Apache-2.0
"""PlayCanvas's splat-transform reads our files: what SuperSplat loads with. It counts, it tells
statistics of activated values, and it draws without a graphics card by Chromium's SwiftShader."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.axes import rotate_to_file
from representations.cloud import SplatCloud
from representations.ops.constants import SH_DC

from . import scenes
from .conftest import BIN, LIMIT_S
from .scenes import FOV_Y_DEG, SIZE, Scene

KINDS = ("ply", "ply-compressed", "splat", "spz", "spz 4", "sog", "ksplat")
OPTIONS = {"spz 4": ("spz", "--spz-version", "4")}
BANDS = {"splat": 0}  # of harmonics, where the format holds fewer than the splats have

# How far a statistic may be from ours. PLY holds float32 and six digits are printed; the others
# hold steps: compressed PLY 10 bits of a range of some units and of some logs, .splat and .ksplat
# float32, SPZ 1/4096 and 1/16 of a log, SOG 16 bits and 256 values; colours and opacities have 8
# bits.
POSITION = {"ply": 6e-6, "ply-compressed": 4e-3, "splat": 6e-6, "spz": 2e-4, "spz 4": 2e-4,
            "sog": 2e-4, "ksplat": 6e-6}  # fmt: skip
SCALE_LOG = {"ply": 1e-5, "ply-compressed": 8e-3, "splat": 1e-5, "spz": 0.04, "spz 4": 0.04,
             "sog": 0.02, "ksplat": 1e-5}  # fmt: skip
BYTE = {"ply": 6e-6, "ply-compressed": 0.01, "splat": 0.005, "spz": 0.007, "spz 4": 0.007,
        "sog": 0.01, "ksplat": 0.005}  # fmt: skip


def ask(node: str, path: Path, what: str) -> dict[str, Any]:
    done = subprocess.run(
        [node, str(BIN / "splat-transform"), "-q", str(path), what, "json", "null"],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", ["thin", "mug"])
def test_the_file_says_how_many(
    node: str, export: Callable[..., Path], all_scenes: dict[str, Scene], scene: str, kind: str
) -> None:
    cloud = all_scenes[scene].cloud
    info = ask(node, export(scene, *OPTIONS.get(kind, (kind,))), "--info")
    assert info["gaussian"] is True
    assert info["numGaussians"] == len(drawable(cloud))
    assert info["shBands"] == BANDS.get(kind, cloud.sh_degree)


def drawable(cloud: SplatCloud) -> SplatCloud:
    return cloud.map(lambda tensor: tensor[cloud.opacity_logit.sigmoid() >= 1.0 / 255.0])


def activated(cloud: SplatCloud) -> dict[str, dict[str, float]]:
    """Column -> statistic -> value, by formulas of our own. It activates the statistics of what a
    file holds, not the other way round: the mean of a scale is the geometric one."""
    held = rotate_to_file(drawable(cloud))
    quat = held.quat_wxyz / held.quat_wxyz.norm(dim=-1, keepdim=True)

    def plain(x: float) -> float:
        return x

    columns: dict[str, tuple[torch.Tensor, Callable[[float], float]]] = {}
    for i in range(3):
        columns["xyz"[i]] = (held.means[:, i], plain)
        columns[f"scale_{i}"] = (held.log_scale[:, i], math.exp)
        columns[f"f_dc_{i}"] = (held.sh_dc[:, i], lambda x: 0.5 + SH_DC * x)
    columns["opacity"] = (held.opacity_logit, lambda x: 1.0 / (1.0 + math.exp(-x)))
    columns |= {f"rot_{i}": (quat[:, i], plain) for i in range(4)}
    return {
        name: {
            "min": activate(float(column.min())),
            "max": activate(float(column.max())),
            "mean": activate(float(column.double().mean())),
        }
        for name, (column, activate) in columns.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", ["thin", "mug"])
def test_statistics_of_activated_values_are_ours(
    node: str, export: Callable[..., Path], all_scenes: dict[str, Scene], scene: str, kind: str
) -> None:
    (told,) = ask(node, export(scene, *OPTIONS.get(kind, (kind,))), "--stats")["stats"]
    table = {
        name: {what: told["data"][what][i] for what in told["data"]}
        for i, name in enumerate(told["columns"])
    }
    assert all(row["nanCount"] == row["infCount"] == 0 for row in table.values())
    for name, statistics in activated(all_scenes[scene].cloud).items():
        if name.startswith("rot_") and kind != "ply":
            continue  # the other formats may store -q, which is the same rotation
        for what, ours in statistics.items():
            if kind != "ply" and name == "opacity" and what == "mean":
                continue  # a logit of 8 bits has no mean: opaque ones are infinite
            theirs = table[name][what]
            if name in "xyz":
                near = abs(theirs - ours) <= POSITION[kind]
            elif name.startswith("scale_"):
                near = abs(math.log(theirs / ours)) <= SCALE_LOG[kind]
            else:
                # a colour of these cannot be below 0 or above 1
                byte = kind in ("splat", "ksplat") and name.startswith("f_dc_")
                near = abs(theirs - (min(max(ours, 0.0), 1.0) if byte else ours)) <= BYTE[kind]
            assert near, f"{name}: {what} is {theirs} there and {ours} here"


def swiftshader(chromium: str) -> dict[str, str]:
    """The environment that offers Chromium's Vulkan driver, or a skip."""
    homes = (Path(chromium).resolve().parent, Path("/usr/lib/chromium"), Path("/opt/google/chrome"))
    for home in homes:
        driver = home / "vk_swiftshader_icd.json"
        if driver.is_file():
            return {**os.environ, "LD_LIBRARY_PATH": str(home), "VK_ICD_FILENAMES": str(driver)}
    pytest.skip("this Chromium brings no SwiftShader driver for Vulkan")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", ["thin", "mug"])
def test_it_draws_what_we_draw_and_upright(
    node: str,
    chromium: str,
    export: Callable[..., Path],
    all_scenes: dict[str, Scene],
    pictures: Path,
    scene: str,
    kind: str,
) -> None:
    """Its camera stands in the world of the viewer, where +y is up: the file's default frame is
    the one that stands upright in SuperSplat."""
    x, y, z = all_scenes[scene].position
    name = f"splat-transform-{scene}-{kind}"
    path = export(scene, *OPTIONS.get(kind, (kind,)))
    picture = pictures / f"{name}.webp"
    done = subprocess.run(
        [
            node, str(BIN / "splat-transform"), "-q", "-w", str(path), str(picture),
            f"--camera-pos={-x},{z},{y}", "--camera-target=0,0,0", "--camera-up=0,1,0",
            f"--camera-fov={FOV_Y_DEG}", f"--resolution={SIZE}x{SIZE}", "--background=0,0,0",
        ],
        capture_output=True, text=True, timeout=LIMIT_S, check=False, env=swiftshader(chromium),
    )  # fmt: skip
    assert picture.exists(), done.stderr
    theirs = scenes.load(picture)
    db = scenes.psnr(all_scenes[scene].picture(BANDS.get(kind)), theirs)
    print(f"\n{name}: {db:.1f} dB")
    assert db >= 30.0
