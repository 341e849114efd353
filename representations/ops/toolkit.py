# SPDX-License-Identifier: Apache-2.0
"""The CUDA toolkit that extensions of torch are compiled with: where it is, and what is missing.

Looks only. Every place is asked of torch's own functions, so that what is said here is what a build
would find; one place more is looked at, the packages that pip installs nvcc in.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from ..checks import pip_install

ARCHIVE = "https://developer.nvidia.com/cuda-toolkit-archive"

PARTS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl")
"""Packages of pip that hold what a compilation needs and torch does not bring: the compiler, its
headers, its code generator, and thrust and cub."""


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


def cpp_extension() -> ModuleType:
    """torch's own functions for compiling; it warns where they are imported."""
    with _quiet():
        from torch.utils import cpp_extension as found
    return found


def toolkit() -> Path | None:
    """nvcc of the CUDA toolkit that torch would compile with; where it finds none, nvcc of pip."""
    with _quiet():
        home = cpp_extension()._find_cuda_home()
    nvcc = Path(home) / "bin" / "nvcc" if home else None
    if nvcc is not None and nvcc.is_file():
        return nvcc
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return None if named else of_pip()


def of_pip() -> Path | None:
    """nvcc where pip puts it: ``nvidia/cu13/bin`` beside the libraries that torch brings."""
    wanted, spec = torch.version.cuda, find_spec("nvidia")
    if wanted is None or spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        nvcc = Path(folder) / f"cu{wanted.split('.')[0]}" / "bin" / "nvcc"
        if nvcc.is_file():
            return nvcc
    return None


def pip_command() -> str | None:
    """How pip installs the toolkit, without root; None where it has none for this torch."""
    wanted = torch.version.cuda
    if wanted is None or int(wanted.split(".")[0]) < 13:
        return None
    first, *rest = (f"{part}=={wanted}.*" for part in PARTS)
    return " ".join([pip_install(first), *(shlex.quote(part) for part in rest)])


def version(nvcc: Path) -> str | None:
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
    """What keeps an extension of torch from being compiled here, and the command that mends it;
    None if nothing does."""
    wanted = torch.version.cuda
    if wanted is None:
        return "this torch is a CPU build: make clean, then make setup TORCH=cuda"
    by_pip = pip_command()
    install = (f"without root: {by_pip}; or " if by_pip else "") + (
        f"install version {wanted} from {ARCHIVE} (Ubuntu, with NVIDIA's packages: "
        f"sudo apt install cuda-toolkit-{wanted.replace('.', '-')}; "
        f"conda: conda install -c nvidia cuda-toolkit={wanted})"
    )
    nvcc = toolkit()
    if nvcc is None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        where = f"CUDA_HOME={home} has no bin/nvcc" if home else "no nvcc is found"
        return f"the CUDA toolkit is missing, {where}: {install}"
    found = version(nvcc)
    if found is not None and found.split(".")[0] != wanted.split(".")[0]:
        other = _other(wanted)
        mend = f"export CUDA_HOME={other}" if other else install
        return f"{nvcc} is of CUDA {found}, and this torch is built for CUDA {wanted}: {mend}"
    missing = _part_missing(nvcc)
    if missing is not None:
        return f"{nvcc} is here without {missing}: {by_pip}"
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


def _other(wanted: str) -> Path | None:
    """A toolkit of the right major version where pip or NVIDIA's installer puts it."""
    mine, major, usual = of_pip(), wanted.split(".")[0], Path("/usr/local")
    found = [usual / f"cuda-{wanted}", usual / f"cuda-{major}", *usual.glob(f"cuda-{major}.*")]
    found += [mine.parents[1]] if mine else []
    return next((path for path in found if (path / "bin" / "nvcc").is_file()), None)


def _part_missing(nvcc: Path) -> str | None:
    """What nvcc of pip lacks, as it comes in parts."""
    if nvcc != of_pip():
        return None
    home = nvcc.parents[1]
    parts = {
        "the headers of nvidia-cuda-crt": home / "include" / "crt" / "host_config.h",
        "cicc of nvidia-nvvm": home / "nvvm" / "bin" / "cicc",
        "the headers of nvidia-cuda-cccl": home / "include" / "cccl",
    }
    return next((name for name, path in parts.items() if not path.exists()), None)


def environment(nvcc: Path, folder: Path) -> dict[str, str]:
    """What a process that compiles with ``nvcc`` needs in its environment.

    The linker asks for ``libcudart.so``, and pip brings ``libcudart.so.13`` alone: a link of the
    right name is made in ``folder``, where the linker is told to look; the packages stay as they
    are.
    """
    path = os.pathsep.join([str(nvcc.parent), search_path()])
    found = {**os.environ, "PATH": path, "CUDA_HOME": str(nvcc.parents[1])}
    library = next((nvcc.parents[1] / "lib").glob("libcudart.so.*"), None)
    if nvcc == of_pip() and library is not None:
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "libcudart.so"
        link.unlink(missing_ok=True)
        link.symlink_to(library)
        found["LIBRARY_PATH"] = os.pathsep.join(
            filter(None, [str(folder), os.environ.get("LIBRARY_PATH", "")])
        )
    return found
