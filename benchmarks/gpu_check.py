# SPDX-License-Identifier: Apache-2.0
"""Is this machine right? Everything that only a CUDA card can show, in under ten minutes.

    python benchmarks/gpu_check.py [--out DIR] [--device cuda] [--quick] [--minutes 10]

1. kernels: splatting by Triton and by gsplat where it is compiled, hash encoding and ray marching
   against the reference, values and gradients; and how long a picture takes;
2. precision: the denoiser in half precision against float32 at t = 0.98 and 0.2;
3. waits: how often a step waits for the card, and where;
4. assets: mini from sentence to file on the card, splats and field, against the true object;
5. tests: those of the suite that need a card, if pytest is installed;
6. scale: benchmarks/paper_scale.py, Stable Diffusion 2.1-base at 512 x 512 with random weights.

Each part, and each thing in a part, is looked at by itself; what fails is said and the others go
on. gsplat's kernels are not compiled here, which takes minutes: sdi-gs doctor --build does it
before. A part that the ten minutes (--minutes) leave no time for is left out, and said to be.

Nothing is fetched. Writes gpu_check.json and gpu_check.html and exits with 1 if any part failed.
``--device cpu --quick`` runs the same parts, shortened, without a card.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
SHARES = (0.98, 0.2)  # of the schedule, where precisions are compared
HALF_TOLERANCE = 2e-2  # relative error of a prediction in half precision, in the norm
LEAST_DB = 17.0  # of a mini asset against the true object; a white picture has about 12
PROMPT = "a red mug"
LEFT_OUT = "the time is over; again with --minutes 30, or alone with --parts"
DEFAULTS = "device={device} output.preview_every=0 output.turntable.frames=8"

Part = Callable[[argparse.Namespace], dict[str, Any]]


class Failed(Exception):
    """A part ran and found something wrong; its figures are kept."""

    def __init__(self, why: str, figures: dict[str, Any]) -> None:
        super().__init__(why)
        self.figures = figures


class Together:
    """Things that are looked at one by one: what fails is noted, and the next one is looked at."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.bad: list[str] = []

    @contextlib.contextmanager
    def one(self, name: str) -> Iterator[None]:
        try:
            yield
        except Failed as failure:
            self.bad.append(f"{name}: {failure}")
            self.figures[name] = failure.figures
        except Exception as error:
            self.bad.append(f"{name}: {type(error).__name__}: {error}")

    def result(self, complaint: str) -> dict[str, Any]:
        if self.bad:
            raise Failed(f"{complaint}: {'; '.join(self.bad)}", self.figures)
        return self.figures


def kernels(args: argparse.Namespace) -> dict[str, Any]:
    """Each family by itself; gsplat where it is compiled, which is never begun here."""
    from representations.ops import self_test
    from representations.ops.fields import field_ops
    from representations.ops.splats import CUDA_BACKENDS, gsplat_state, splat_ops

    device = torch.device(args.device)
    seen = Together()

    def compare(found: self_test.Difference, name: str) -> None:
        seen.figures[name] = {"value": found.value, "gradient": found.gradient}
        if not found.sound:
            seen.bad.append(f"{name} disagrees with the reference")

    scenes = ((12, 32), (100, 48)) if args.quick else ((12, 32), (2000, 128))
    for name in CUDA_BACKENDS if device.type == "cuda" else ("cpu",):
        if name == "gsplat" and gsplat_state.compiled() is None:
            seen.figures["gsplat"] = (
                f"left out, its kernels are not compiled: {gsplat_state.offer()}"
            )
            continue
        with seen.one(name):
            splat = splat_ops(device, name).splat
            for count, size in scenes:
                compare(self_test.splatting(splat, device, count, size), f"{name} {count}")
            seen.figures |= drawing_ms(name, splat, device, args.quick)
    points = 2_000 if args.quick else 20_000
    ops = None
    with seen.one("fields"):
        ops = field_ops(device)
    tries: tuple[tuple[str, Callable[[Any], self_test.Difference]], ...] = (
        ("hash encoding", lambda ops: self_test.encoding(ops.encode, device, points)),
        ("slopes", lambda ops: self_test.slopes(ops.encode_jacobian, device, points)),
        ("ray marching", lambda ops: self_test.marching(ops.march, ops.composite, device)),
    )
    for name, attempt in tries:
        with seen.one(name):
            if ops is not None:
                compare(attempt(ops), name)
    return seen.result("disagrees with the reference, or does not work")


