# SPDX-License-Identifier: Apache-2.0
"""gsplat where it is asked for: what is missing is said with what mends it, it is built once and in
sight, and it draws what the reference draws. Cards, toolkits and compilers are pretended."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

from representations.ops import (
    MissingBackend,
    card,
    extension,
    self_test,
    splats,
    toolkit,
    triton_launch,
)
from representations.ops.extension import Extension
from representations.ops.fields import field_ops
from representations.ops.splats import (
    Splats,
    gsplat_splats,
    gsplat_state,
    reference,
    splat_ops,
)
from representations.ops.splats.gsplat_state import GSPLAT

from ..machine import Program, ready, with_toolkit
from .gsplat_twin import rasterization
from .helpers import cameras_around, random_splats


def test_each_thing_that_is_missing_is_named_with_what_mends_it(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def why() -> str:
        return gsplat_state.obstacle() or ""

    monkeypatch.setattr(toolkit, "_other", lambda wanted: None)
    assert "no nvcc is found" in why()
    assert "-m pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' " in why()
    assert "sudo apt install cuda-toolkit-13-0" in why()
    assert "conda install -c nvidia cuda-toolkit=13.0" in why()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert f"CUDA_HOME={tmp_path / 'nowhere'} has no bin/nvcc" in why()
    nvcc = with_toolkit(program, monkeypatch, "11.8")
    assert f"{nvcc} is of CUDA 11.8, and this torch is built for CUDA 13.0: without root: " in why()
    monkeypatch.setattr(toolkit, "_other", lambda wanted: Path("/usr/local/cuda-13"))
    assert why().endswith("export CUDA_HOME=/usr/local/cuda-13")
    with_toolkit(program, monkeypatch, "13.1")  # another minor version compiles
    assert why() == "there is no C++ compiler (c++): sudo apt install g++"
    program("bin/c++")
    assert why().startswith("ninja is missing: ")
    assert why().endswith("-m pip install ninja")
    program("env/bin/ninja")  # of an environment that nobody activated
    assert gsplat_state.obstacle() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "export TORCH_CUDA_ARCH_LIST=9.0" in why()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert gsplat_state.obstacle() is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "make setup TORCH=cuda" in why()
    monkeypatch.setattr(Extension, "folder", lambda self: None)
    assert why().endswith("pip install gsplat")


def test_a_toolkit_is_looked_for_as_torch_does(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = program("bin/nvcc", "release 13.0,")
    assert toolkit.toolkit() is None
    monkeypatch.setattr(cpp_extension, "_find_cuda_home", lambda: str(nvcc.parents[1]))
    assert toolkit.toolkit() == nvcc
    assert toolkit.version(nvcc) == "13.0"


def test_compiled_is_what_a_wheel_brings_or_what_is_newer_than_torch_and_gsplat(
    program: Program, tmp_path: Path
) -> None:
    assert gsplat_state.compiled() is None
    built = tmp_path / "cache" / "gsplat_cuda" / "gsplat_cuda.so"
    built.touch()
    assert gsplat_state.compiled() == built
    os.utime(built, (1, 1))  # older than the torch that is installed now
    assert gsplat_state.compiled() is None
    os.utime(built)
    package = tmp_path / "site" / "gsplat"
    os.utime(package / "version.py", (time.time() + 60,) * 2)  # a new gsplat
    assert gsplat_state.compiled() is None
    wheel = package / f"csrc{extension.EXTENSION_SUFFIXES[0]}"
    wheel.touch()
    assert gsplat_state.compiled() == wheel


def pretend_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Path:
    """gsplat's build is ``script``, run by this Python; what it sees is left in the file given."""
    seen = tmp_path / "seen"
    folder = tmp_path / "cache" / "gsplat_cuda"
    before = f"import os, sys, time\nfolder, seen = {str(folder)!r}, {str(seen)!r}\n"
    monkeypatch.setattr(Extension, "build", before + script)
    monkeypatch.setattr(sys, "executable", PYTHON)
    return seen


PYTHON = sys.executable
GOOD = """
with open(seen, "a") as file:
    print(os.environ["MAX_JOBS"], os.environ["VERBOSE"], os.environ["PATH"],
          os.environ["CUDA_HOME"], os.path.exists(os.path.join(folder, "lock")), file=file)
print("[1/29] nvcc first.cu")
print("[29/29] c++ -shared")
time.sleep(0.2)
os.makedirs(folder, exist_ok=True)
open(os.path.join(folder, "gsplat_cuda.so"), "w").close()
"""


