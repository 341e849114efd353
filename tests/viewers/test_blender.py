# SPDX-License-Identifier: Apache-2.0
"""The textured .glb in Blender, where that is installed: upright, as tall as asked, painted."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import LIMIT_S

# Debian's Blender 3.4 asks for a name that its numpy no longer has.
SCRIPT = """
import json, sys
import numpy
numpy.bool = bool
import bpy
from mathutils import Vector
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[-1])
(mesh,) = [o for o in bpy.data.objects if o.type == "MESH"]
corners = [mesh.matrix_world @ Vector(c) for c in mesh.bound_box]
nodes = [n for m in mesh.data.materials for n in m.node_tree.nodes]
pixels = [n.image for n in nodes if n.type == "TEX_IMAGE"]
surface = next(n for n in nodes if n.type == "BSDF_PRINCIPLED")
print("FOUND " + json.dumps({
    "name": mesh.name,
    "z": [min(c.z for c in corners), max(c.z for c in corners)],
    "faces": len(mesh.data.polygons),
    "images": [list(p.size) for p in pixels],
    "red": [sum(list(p.pixels)[k::4]) / (len(p.pixels) / 4) for p in pixels for k in range(3)],
    "linked": surface.inputs["Base Color"].is_linked,
    "metallic": surface.inputs["Metallic"].default_value,
    "layers": len(mesh.data.uv_layers),
}))
"""


def test_blender_has_the_mug_upright_with_its_texture(
    export: Callable[..., Path], tmp_path: Path
) -> None:
    program = shutil.which("blender")
    if program is None:
        pytest.skip("Blender is not installed")
    path = export("mug", "glb", "--resolution", "48", "--texture", "256", "--height", "0.1",
                  "--pivot", "ground")  # fmt: skip
    script = tmp_path / "look.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [program, "-b", "--factory-startup", "-P", str(script), "--", str(path)],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert told, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(told[0].removeprefix("FOUND "))
    print("\n", found)
    assert found["z"] == [pytest.approx(0.0, abs=1e-5), pytest.approx(0.1, abs=1e-5)]
    assert (found["images"], found["linked"], found["layers"]) == ([[256, 256]], True, 1)
    assert found["metallic"] == 0.0
    assert found["faces"] > 100
    red, green, blue = found["red"]
    assert red > 1.3 * max(green, blue)
