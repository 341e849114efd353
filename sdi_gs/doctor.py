# SPDX-License-Identifier: Apache-2.0
"""What this machine can run, and why not the rest. Looks only; never starts a compilation."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from representations.checks import pip_install
from representations.ops.extension import Extension

from .config import Config, load
from .errors import UserError, command, first_line


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    state: str  # "ok", "no" (something optional is absent), "BAD" (something needed is broken)
    detail: str


def examine(say: Callable[[str], None]) -> bool:
    """Print every finding; False when something that everybody needs is broken."""
    checks = [
        python, torch_build, cuda, gsplat, triton, nerfacc, tinycudann, threads, hub, mini, tools,
        render, denoise,
    ]  # fmt: skip
    good = True
    for check in checks:
        for finding in check():
            say(f"{finding.name:<12} {finding.state:<4} {finding.detail}")
            good = good and finding.state != "BAD"
    say("everything that the package needs works" if good else "see the lines marked BAD")
    return good


def python() -> list[Finding]:
    names = ("sdi-gs", "diffusers", "transformers")
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    return [Finding("python", "ok", f"{platform.python_version()}; {versions}")]


def torch_build() -> list[Finding]:
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return [Finding("torch", "ok", f"{torch.__version__}, {built}")]


def cuda() -> list[Finding]:
    from representations.ops import card

    if not torch.cuda.is_available():
        return [Finding("cuda", "no", card.missing())]
    first = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    detail = f"{first.name}, {first.total_memory / 2**30:.0f} GiB, {count} device(s)"
    return [Finding("cuda", "ok", detail)]


def gsplat() -> list[Finding]:
    """Whether its kernels are compiled or can be, as torch would find what that needs."""
    from representations.ops.splats.gsplat_state import GSPLAT

    return [_kernels_of(GSPLAT, "numba draws instead")]


def nerfacc() -> list[Finding]:
    """The same of nerfacc, which nothing needs."""
    from representations.ops.fields.nerfacc_state import NERFACC

    if NERFACC.folder() is None:
        detail = f"not installed (optional, for comparisons): {pip_install(NERFACC.package)}"
        return [Finding("nerfacc", "no", detail)]
    return [_kernels_of(NERFACC, "numba marches instead")]


def _kernels_of(extension: Extension, otherwise: str) -> Finding:
    from representations.ops import toolkit

    name = extension.package
    if extension.folder() is None:
        return Finding(name, "no", f"not installed: {pip_install(name)}")
    version = _version(name)
    if not torch.cuda.is_available():
        return Finding(name, "no", f"{version}, idle without CUDA; {otherwise}")
    library = extension.compiled()
    if library is not None:
        return Finding(name, "ok", f"{version}, kernels compiled: {library}")
    why = extension.obstacle()
    if why is not None:
        return Finding(name, "no", f"{version}, and its kernels cannot be compiled: {why}")
    nvcc, build = toolkit.toolkit(), command("doctor", "--build")
    detail = f"{version}, kernels not compiled; {build} does it, once, in minutes, with {nvcc}"
    return Finding(name, "no", detail)


def compile_kernels(say: Callable[[str], None]) -> None:
    """Compile gsplat's kernels now, and nerfacc's where it is installed, so that no run has to.
    Raises UserError where that cannot be, with what is missing or what the compiler said."""
    from representations.ops import MissingBackend
    from representations.ops.fields.nerfacc_state import NERFACC
    from representations.ops.splats.gsplat_state import GSPLAT

    for extension in (GSPLAT, NERFACC):
        if extension is NERFACC and extension.folder() is None:
            continue
        try:
            library = extension.ensure(say)
        except MissingBackend as error:
            raise UserError(str(error)) from error
        say(f"{extension.package}'s kernels are compiled: {library}")


def triton() -> list[Finding]:
    from representations.ops import triton_launch

    fallback = "splats and radiance fields on CUDA fall back to plain torch"
    if not _present("triton"):
        return [Finding("triton", "no", f"not installed; {fallback}: {pip_install('triton')}")]
    version = _version("triton")
    if not triton_launch.available():
        return [Finding("triton", "no", f"{version}, but no C compiler (gcc); {fallback}")]
    if not torch.cuda.is_available():
        return [Finding("triton", "no", f"{version}, idle without CUDA")]
    return [Finding("triton", "ok", f"{version}, draws splats and radiance fields")]


def tinycudann() -> list[Finding]:
    if _present("tinycudann"):
        return [Finding("tinycudann", "ok", "importable (optional)")]
    return [Finding("tinycudann", "no", "not installed (optional, see README.md)")]


def threads() -> list[Finding]:
    return [Finding("threads", "ok", f"{torch.get_num_threads()} on {os.cpu_count()} cores")]


def hub() -> list[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    models = sorted(path.name for path in (home / "hub").glob("models--*"))
    cached = ", ".join(name.removeprefix("models--").replace("--", "/") for name in models)
    state = "offline (HF_HUB_OFFLINE)" if offline else "asked when a model is not in the cache"
    return [Finding("hub", "ok", f"{state}; cached: {cached or 'nothing'}")]


def mini() -> list[Finding]:
    from .mini import FOLDERS

    return [_weights(name, folder) for name, folder in FOLDERS.items()]


def _weights(name: str, folder: Path) -> Finding:
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not any(path.suffix == ".safetensors" for path in files):
        return Finding(name, "BAD", f"no weights in {folder}: the installation is incomplete")
    size = sum(path.stat().st_size for path in files)
    return Finding(name, "ok", f"{size / 1e6:.1f} MB in {folder}")


def tools() -> list[Finding]:
    """Programs and libraries for films and for checks in other people's viewers."""
    found = [Finding("video", *_codec())]
    for name, programs in (("node", ("node",)), ("chromium", ("chromium", "google-chrome"))):
        where = next(filter(None, map(shutil.which, programs)), None)
        detail = where or "not found (optional: viewer checks)"
        found.append(Finding(name, "ok" if where else "no", detail))
    return found


