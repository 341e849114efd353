# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and that importing does nothing. Walks the syntax tree, so it also sees
imports inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sdi_gs", "representations")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FLOORS = (
    ("sdi_gs.__main__",),
    ("sdi_gs.cli",),
    ("sdi_gs.studio",),
    ("sdi_gs.api",),
    ("sdi_gs.sweep",),
    ("sdi_gs.experiments", "sdi_gs.watch"),
    ("sdi_gs.evaluation", "sdi_gs.convert", "sdi_gs.texture_stage"),
    ("sdi_gs.child", "sdi_gs.run"),
    ("sdi_gs.going_on",),
    ("sdi_gs.assets", "sdi_gs.look", "sdi_gs.splat_files", "sdi_gs.doctor"),
    ("sdi_gs.meshes",),
    ("sdi_gs.build", "sdi_gs.pages", "sdi_gs.splat_export"),
    (
        "sdi_gs.artefacts",
        "sdi_gs.budget",
        "sdi_gs.differences",
        "sdi_gs.families",
        "sdi_gs.methods",
    ),
    ("sdi_gs.starting",),
    ("sdi_gs.fitting", "sdi_gs.origin"),
    ("sdi_gs.config",),
    ("sdi_gs.trainer", "sdi_gs.views"),
    ("sdi_gs.estimates", "sdi_gs.guidance"),
    ("sdi_gs.backgrounds", "sdi_gs.mini", "sdi_gs.plugins", "sdi_gs.strict", "sdi_gs.team"),
    (
        "sdi_gs.cores",
        "sdi_gs.diffusion",
        "representations",
        "sdi_gs.ramp",
        "sdi_gs.stopping",
        "sdi_gs.stopwatch",
    ),
    ("sdi_gs.errors",),
    ("sdi_gs",),
)
"""From the roof down. A room (a module, or a folder with all that is in it) imports from itself and
from lower floors, never from another room of its own floor."""

WALLS = {
    # room: what it must not reach, not even through others
    "representations": ("sdi_gs", "diffusers", "transformers"),
    "representations.interface": ("representations.cameras", "representations.ops"),
    "representations.gaussians": ("representations.instant_ngp",),
    "representations.instant_ngp": ("representations.gaussians", "representations.export"),
    "representations.textured": (
        "representations.gaussians", "representations.instant_ngp", "representations.export",
    ),
    "representations.latent_voxels": (
        "representations.gaussians", "representations.instant_ngp", "representations.export",
        "representations.textured", "representations.ops",
    ),
    "representations.ops": (
        "representations.gaussians", "representations.instant_ngp", "representations.export",
        "representations.textured", "representations.environment",
    ),
    "sdi_gs.diffusion": ("representations",),
    "sdi_gs.guidance.distillation": (
        "representations.gaussians", "representations.instant_ngp", "representations.ops",
        "representations.export", "sdi_gs.diffusion.stable", "sdi_gs.views",
    ),
    "sdi_gs.guidance": (
        "sdi_gs.diffusion.latents", "sdi_gs.diffusion.load", "sdi_gs.diffusion.parts",
    ),
    "sdi_gs.trainer": (
        "representations.gaussians", "representations.instant_ngp", "representations.ops",
        "representations.export", "sdi_gs.diffusion.stable",
    ),
    "sdi_gs.views": (
        "representations.gaussians", "representations.instant_ngp", "representations.ops",
        "representations.export", "sdi_gs.diffusion.stable",
    ),
}  # fmt: skip

