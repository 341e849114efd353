# SPDX-License-Identifier: Apache-2.0
"""What is compiled ahead is all that a run needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A process of its own: only there nobody else has called a kernel yet. What a run calls must be a
# signature that was known before it.
CODE = """
import sys, torch
from numba.core.dispatcher import Dispatcher
from representations.ops import ahead
ahead.compile_kernels(print)
def signatures():
    return {
        (kernel.__module__, kernel.__name__, str(signature))
        for name, module in sys.modules.items() if name.startswith("representations.ops")
        for kernel in vars(module).values() if isinstance(kernel, Dispatcher)
        for signature in kernel.signatures
    }
before = signatures()
assert len(before) >= 12, before
from representations.cameras import turntable
from sdi_gs.build import renderer
from sdi_gs.config import load
for preset in ("mini", "mini_nerf"):
    shape = renderer(load(preset, ["prompt=a mug", "device=cpu"]), torch.device("cpu"))
    render, trace = shape.render(turntable(2, 15.0, 3.0, 30.0, (16, 16)), torch.ones(2, 3))
    (render.rgb.sum() + render.depth.sum() + render.alpha.sum()).backward()
    print("afterwards:", sorted(signatures() - before))
"""


def test_a_run_compiles_nothing_that_was_not_compiled_ahead() -> None:
    out = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    said = out.stdout.splitlines()
    assert [line.split(":")[0] for line in said[:4]] == [
        "kernels of splats", "kernels of hash grid", "kernels of its slopes", "kernels of rays",
    ]  # fmt: skip
    assert said[4:] == ["afterwards: []"] * 2
