# SPDX-License-Identifier: Apache-2.0
"""Compile the kernels for this processor before a run needs them.

    python -m representations.ops.ahead

Each is called once on a small scene of the trials, which also says whether it is right here. What
is compiled lies beside the kernels where that folder is writable, else in numba's own cache.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from . import MissingBackend
from .self_test import (
    Difference,
    encoding,
    marching,
    require_sound,
    slopes,
    splatting,
)

CPU = torch.device("cpu")


def trials() -> dict[str, Callable[[], Difference]]:
    """The kernels of the CPU back-end, each on a scene of its own."""
    from .fields import hash_cpu, ray_cpu
    from .splats import cpu

    return {
        "splats": lambda: splatting(cpu.splat, CPU),
        "hash grid": lambda: encoding(hash_cpu.encode, CPU),
        "its slopes": lambda: slopes(hash_cpu.encode_jacobian, CPU),
        "rays": lambda: marching(ray_cpu.march, ray_cpu.composite, CPU),
    }


def compile_kernels(say: Callable[[str], None]) -> None:
    """Compile what is not compiled yet. Raises MissingBackend where a kernel is not sound."""
    for name, trial in trials().items():
        began = time.perf_counter()
        require_sound(name, trial)
        say(f"kernels of {name}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    try:
        compile_kernels(print)
    except MissingBackend as error:
        sys.exit(str(error))
