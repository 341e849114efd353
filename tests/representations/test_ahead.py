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


def test_what_was_never_compiled_is_known(tmp_path: Path) -> None:
    """Before and after, in one cache that starts empty; a later process knows as well."""
    code = (
        "import torch\n"
        "from representations.ops import cpu_jit\n"
        "from representations.ops.fields import field_ops, hash_kernels\n"
        "field_ops('cpu')\n"
        "here = 'representations.ops.fields'\n"
        "print(cpu_jit.waiting(here), cpu_jit.waiting('representations.ops.splats'))\n"
        "for kernel in cpu_jit._KERNELS:\n"
        "    kernel.stats.cache_path and open(f'{kernel.stats.cache_path}/'\n"
        "        f'{kernel.__module__.rpartition(chr(46))[2]}.{kernel.__name__}-1.py.nbi', 'a')\n"
        "print(cpu_jit.waiting(here))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=environment, timeout=300,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert said == [["True", "False", "False"], ["False", "False", "False"]]
