# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels are compiled for real cards, which needs no card. What they compute is tested
beside the other back-ends, interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from representations.ops import triton_launch

ROOT = Path(__file__).parents[2]

COMPILE = """
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from representations.ops.fields import triton_kernels as kernels

WHOLE = {"shapes", "offsets", "counts", "ray"}
REAL = {"radius", "scale", "step"}


def kind(name):
    if name.isupper():
        return "constexpr"
    if name.endswith("_ptr"):
        what = name.removesuffix("_ptr")
        return "*u8" if what == "occupied" else "*i64" if what in WHOLE else "*fp32"
    return "fp32" if name in REAL else "i32"


def compiled(kernel, capability, **constants):
    names = kernel.arg_names
    signature = {name: kind(name) for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    options = {"enable_fp_fusion": kernel is not kernels.march}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return made.asm


for capability, features, jacobian in (
    (80, 2, False), (80, 2, True), (90, 1, True), (90, 2, False), (90, 2, True), (90, 8, True),
):
    chosen = {"FEATURES": features, "JACOBIAN": jacobian, "BLOCK": 256}
    for kernel in (kernels.hash_forward, kernels.hash_backward):
        asm = compiled(kernel, capability, **chosen)
        assert len(asm["cubin"]) > 1000
        added = "red.global" in asm["ptx"] or "atom.global" in asm["ptx"]
        assert added == (kernel is kernels.hash_backward)
for capability in (80, 90):
    for write in (False, True):
        ptx = compiled(kernels.march, capability, WRITE=write, BLOCK=128)["ptx"]
        assert "fma.rn.f32" not in ptx, "a product and a sum were fused: cells would differ"
        assert "mul.f32" in ptx or "mul.rn.f32" in ptx
    for backward in (False, True):
        assert compiled(kernels.ray_scan, capability, BACKWARD=backward, BLOCK=128)["cubin"]
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(not triton_launch.available(), reason="needs Triton")
def test_every_kernel_compiles_for_the_cards_of_today(tmp_path: Path) -> None:
    """To machine code of compute capability 8.0 and 9.0; the march without fused multiply-adds."""
    environment = {
        **os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiled" in done.stdout


def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton starts its kernels by a stub in C."""
    try:
        for compilers in ({"cc", "gcc", "clang"}, set()):
            triton_launch.available.cache_clear()
            monkeypatch.setattr("shutil.which", lambda name, have=compilers: name in have or None)
            monkeypatch.delenv("CC", raising=False)
            monkeypatch.setattr(triton_launch, "find_spec", lambda name: object())
            assert triton_launch.available() == bool(compilers)
    finally:
        triton_launch.available.cache_clear()
