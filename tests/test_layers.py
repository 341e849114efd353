# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and that importing does nothing. Walks the syntax tree, so it also sees
imports inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sdi_gs", "representations")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FORBIDDEN = {
    # part of the tree: modules it must not import
    "representations": ("sdi_gs", "diffusers", "transformers"),
    "representations.gaussians": ("representations.instant_ngp",),
    "representations.instant_ngp": ("representations.gaussians", "representations.export"),
    "representations.ops": (
        "representations.gaussians", "representations.instant_ngp", "representations.export",
        "representations.environment",
    ),
    "representations.interface": ("representations",),
    "sdi_gs.schedule": ("representations", "diffusers", "sdi_gs"),
    "sdi_gs.noise": ("representations", "diffusers", "sdi_gs.prompts", "sdi_gs.views"),
    "sdi_gs.guidance": ("representations", "diffusers", "sdi_gs.views", "sdi_gs.diffusion.stable"),
    "sdi_gs.predict": ("representations", "diffusers", "sdi_gs.views"),
    "sdi_gs.sampling": ("representations", "diffusers", "sdi_gs.views"),
    "sdi_gs.diffusion": ("representations", "sdi_gs.guidance", "sdi_gs.prompts", "sdi_gs.trainer"),
    "sdi_gs.trainer": (
        "representations.gaussians", "representations.instant_ngp", "representations.ops",
        "representations.export", "diffusers", "sdi_gs.build", "sdi_gs.diffusion",
    ),
    "sdi_gs.views": (
        "representations.gaussians", "representations.instant_ngp", "representations.ops",
        "representations.export", "diffusers", "sdi_gs.build", "sdi_gs.diffusion",
    ),
    "sdi_gs.cli": ("representations", "diffusers", "sdi_gs.diffusion", "sdi_gs.guidance"),
}  # fmt: skip

ONLY = {
    # module: the parts of the tree that may import it
    "diffusers": (
        "sdi_gs.diffusion.stable", "sdi_gs.diffusion.published", "sdi_gs.diffusion.tuning",
        "sdi_gs.mini",
    ),
    "transformers": (
        "sdi_gs.diffusion.stable", "sdi_gs.diffusion.published", "sdi_gs.evaluation.clip",
        "sdi_gs.mini",
    ),
    "representations.gaussians": (
        "representations.gaussians", "representations.export", "sdi_gs.build", "sdi_gs.config",
        "sdi_gs.assets", "sdi_gs.convert", "sdi_gs.doctor", "sdi_gs.splat_files",
    ),
    "representations.export": (
        "representations.export", "representations.gaussians.initialise", "sdi_gs.assets",
        "sdi_gs.splat_files",
    ),
    "representations.instant_ngp": (
        "representations.instant_ngp", "representations.export", "sdi_gs.build", "sdi_gs.config",
        "sdi_gs.assets",
    ),
    "sdi_gs.diffusion.stable": (
        "sdi_gs.build", "sdi_gs.diffusion.published", "sdi_gs.diffusion.tuning",
    ),
    "sdi_gs.diffusion.analytic": (),
    "sdi_gs.build": (
        "sdi_gs.cli", "sdi_gs.run", "sdi_gs.doctor", "sdi_gs.assets", "sdi_gs.convert",
        "sdi_gs.compare", "sdi_gs.evaluation", "sdi_gs.experiments", "sdi_gs.flat",
        "sdi_gs.splat_files",
    ),
    "sdi_gs.cli": ("sdi_gs.__main__",),
    "gsplat": ("representations.ops.cuda",),
    "triton": ("representations.ops.triton_kernels",),
    "tinycudann": ("representations.ops.hash_cuda",),
    "viser": ("sdi_gs.viewer",),
    "tensorboardX": ("sdi_gs.scalars",),
    "sdi_gs.viewer": ("sdi_gs.cli_watch",),
    "open3d": ("representations.export.fuse_open3d",),
    "gsply": ("representations.export.packed",),
    "numba": ("representations.ops", "sdi_gs.build", "sdi_gs.doctor"),
    "typer": (
        "sdi_gs.cli", "sdi_gs.cli_evaluate", "sdi_gs.cli_studies", "sdi_gs.cli_watch",
        "sdi_gs.arguments",
    ),
    "tests": (),
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports. ``from a import b`` counts as ``a.b``
    when that is a module of ours, else as ``a``."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package[: len(package) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in MODULES else base)
    return found


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


MODULES = {module_name(path) for path in FILES}
IMPORTS = {module_name(path): imports(path) for path in FILES}


def test_the_walk_sees_what_it_should() -> None:
    """A test of the test: known imports of each form."""
    assert "representations.gaussians.config" in IMPORTS["sdi_gs.config"]  # at the top
    assert "sdi_gs.diffusion.stable" in IMPORTS["sdi_gs.build"]  # inside a function, relative
    assert "sdi_gs.checkpoint" in IMPORTS["sdi_gs.run"]  # from . import name
    assert "representations.ops" in IMPORTS["representations.gaussians.renderer"]  # two dots


@pytest.mark.parametrize("part", FORBIDDEN)
def test_forbidden_imports(part: str) -> None:
    broken = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, part)
        for name in sorted(names)
        for forbidden in FORBIDDEN[part]
        if within(name, forbidden)
    ]
    assert not broken


@pytest.mark.parametrize("target", ONLY)
def test_reserved_imports(target: str) -> None:
    broken = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if not any(within(module, allowed) for allowed in (*ONLY[target], target))
        for name in sorted(names)
        if within(name, target)
    ]
    assert not broken


IMPORT_EVERYTHING = """
import importlib, os, random, socket, subprocess, sys, urllib.request
import numpy, torch

def refuse(what):
    def inner(*args, **kwargs):
        raise AssertionError(f"importing {current} starts {what}")
    return inner

socket.socket.connect = refuse("a connection")
subprocess.Popen.__init__ = refuse("a program")
import torch.utils.cpp_extension
torch.utils.cpp_extension.load = refuse("a compilation")

def state():
    return (
        dict(os.environ), torch.get_rng_state().tolist(), random.getstate(),
        numpy.random.get_state()[1].tolist(), torch.get_default_dtype(), torch.get_num_threads(),
        sorted(os.listdir(".")),
    )

for current in sys.argv[1:]:
    before = state()
    importlib.import_module(current)
    assert state() == before, f"importing {current} changes the state of the process"
    assert not torch.cuda.is_initialized(), f"importing {current} wakes the GPU"
assert "gsplat" not in sys.modules, "gsplat is imported early"
"""


def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = sorted(MODULES - {"sdi_gs.__main__"})
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, *modules],
        cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def test_every_file_names_its_licence() -> None:
    tests = (ROOT / "tests").rglob("*.py")
    missing = [
        str(path.relative_to(ROOT))
        for path in (*FILES, *tests)
        if not path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0")
    ]
    assert not missing
