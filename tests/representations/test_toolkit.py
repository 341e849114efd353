# SPDX-License-Identifier: Apache-2.0
"""The CUDA toolkit of pip: found without root, with what it lacks made up for outside of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

from representations.ops import toolkit
from representations.ops.extension import Extension
from representations.ops.fields.nerfacc_state import NERFACC
from representations.ops.splats.gsplat_state import GSPLAT

from ..machine import Program, ready, with_toolkit

PIP = "site/nvidia/cu13"


def from_pip(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """nvcc as pip installs it, with all its parts."""
    nvcc = program(f"{PIP}/bin/nvcc", "Cuda compilation tools, release 13.0, V13.0.88")
    for part in ("include/crt/host_config.h", "include/cccl/cub.h", "lib/libcudart.so.13"):
        path = tmp_path / PIP / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    program(f"{PIP}/nvvm/bin/cicc")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "site" / "nvidia")])
    monkeypatch.setattr(toolkit, "find_spec", lambda name: spec if name == "nvidia" else None)
    return nvcc


def test_it_is_taken_where_torch_finds_no_other(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = from_pip(program, monkeypatch, tmp_path)
    program("bin/c++")
    program("env/bin/ninja")
    assert toolkit.toolkit() == nvcc
    assert GSPLAT.obstacle() is None
    # An empty folder where NVIDIA's installer puts a toolkit counts as none.
    monkeypatch.setattr(cpp_extension, "_find_cuda_home", lambda: str(tmp_path / "empty"))
    assert toolkit.toolkit() == nvcc
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))  # but a name is a name
    assert f"CUDA_HOME={tmp_path / 'empty'} has no bin/nvcc" in (toolkit.obstacle() or "")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(torch.version, "cuda", "14.0")
    assert toolkit.toolkit() is None


def test_one_of_the_wrong_version_is_told_the_one_of_pip(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = from_pip(program, monkeypatch, tmp_path)
    monkeypatch.setattr(toolkit.Path, "glob", lambda self, pattern: [])
    monkeypatch.setattr(torch.version, "cuda", "13.99")  # no machine has it in /usr/local
    with_toolkit(program, monkeypatch, "12.4")
    why = toolkit.obstacle() or ""
    home = nvcc.parents[1]
    assert why.endswith((f"export CUDA_HOME={home}", "export CUDA_HOME=/usr/local/cuda-13"))


@pytest.mark.parametrize(
    ("part", "package"),
    [
        ("include/crt", "the headers of nvidia-cuda-crt"),
        ("nvvm", "cicc of nvidia-nvvm"),
        ("include/cccl", "the headers of nvidia-cuda-cccl"),
    ],
)
def test_a_part_that_is_missing_is_named_with_the_command(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str, package: str
) -> None:
    from_pip(program, monkeypatch, tmp_path)
    shutil.rmtree(tmp_path / PIP / part)
    why = toolkit.obstacle() or ""
    assert f"nvcc is here without {package}: " in why
    assert why.endswith(
        "-m pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' "
        "'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*'"
    )


def test_the_page_about_cards_tells_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the CUDA of the torch that the Makefile installs."""
    root = Path(__file__).parents[2]
    assert "TORCH_VERSION := 2.13.0\n" in (root / "Makefile").read_text(encoding="utf-8")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    told = (toolkit.pip_command() or "").partition(" -m pip ")[2]
    assert told.startswith("install ")
    page = (root / "docs" / "card.md").read_text(encoding="utf-8")
    assert f".venv/bin/python -m pip {told}\n" in page


def test_pip_is_named_only_where_it_has_the_toolkit(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "without root: " in (toolkit.obstacle() or "")
    monkeypatch.setattr(torch.version, "cuda", "12.6")  # its packages of pip hold no nvcc
    why = toolkit.obstacle() or ""
    assert "without root" not in why
    assert "cuda-toolkit-12-6" in why
    monkeypatch.setattr(torch.version, "cuda", None)
    assert toolkit.pip_command() is None


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_linker_finds_the_runtime_that_pip_brings(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pip brings ``libcudart.so.13``, the linker is told ``-lcudart``. The packages stay as they
    are, and what the user told the linker stays too."""
    real = shutil.which("c++", path="/usr/local/bin:/usr/bin:/bin") or "c++"
    nvcc = from_pip(program, monkeypatch, tmp_path)
    home, links = tmp_path / PIP, tmp_path / "cache" / "links"
    source = tmp_path / "a.cpp"
    source.write_text("int a() { return 1; }\n")
    link = [real, "-shared", "-fPIC", str(source), "-o"]
    path = "/usr/local/bin:/usr/bin:/bin"  # of the assembler and the linker
    subprocess.run([*link, str(home / "lib" / "libcudart.so.13")], check=True, env={"PATH": path})
    before = sorted(home.rglob("*"))
    monkeypatch.setenv("LIBRARY_PATH", "/of/the/user")
    command = [*link, str(tmp_path / "b.so"), f"-L{home / 'lib'}", "-lcudart"]
    alone = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert alone.returncode != 0
    assert "-lcudart" in alone.stderr
    for _ in range(2):  # the link may be there from before
        found = toolkit.environment(nvcc, links)
        subprocess.run(command, env={**found, "PATH": path}, check=True)
    assert found["CUDA_HOME"] == str(home)
    assert found["LIBRARY_PATH"] == f"{links}:/of/the/user"
    assert sorted(home.rglob("*")) == before
    other = with_toolkit(program, monkeypatch)  # it brings its own link
    assert toolkit.environment(other, links)["LIBRARY_PATH"] == "/of/the/user"


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("standard", [17, 20])
def test_what_is_read_before_nerfacc_lets_it_name_its_lerp(tmp_path: Path, standard: int) -> None:
    """C++20 has one in the global namespace, which is where nerfacc puts its own."""
    prelude, source = tmp_path / "prelude.h", tmp_path / "a.cpp"
    prelude.write_text(NERFACC.prelude)
    source.write_text(
        "#include <cmath>\n#include <math.h>\n"
        "inline float lerp(float a, float b, float t) { return a + t * (b - a); }\n"
        "float middle(float a, float b) { return lerp(a, b, 0.5f); }\n"
    )
    command = ["c++", f"-std=c++{standard}", "-c", str(source), "-o", str(tmp_path / "a.o")]
    subprocess.run([*command, "-include", str(prelude)], check=True)
    bare = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (bare.returncode != 0) == (standard == 20)
    assert standard == 17 or "lerp" in bare.stderr


def test_nvcc_is_told_to_read_it_and_what_the_user_told_it_stays(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready(program, monkeypatch)
    program("elsewhere/python", "[1/6] nvcc a.cu")
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo")
    seen: list[str] = []
    real = subprocess.Popen

    def start(*how: object, env: dict[str, str], **more: object) -> object:
        seen.append(env.get("NVCC_APPEND_FLAGS", ""))
        return real(*how, env=env, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start)
    cache, said = tmp_path / "cache", []
    for extension in (NERFACC, GSPLAT):
        extension._compile(extension.build_folder(), said.append)
    header = cache / "nerfacc_cuda.help" / "prelude.h"
    assert seen == [f"-lineinfo -include {header}", "-lineinfo"]
    assert header.read_text() == NERFACC.prelude
    assert "nerfacc: 1 of 6 compiled" in said
    assert Extension("a", "b", "c").prelude == ""