def drawing_ms(name: str, splat: Any, device: torch.device, quick: bool) -> dict[str, float]:
    """Milliseconds of a picture of 512 x 512 with 7 channels, and of its gradient; the median.
    ``quick``: of a small one."""
    from representations.cameras import turntable
    from representations.ops.splats import Splats

    g = torch.Generator().manual_seed(0)
    size, count, times = (32, 100, 4) if quick else (512, 20_000, 12)
    cameras = turntable(1, 15.0, 2.5, 60.0, (size, size)).to(device)
    means = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    means *= 0.8 * torch.rand(count, 1, generator=g) ** (1 / 3)
    scene = (means, torch.randn(count, 4, generator=g), torch.full((count, 3), 0.02),
             torch.full((count,), 0.2), torch.rand(1, count, 6, generator=g))  # fmt: skip
    leaves = [t.to(device).requires_grad_() for t in scene]
    spent: dict[str, list[float]] = {"forward": [], "backward": []}
    for _ in range(times):
        marks = [now(device)]
        out = splat(Splats(*leaves[:4]), leaves[4], cameras)
        marks.append(now(device))
        torch.autograd.grad(out.features.sum() + out.depth.sum() + out.alpha.sum(), leaves)
        marks.append(now(device))
        spent["forward"].append(marks[1] - marks[0])
        spent["backward"].append(marks[2] - marks[1])
    return {
        f"{name}, {count} splats, {size}^2, {what}, ms": 1e3 * statistics.median(each[2:])
        for what, each in spent.items()
    }


def now(device: torch.device) -> float:
    """Seconds, when everything before is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def precision(args: argparse.Namespace) -> dict[str, Any]:
    """The same latents, words and weights in two precisions."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.diffusion.published import random_stable_diffusion

    device = torch.device(args.device)
    half = "float16" if device.type == "cuda" else "bfloat16"

    def mini() -> list[Any]:
        settings = [load("mini", [f"model.dtype={dtype}"]).model for dtype in ("float32", half)]
        return [build.denoiser(chosen, device) for chosen in settings]

    def published() -> list[Any]:
        torch.manual_seed(0)
        exact = random_stable_diffusion(device, torch.float32)
        fast = random_stable_diffusion(device, getattr(torch, half))
        for name in ("unet", "vae", "text_encoder"):
            getattr(fast, name).load_state_dict(getattr(exact, name).state_dict())
        return [exact, fast]

    models: dict[str, Callable[[], list[Any]]] = {"mini": mini}
    if not args.quick:
        models["Stable Diffusion 2.1-base, random weights"] = published
    seen = Together()
    for name, pair in models.items():
        with seen.one(name):
            seen.figures |= half_errors(name, *pair(), device)
    for name, error in seen.figures.items():
        if isinstance(error, float) and not error <= HALF_TOLERANCE:
            seen.bad.append(name)
    return seen.result(f"{half} does not work, or is too far from float32")


def half_errors(name: str, exact: Any, fast: Any, device: torch.device) -> dict[str, float]:
    """Relative error of the fast model's prediction at each of SHARES, in the norm."""
    figures = {}
    rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        z = exact.encode(rgb)
        words = exact.embed([PROMPT])
        for share in SHARES:
            t = torch.tensor([int(share * len(exact.alpha_bar))], device=device)
            a = exact.alpha_bar[t].reshape(-1, 1, 1, 1)
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(device)
            x_t = a.sqrt() * z + (1 - a).sqrt() * noise
            one, two = (m.predict_noise(x_t, t, words) for m in (exact, fast))
            figures[f"{name}, t = {share}"] = float((one - two).norm() / one.norm())
    return figures


