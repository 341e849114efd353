# SPDX-License-Identifier: Apache-2.0
"""Whether gsplat's kernels are compiled on this machine, and if not, whether they can be.

Looks only, and imports nothing of gsplat, which starts to build where its back-end is imported.
"""

from __future__ import annotations

from pathlib import Path

from ..extension import Extension

GSPLAT = Extension("gsplat", "gsplat_cuda", instead="triton")


def compiled() -> Path | None:
    """The library of gsplat's kernels; None where it is still to be compiled."""
    return GSPLAT.compiled()


def obstacle() -> str | None:
    """What keeps gsplat from being compiled here, and the command that mends it; None if nothing
    does."""
    return GSPLAT.obstacle()


def offer() -> str:
    """One line: how to get gsplat, and what for."""
    why = obstacle()
    how = "'sdi-gs doctor --build' compiles them, once, in minutes" if why is None else why
    return f"gsplat's CUDA kernels, tuned by hand over years, may be faster; {how}"