def test_a_build_is_announced_counted_and_kept(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready(program, monkeypatch)
    seen = pretend_build(monkeypatch, tmp_path, GOOD)
    monkeypatch.setattr(extension, "jobs", lambda: 3)
    lock = GSPLAT.build_folder() / "lock"
    lock.touch()  # of a build that was killed: torch waits until it is gone
    said: list[str] = []
    library = GSPLAT.ensure(said.append)
    assert library == tmp_path / "cache" / "gsplat_cuda" / "gsplat_cuda.so"
    assert "once, 3 file(s) at a time" in said[0]
    assert said[1:] == ["gsplat: 1 of 29 compiled", "gsplat: 29 of 29 compiled"]
    assert "nvcc first.cu" in (tmp_path / "cache" / "gsplat_cuda.log").read_text()
    jobs, verbose, path, home, locked = seen.read_text().split()
    assert (jobs, verbose, locked) == ("3", "1", "False")
    assert home == str(tmp_path / "toolkit")
    assert path.split(os.pathsep)[0] == str(tmp_path / "toolkit" / "bin")  # nerfacc looks there
    assert str(tmp_path / "env" / "bin") in path.split(os.pathsep)  # where ninja is
    assert GSPLAT.ensure(said.append) == library
    assert len(seen.read_text().splitlines()) == 1
    assert len(said) == 3


def test_two_that_start_together_build_once(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready(program, monkeypatch)
    seen = pretend_build(monkeypatch, tmp_path, GOOD)
    said: list[str] = []
    found: list[Path] = []
    workers = [
        threading.Thread(target=lambda: found.append(GSPLAT.ensure(said.append))) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(seen.read_text().splitlines()) == 1
    assert said.count("another process is compiling gsplat: waiting for it") >= 1


def test_what_the_compiler_says_is_told_and_kept(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready(program, monkeypatch)
    script = "print('[1/29] a.cu\\na.cu(3): error: no such thing\\nninja: stop'); sys.exit(1)"
    pretend_build(monkeypatch, tmp_path, script)
    with pytest.raises(MissingBackend, match=r"did not compile: a.cu\(3\): error: no such thing"):
        GSPLAT.ensure(lambda line: None)
    assert "ninja: stop" in (tmp_path / "cache" / "gsplat_cuda.log").read_text()


def test_without_a_toolkit_nothing_is_built_and_another_way_is_named(program: Program) -> None:
    with pytest.raises(MissingBackend, match=r"no nvcc is found.*representation.backend=triton"):
        GSPLAT.ensure(lambda line: pytest.fail(line))


def test_ninja_counts_aloud_whatever_the_package_asks(tmp_path: Path) -> None:
    """nerfacc builds in silence, and then there is nothing to count."""
    for name in ("cuda", ""):
        (tmp_path / "talkative" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "talkative" / name / "__init__.py").touch()
    (tmp_path / "talkative" / "cuda" / "_backend.py").write_text(
        "from torch.utils.cpp_extension import load\n_C = load(name='a', verbose=False)\n"
    )
    start = (
        "from torch.utils import cpp_extension\n"
        "cpp_extension.load = lambda **how: print(sorted(how.items()))\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", start + Extension("talkative", "a", "b").build],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "[('name', 'a'), ('verbose', True)]\n"
    assert done.stderr.endswith("talkative built nothing\n")
    assert done.returncode == 1


def test_compilers_at_once_follow_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(extension.os, "sched_getaffinity", lambda pid: set(range(16)))
    for gigabytes, expected in ((100, 16), (16, 4), (1, 1), (None, 16)):
        free = None if gigabytes is None else gigabytes * 10**9
        monkeypatch.setattr(extension, "available_bytes", lambda device, free=free: free)
        assert extension.jobs() == expected
    monkeypatch.setenv("MAX_JOBS", "7")
    assert extension.jobs() == 7


def test_a_library_that_is_there_is_loaded_without_toolkit_and_ninja(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """gsplat itself asks for nvcc before it looks at what it has built."""
    pytest.importorskip("gsplat")
    library = tmp_path / "gsplat_cuda" / "gsplat_cuda.so"
    ours = ModuleType("gsplat_cuda")
    asked = []
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(
        cpp_extension, "_import_module_from_library", lambda *how: asked.append(how) or ours
    )
    mine = ("gsplat.csrc", "gsplat.cuda._backend")
    before = {name: sys.modules.pop(name) for name in mine if name in sys.modules}
    try:
        GSPLAT.load(library)
        GSPLAT.load(library)
        assert asked == [("gsplat_cuda", str(library.parent), True)]
        assert importlib.import_module("gsplat.cuda._backend")._C is ours
    finally:
        for name in mine:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture
def _fresh_choice() -> None:
    splats._best_on_a_card.cache_clear()


@pytest.mark.usefixtures("_fresh_choice")
@pytest.mark.parametrize(
    ("library", "triton", "why", "name", "said"),
    [
        (Path("x.so"), True, None, "gsplat", ""),
        (None, True, "no nvcc is found: install it", "triton", "no nvcc is found: install it"),
        (None, True, None, "triton", "'sdi-gs doctor --build' compiles them"),
        (None, False, None, "gsplat", ""),
        (None, False, "no nvcc is found", "reference", "plain torch, slowly"),
    ],
)
def test_auto_takes_gsplat_where_it_is_compiled_else_triton_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    library: Path | None, triton: bool, why: str | None, name: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(splats, "_require_sound_on", lambda ops, device: None)
    monkeypatch.setattr(gsplat_splats, "prepare", lambda: None)
    monkeypatch.setattr(triton_launch, "available", lambda: triton)
    monkeypatch.setattr(gsplat_state, "compiled", lambda: library)
    monkeypatch.setattr(gsplat_state, "obstacle", lambda: why)
    with caplog.at_level(logging.WARNING):
        for asked in (None, "cuda", None):
            assert splat_ops("cuda", asked).name == name
    assert len(caplog.messages) == bool(said)
    assert all(said in message and "\n" not in message for message in caplog.messages)
    for asked in ("triton", "gsplat"):
        if triton or asked == "gsplat":
            assert splat_ops("cuda", asked).name == asked


def test_a_field_asks_for_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What splats lack is nothing to a radiance field."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Extension, "folder", lambda self: None)
    for function in ("compiled", "obstacle", "offer"):
        monkeypatch.setattr(gsplat_state, function, lambda: pytest.fail("asked about gsplat"))
    monkeypatch.setattr(self_test, "require_sound", lambda *_: pytest.fail("tried splats"))
    for asked in (None, "cuda"):
        assert field_ops("cuda", asked).name == "cuda"


def test_gsplat_draws_what_the_reference_draws_also_at_the_edges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gsplat_splats, "_rasterization", lambda: rasterization)
    monkeypatch.setattr(gsplat_splats, "require_float32", lambda *args, **tensors: None)
    cameras = cameras_around(2, (16, 20))
    scene = random_splats(20, 3, radius=2.5, size=0.2, opacity=0.6)
    for tensor, value in zip(scene[:3], (float("nan"), float("inf"), float("nan")), strict=True):
        tensor[len(scene.means) - 1 - tensor.shape[1], 0] = value
    outcomes = []
    for splat in (gsplat_splats.splat, reference.splat):
        leaves = Splats(*(t.clone().requires_grad_() for t in scene))
        out = splat(leaves, torch.ones(2, 20, 3), cameras)
        out.means2d.retain_grad()
        out.features.square().sum().backward()
        outcomes.append((out, out.means2d.grad, leaves.opacity.grad, leaves.means.grad))
    (ours, *gradients), (true, *expected) = outcomes
    assert (true.radii == 0).any()
    assert (true.radii > 0).any()
    for name, value in ours._asdict().items():
        torch.testing.assert_close(value, getattr(true, name), msg=name)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, torch.nan_to_num(b))
    empty = Splats(*(t[:0] for t in scene))
    nothing = gsplat_splats.splat(empty, torch.ones(2, 0, 3), cameras)
    assert nothing.features.shape == (2, 3, 16, 20)
    assert float(nothing.alpha.max()) == 0.0


def test_no_card_is_told_by_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(card, "shutil", SimpleNamespace(which=lambda name: None))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert card.missing() == "this torch is a CPU build"
    monkeypatch.setattr(card, "shutil", SimpleNamespace(which=lambda name: "/usr/bin/nvidia-smi"))
    assert card.missing().endswith("a driver is here: make clean, then make setup TORCH=cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for version, words in (
        (0, ("no NVIDIA driver is loaded", "sudo ubuntu-drivers install", "--gpus all")),
        (12020, ("too old: it is for CUDA 12.2", "built for CUDA 13.0", "TORCH=cu126")),
        (11040, ("too old: it is for CUDA 11.4", "ubuntu-drivers install)")),
        (13000, ("no card is seen", "nvidia-smi")),
    ):
        monkeypatch.setattr(
            torch._C, "_cuda_getDriverVersion", lambda version=version: version, raising=False
        )
        assert all(word in card.missing() for word in words), card.missing()
    assert "TORCH=cu126" not in card.missing()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset CUDA_VISIBLE_DEVICES" in card.missing()