def render() -> list[Finding]:
    """Draw a few splats for real and pull on them; numba compiles or loads its cache here."""
    from representations.gaussians.config import GaussianConfig

    from .build import device, renderer

    config = Config(resolution=32, steps=1)
    small = GaussianConfig(count=64, max_count=64)
    began = time.perf_counter()
    try:
        config = config.model_copy(update={"representation": small})
        target = device(config.device)
        if target.type == "cuda":
            # The first render on a card compiles kernels: the CPU path proves less, but at once.
            target = torch.device("cpu")
        shape = renderer(config, target)
        picture, _ = shape.render(config.views.showcase(1, 32, 15.0), torch.ones(1, 3))
        picture.rgb.mean().backward()
        finite = bool(torch.isfinite(picture.rgb).all())
    except (UserError, RuntimeError, ImportError) as error:
        return [Finding("render", "BAD", first_line(error))]
    spent = time.perf_counter() - began
    detail = f"64 splats at 32 x 32 forward and backward in {spent:.2f} s on the cpu"
    return [Finding("render", "ok" if finite else "BAD", detail)]


def denoise() -> list[Finding]:
    """Ask mini about one picture for real."""
    from .build import denoiser

    try:
        began = time.perf_counter()
        model = denoiser(load("mini").model, torch.device("cpu"))
        loaded = time.perf_counter() - began
        z = model.encode(torch.full((1, 3, 64, 64), 0.5))
        eps = model.predict_noise(z, torch.tensor([500]), model.embed(["a red mug"]))
        spent = time.perf_counter() - began - loaded
    except (UserError, RuntimeError, ImportError) as error:
        return [Finding("denoise", "BAD", first_line(error))]
    finite = bool(torch.isfinite(eps).all())
    detail = f"mini answers in {spent:.2f} s on the cpu, after {loaded:.1f} s of loading"
    return [Finding("denoise", "ok" if finite else "BAD", detail)]


def _codec() -> tuple[str, str]:
    try:
        import av

        av.Codec("libx264", "w")
    except ImportError:
        return "BAD", f"PyAV is not installed: {pip_install('av')}"
    except Exception as error:  # PyAV's own hierarchy differs between versions
        return "no", f"PyAV {_version('av')} has no H.264 encoder ({error}): use gif"
    return "ok", f"PyAV {_version('av')} with H.264"


def _present(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
