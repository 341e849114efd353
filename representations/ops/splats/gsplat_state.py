# SPDX-License-Identifier: Apache-2.0
"""Whether gsplat's kernels are compiled on this machine, and if not, whether they can be.

Looks only, and imports nothing of gsplat, which starts to build where its back-end is imported.
Every place is asked of torch's own functions, so that what is said here is what a build would find.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch

from ...checks import pip_install

EXTENSION = "gsplat_cuda"
"""The name that gsplat builds its kernels under."""

ARCHIVE = "https://developer.nvidia.com/cuda-toolkit-archive"


def package() -> Path | None:
    """The folder of gsplat, None where it is not installed."""
    spec = find_spec("gsplat")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def build_folder() -> Path:
    """Where torch keeps what gsplat builds; torch makes it where it is not there."""
    from torch.utils import cpp_extension

    return Path(cpp_extension._get_build_directory(EXTENSION, verbose=False))


def compiled() -> Path | None:
    """The library of gsplat's kernels: of a wheel that brings them, or built here and no older than
    this torch and this gsplat; else None."""
    folder = package()
    if folder is None:
        return None
    for suffix in EXTENSION_SUFFIXES:
        if (folder / f"csrc{suffix}").is_file():
            return folder / f"csrc{suffix}"
    try:
        built = build_folder() / f"{EXTENSION}.so"
        made = built.stat().st_mtime
        installed = [folder / "version.py", Path(torch.__file__).parent / "version.py"]
        return built if all(path.stat().st_mtime <= made for path in installed) else None
    except OSError:  # not there, or no folder that may be written to
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that a toolkit is here but no card."""
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def toolkit() -> Path | None:
    """nvcc of the CUDA toolkit that torch would compile with."""
    from torch.utils import cpp_extension

    with _quiet():
        home = cpp_extension._find_cuda_home()
    nvcc = Path(home) / "bin" / "nvcc" if home else None
    return nvcc if nvcc is not None and nvcc.is_file() else None


def toolkit_version(nvcc: Path) -> str | None:
    """What nvcc says of itself, such as "13.0"."""
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", said.stdout)
    return found.group(1) if found else None


def search_path() -> str:
    """PATH, and behind it the folder of this Python's programs: ninja is installed there, and an
    environment need not be activated to be used."""
    return os.pathsep.join(
        filter(None, [os.environ.get("PATH", ""), str(Path(sys.prefix) / "bin"),
                      str(Path(sys.executable).parent)])
    )  # fmt: skip


def obstacle() -> str | None:
    """What keeps gsplat from being compiled here, and the command that mends it; None if nothing
    does."""
    wanted = torch.version.cuda
    if package() is None:
        return f"gsplat is not installed: {pip_install('gsplat')}"
    if wanted is None:
        return "this torch is a CPU build: make clean, then make setup TORCH=cuda"
    install = (
        f"install version {wanted} from {ARCHIVE} (Ubuntu, with NVIDIA's packages: "
        f"sudo apt install cuda-toolkit-{wanted.replace('.', '-')}; "
        f"conda: conda install -c nvidia cuda-toolkit={wanted})"
    )
    nvcc = toolkit()
    if nvcc is None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        where = f"CUDA_HOME={home} has no bin/nvcc" if home else "no nvcc is found"
        return f"the CUDA toolkit is missing, {where}: {install}"
    version = toolkit_version(nvcc)
    if version is not None and version.split(".")[0] != wanted.split(".")[0]:
        other = _other_toolkit(wanted)
        mend = f"export CUDA_HOME={other}" if other else install
        return f"{nvcc} is of CUDA {version}, and this torch is built for CUDA {wanted}: {mend}"
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}): sudo apt install g++"
    if shutil.which("ninja", path=search_path()) is None:
        return f"ninja is missing: {pip_install('ninja')}"
    if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return (
            "no card is seen, so say for which to compile: export TORCH_CUDA_ARCH_LIST=9.0 (the "
            "compute capability; 8.9 for a GeForce RTX 40, 12.0 for an RTX 50)"
        )
    return None


def _other_toolkit(wanted: str) -> Path | None:
    """A toolkit of the right major version in the usual place."""
    major = wanted.split(".")[0]
    usual = Path("/usr/local")
    found = [usual / f"cuda-{wanted}", usual / f"cuda-{major}", *usual.glob(f"cuda-{major}.*")]
    return next((path for path in found if (path / "bin" / "nvcc").is_file()), None)


def offer() -> str:
    """One line: how to get gsplat, and what for."""
    why = obstacle()
    how = "'sdi-gs doctor --build' compiles them, once, in minutes" if why is None else why
    return f"gsplat's CUDA kernels, tuned by hand over years, may be faster; {how}"
