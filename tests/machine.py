# SPDX-License-Identifier: Apache-2.0
"""A pretended machine: a card, torch for CUDA 13.0, and those programs that a test installs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from representations.ops import toolkit
from representations.ops.extension import Extension

Program = Callable[..., Path]


def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A machine with a card, torch for CUDA 13.0, gsplat and nothing else; and how to give it a
    program that says something."""
    package = tmp_path / "site" / "gsplat"
    package.mkdir(parents=True)
    (package / "version.py").touch()
    os.utime(package / "version.py", (0, 0))
    monkeypatch.setattr(Extension, "folder", lambda self: package)
    monkeypatch.setattr(toolkit, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpp_extension, "_find_cuda_home", lambda: os.environ.get("CUDA_HOME"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX", "LIBRARY_PATH", "MAX_JOBS",
                 "TORCH_CUDA_ARCH_LIST"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)

    def install(name: str, says: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return path

    return install


def with_toolkit(program: Program, monkeypatch: pytest.MonkeyPatch, release: str = "13.0") -> Path:
    nvcc = program("toolkit/bin/nvcc", f"Cuda compilation tools, release {release}, V{release}.1")
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parents[1]))
    return nvcc


def ready(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with_toolkit(program, monkeypatch)
    program("bin/c++")
    program("env/bin/ninja")