def waits(args: argparse.Namespace) -> dict[str, Any]:
    """How often a step waits for the card, and where: what torch says of it
    (torch.cuda.set_sync_debug_mode)."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.trainer import train_step

    if args.device != "cuda":
        return {"left out": "only a card is waited for"}
    small = ["resolution=16", "batch=1"] if args.quick else []
    seen = Together()
    for preset, less in (("mini", ["representation.count=50"]), ("mini_nerf", [])):
        with seen.one(preset):
            settings = [f"prompt={PROMPT}", "device=cuda", *small, *(less if args.quick else [])]
            training = build.training(load(preset, settings))
            train_step(training, 0)  # compiles
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    train_step(training, 1)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            places = Counter(
                f"{Path(one.filename).name}:{one.lineno}"
                for one in said
                if "synchroniz" in str(one.message)
            )
            seen.figures[preset] = {"waits of a step": sum(places.values()), **places}
    return seen.result("a step does not work")


def assets(args: argparse.Namespace) -> dict[str, Any]:
    """Through the command line, as a user does it."""
    from representations.cameras import turntable
    from sdi_gs.artefacts.media import psnr
    from sdi_gs.look import reopen
    from sdi_gs.mini.corpus import DISTANCE, FOV_Y_DEG, SIZE, render_truth

    cameras = turntable(8, 15.0, DISTANCE, FOV_Y_DEG, (SIZE, SIZE))
    truth = render_truth("mug", "red", cameras)

    seen = Together()
    steps = ["--steps", "12"] if args.quick else []
    for preset in ("mini", "mini_nerf"):
        with seen.one(preset), tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            settings = DEFAULTS.format(device=args.device).split()
            began = time.perf_counter()
            run("-m", "sdi_gs", "generate", PROMPT, "--config", preset, "--out", str(out),
                *steps, *settings)  # fmt: skip
            seconds = time.perf_counter() - began
            opened = reopen(out)
            decibels = float(psnr(opened.stage.draw(cameras), truth).mean())
            size = sum(path.stat().st_size for path in opened.run.finals())
            figures = {"seconds": seconds, "psnr_db": decibels, "bytes": size}
            seen.figures[preset] = figures
            if not args.quick and not decibels >= LEAST_DB:
                raise Failed("no recognisable object", figures)
    return seen.result("no asset")


def tests(args: argparse.Namespace) -> dict[str, Any]:
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    where = "tests/representations/test_hash_grid.py" if args.quick else "tests/representations"
    said = run("-m", "pytest", "-q", "-k", "cuda or parity", where)
    return {"pytest": said.strip().splitlines()[-1]}


def scale(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scale.json"
        counted = ["--no-step"] if args.quick else []
        run(str(ROOT / "benchmarks" / "paper_scale.py"), "--out", str(out), *counted)
        report: dict[str, Any] = json.loads(out.read_text())
        return report


def left() -> float:
    """Seconds that are left for everything."""
    return _ends - time.monotonic()


def run(*arguments: str) -> str:
    """A Python program in the root of the project; its output, or Failed with the end of it, and
    where the time is over."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
            timeout=max(1.0, left()) if left() < float("inf") else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        words = " ".join(arguments[:4])
        raise Failed(f"{words} ... was stopped: the time is over (--minutes)", {}) from error
    if done.returncode != 0:
        raise Failed((done.stderr or done.stdout).strip()[-2000:], {"exit": done.returncode})
    return done.stdout


_ends = float("inf")

PARTS: dict[str, Part] = {
    "kernels": kernels,
    "precision": precision,
    "waits": waits,
    "assets": assets,
    "tests": tests,
    "scale": scale,
}


