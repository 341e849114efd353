# SPDX-License-Identifier: Apache-2.0
"""A pretended CUDA card: the whole program on one, on a machine that has none.

    python -m tests.pretended_card sdi_gs generate "a red mug" --config mini
    python -m tests.pretended_card benchmarks/gpu_check.py --quick

Tensors on it say ``cuda:0``, hold their numbers on the CPU, and complain as torch does of mixed
devices and of a CPU's generator; every copy to it and every wait for it is counted by place
(:mod:`.tensors`). Triton's kernels are interpreted, ``torch.cuda`` answers as if there were a card
of 80 GB, nccl is gloo (:mod:`.cuda`). A function can be made
to fail in the middle of a run (:mod:`.breaks`). It must be made before Triton is imported, hence a
process of its own.

It shows what is wrong around the numbers. It shows no speed, no limit of memory and no rounding of
a card, and half precision is what the CPU makes of it.
"""

from __future__ import annotations


def make() -> None:
    """From now on this process has a card. Before sdi_gs and Triton are imported."""
    import os

    os.environ["TRITON_INTERPRET"] = "1"
    from . import cuda, kernels, tensors

    cuda.pretend()
    kernels.pretend()
    tensors.begin()