RESERVED = {
    # what only these rooms may import themselves
    "diffusers": ("sdi_gs.diffusion", "sdi_gs.mini"),
    "transformers": (
        "sdi_gs.diffusion", "sdi_gs.estimates", "sdi_gs.evaluation", "sdi_gs.mini",
    ),
    "sdi_gs.diffusion.analytic": (),
    "gsplat": ("representations.ops.splats.gsplat_splats",),
    "triton": (
        "representations.ops.fields.triton_kernels", "representations.ops.splats.triton_project",
        "representations.ops.splats.triton_raster", "representations.ops.splats.triton_tiles",
    ),
    "nerfacc": ("representations.ops.fields.ray_nerfacc",),
    "tinycudann": ("representations.ops.fields.hash_cuda",),
    "viser": ("sdi_gs.watch.page",),
    "gradio": ("sdi_gs.studio",),
    "fastapi": ("sdi_gs.studio",),
    "starlette": ("sdi_gs.studio",),
    "uvicorn": ("sdi_gs.studio",),
    "tensorboardX": ("sdi_gs.artefacts.scalars",),
    "open3d": ("representations.export.fuse_open3d",),
    "fast_simplification": ("representations.export.simplify",),
    "xatlas": ("representations.atlas.unwrap",),
    "embreex": ("representations.ops.meshes.cast", "sdi_gs.mini.render"),
    "gsply": ("representations.export.packed",),
    "gaussforge": ("representations.export.forge",),
    "pxr": ("representations.export.usd",),
    "numba": ("representations.ops", "sdi_gs.build", "sdi_gs.doctor"),
    "typer": ("sdi_gs.cli",),
    "jinja2": ("sdi_gs.pages.render",),
    "openvino": ("sdi_gs.diffusion.compiled",),
    "submitit": ("sdi_gs.sweep.engines.slurm",),
    "ray": ("sdi_gs.sweep.engines.ray",),
    "pyarrow": ("sdi_gs.sweep.report",),
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
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str | None:
    """The smallest room that holds ``module``."""
    return max((room for room in ROOMS if within(module, room)), key=len, default=None)


@cache
def reached(module: str) -> frozenset[str]:
    """Everything that ``module`` imports, and what that imports in turn."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for name in IMPORTS.get(waiting.pop(), ()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return frozenset(seen)


def test_the_walk_sees_what_it_should() -> None:
    """A test of the test: known imports of each form."""
    assert "representations.gaussians.config" in IMPORTS["sdi_gs.config"]  # at the top
    assert "sdi_gs.diffusion.load" in IMPORTS["sdi_gs.build"]  # inside a function, relative
    assert "sdi_gs.artefacts.checkpoint" in IMPORTS["sdi_gs.run"]  # from . import name
    assert "representations.ops.splats" in IMPORTS["representations.gaussians.renderer"]  # two dots
    assert "representations.gaussians.config" in reached("sdi_gs.build")  # through sdi_gs.config


OURS = [
    *ROOMS,
    *(name for part, reached in WALLS.items() for name in (part, *reached)),
    *(name for target, allowed in RESERVED.items() for name in (target, *allowed)),
]


@pytest.mark.parametrize("name", sorted({n for n in OURS if n.split(".")[0] in PACKAGES}))
def test_a_rule_names_what_exists(name: str) -> None:
    assert name in MODULES, "a rule for a module that is gone would pass and check nothing"


@pytest.mark.parametrize("name", sorted({n for n in OURS if n.split(".")[0] not in PACKAGES}))
def test_a_reserved_library_is_used(name: str) -> None:
    assert any(within(found, name) for names in IMPORTS.values() for found in names)


def test_every_module_has_a_floor() -> None:
    assert not [module for module in sorted(MODULES) if room_of(module) is None]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_down(module: str) -> None:
    room = room_of(module)
    assert room is not None
    broken = []
    for name in sorted(IMPORTS[module] & MODULES):
        other = room_of(name)
        if other != room and (other is None or ROOMS[other] <= ROOMS[room]):
            broken.append(f"{module} imports {name}")
    assert not broken


def test_no_circle() -> None:
    """Not even inside one room."""
    circles = [module for module in sorted(MODULES) if module in reached(module)]
    assert not circles


@pytest.mark.parametrize("part", WALLS)
def test_walls(part: str) -> None:
    broken = [
        f"{module} reaches {name}"
        for module in sorted(MODULES)
        if within(module, part)
        for name in sorted(reached(module))
        for forbidden in WALLS[part]
        if within(name, forbidden)
    ]
    assert not broken


@pytest.mark.parametrize("target", RESERVED)
def test_reserved_imports(target: str) -> None:
    broken = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if not any(within(module, allowed) for allowed in (*RESERVED[target], target))
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
for name in ("gsplat", "nerfacc"):
    assert name not in sys.modules, f"{name} is imported early"
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