def examine(args: argparse.Namespace) -> dict[str, Any]:
    """Every part, also after one that failed."""
    found: dict[str, Any] = {}
    for name in args.parts.split(","):
        part = PARTS[name]
        if left() <= 0:
            found[name] = {"passed": True, "left_out": LEFT_OUT, "seconds": 0.0}
            print(f"{name:<10} left out: {LEFT_OUT}", flush=True)
            continue
        print(f"{name:<10} ...", flush=True)
        began = time.perf_counter()
        try:
            result = {"passed": True, "figures": part(args)}
        except Failed as failure:
            result = {"passed": False, "why": str(failure), "figures": failure.figures}
        except Exception as error:
            result = {"passed": False, "why": f"{type(error).__name__}: {error}",
                      "traceback": traceback.format_exc()}  # fmt: skip
        result["seconds"] = round(time.perf_counter() - began, 1)
        found[name] = result
        why = "" if result["passed"] else f"  {result['why'].splitlines()[-1]}"
        print(f"{name:<10} {state(result)}, {result['seconds']} s{why}", flush=True)
    return found


def machine_facts(device: str) -> dict[str, str]:
    facts = {"torch": torch.__version__, "python": platform.python_version(),
             "system": platform.platform(), "triton": version("triton"),
             "gsplat": version("gsplat")}  # fmt: skip
    if device == "cuda":
        facts |= card_facts()
    said = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return facts | {"commit": said.stdout.strip() or "unknown"}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def card_facts() -> dict[str, str]:
    """The card, its driver and what it could be compiled for with."""
    from representations.ops import card, toolkit
    from representations.ops.splats import gsplat_state

    first = torch.cuda.get_device_properties(0)
    driver, nvcc = card.driver_version() or 0, toolkit.toolkit()
    library = gsplat_state.compiled()
    return {
        "card": f"{first.name}, {first.total_memory / 2**30:.0f} GiB",
        "capability": f"{first.major}.{first.minor}",
        "cuda": str(torch.version.cuda),
        "driver": f"for CUDA {driver // 1000}.{driver % 1000 // 10}",
        "toolkit": f"{toolkit.version(nvcc)}, {nvcc}" if nvcc else "none",
        "gsplat's kernels": str(library or "not compiled"),
    }


def page(facts: dict[str, str], found: dict[str, Any]) -> str:
    from sdi_gs.pages import render

    def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
        if isinstance(value, dict):
            return [row for key, inner in value.items() for row in flat(inner, f"{name} {key}")]
        if isinstance(value, list):
            return [row for k, inner in enumerate(value) for row in flat(inner, f"{name} {k}")]
        return [(name.strip(), f"{value:.4g}" if isinstance(value, float) else str(value))]

    sections = [
        {
            "heading": f"{name}: {state(result)}, {result['seconds']} s",
            "warning": "" if result["passed"] else result["why"],
            "lines": flat(result.get("figures", {})),
        }
        for name, result in found.items()
    ]
    return render.page(
        "facts", {"title": "gpu-check", "facts": list(facts.items()), "sections": sections}
    )


def state(result: dict[str, Any]) -> str:
    if "left_out" in result:
        return "left out"
    return "passed" if result["passed"] else "FAILED"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="shortened parts")
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything; 0: no limit")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, commas between")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.parts.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"--parts {unknown[0]}: choose from {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu-check: torch {torch.__version__} sees no CUDA card here; --device cpu --quick "
            "shows what it would do, and 'sdi-gs doctor' what is missing",
            file=sys.stderr,
        )
        return 2
    global _ends
    _ends = time.monotonic() + 60 * args.minutes if args.minutes > 0 else float("inf")
    facts = machine_facts(args.device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    found = examine(args)
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"facts": facts, "quick": args.quick, "device": args.device, "parts": found}
    (args.out / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / "gpu_check.html").write_text(page(facts, found))
    print(f"{args.out / 'gpu_check.html'}")
    return 0 if all(result["passed"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
