# SPDX-License-Identifier: Apache-2.0
"""Whether nerfacc's kernels are compiled on this machine; imports nothing of nerfacc."""

from __future__ import annotations

from ..extension import Extension

PRELUDE = """\
#include <math.h>
#define lerp nerfacc_lerp
"""
"""nerfacc 0.5.3 defines ``lerp(float, float, float)``, which C++20 has in <math.h>; torch 2.13 asks
for C++20, and its headers do without none of it. nerfacc's own is named otherwise instead."""

NERFACC = Extension("nerfacc", "nerfacc_cuda", instead="cuda", prelude=PRELUDE)
