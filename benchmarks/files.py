# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of reading and writing files of splats, beside gsply, gaussforge and plyfile
in the same run.

    python benchmarks/files.py [SPLATS ...]      default 400000; harmonics of degree 3

Each figure is the better of two, each in a process of its own, by the clock and in seconds of a
processor; memory is the peak of the process, of which "nothing" is what the imports alone take.
Packages that are not installed are left out, and so is plyfile by rows for more than 400,000.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import machine

OURS = ("ply", "ply-compressed", "splat", "spz", "gltf-splats", "ksplat")
FOREIGN = ("gsply ply", "gsply ply-compressed", "gsply spz", "gaussforge spz",
           "plyfile by rows ply", "plyfile mapped ply")  # fmt: skip
ENDINGS = {"ply-compressed": "compressed.ply", "gltf-splats": "splats.glb"}


def cloud(count: int):  # type: ignore[no-untyped-def]
    import torch

    from representations.cloud import SplatCloud

    rng = torch.Generator().manual_seed(0)
    return SplatCloud(
        means=torch.randn(count, 3, generator=rng),
        log_scale=torch.randn(count, 3, generator=rng) - 5.0,
        quat_wxyz=torch.randn(count, 4, generator=rng),
        opacity_logit=torch.randn(count, generator=rng) + 3.0,
        sh_dc=torch.randn(count, 3, generator=rng),
        sh_rest=0.1 * torch.randn(count, 15, 3, generator=rng),
    )


def file(folder: Path, kind: str) -> Path:
    return folder / f"a.{ENDINGS.get(kind, kind)}"


def writer(kind: str) -> Callable[..., object]:
    from representations.export import packed, write_ply, write_splat
    from representations.export.gltf_splats import write_gltf_splats
    from representations.export.ksplat import write_ksplat

    return {
        "ply": write_ply, "splat": write_splat, "spz": packed.write_spz,
        "ply-compressed": packed.write_compressed_ply, "gltf-splats": write_gltf_splats,
        "ksplat": write_ksplat,
    }[kind]  # fmt: skip


def write_ours(folder: Path, kind: str) -> Callable[[], object]:
    from representations.reading import read_splats

    held, write = read_splats(file(folder, "ply")).cloud, writer(kind)
    return lambda: write(file(folder, f"out.{ENDINGS.get(kind, kind)}"), held)


def reader(folder: Path, name: str) -> Callable[[], object]:
    path = file(folder, name.split()[-1])
    if name in OURS:
        from representations.reading import read_splats

        return lambda: read_splats(path)
    if name.startswith("gsply"):
        import gsply

        return lambda: (gsply.read_spz if path.suffix == ".spz" else gsply.plyread)(path)
    if name.startswith("gaussforge"):
        import gaussforge

        return lambda: gaussforge.GaussForge().read(path.read_bytes(), "spz")
    from plyfile import PlyData

    def mapped() -> object:
        with path.open("rb") as stream:
            held = PlyData.read(stream, mmap="r" if "mapped" in name else False)
            return held["vertex"].data.copy()  # a map alone has read nothing

    return mapped


def child(folder: Path, act: str, name: str) -> None:
    """Do one thing once; print its seconds, those of a processor, and the peak in MB."""
    import time

    import representations.reading  # noqa: F401  what "nothing" holds

    work: Callable[[], object] = lambda: None  # noqa: E731
    if act == "write":
        work = write_ours(folder, name)
    elif name != "nothing":
        work = reader(folder, name)
    if act == "write" or name.startswith("gsply"):
        work()  # numba loads its kernels
    started, worked = time.perf_counter(), time.process_time()
    kept = work()
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    del kept
    # Not ru_maxrss, in which a child begins with the peak of its parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    print(seconds, processor, peak)


def measured(folder: Path, act: str, name: str) -> list[float] | None:
    """The better of two; None where it cannot be done here."""
    best: list[float] = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(folder), act, name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            print(f"  {act} {name}: {lines[-1] if lines else done.returncode}", file=sys.stderr)
            return None
        found = list(map(float, done.stdout.split()[-3:]))
        best = [min(pair) for pair in zip(best or found, found, strict=True)]
    return best


def main(counts: list[int]) -> None:
    print(f"{machine.cpu_name()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder, held = Path(name), cloud(count)
            for kind in OURS:
                writer(kind)(file(folder, kind), held)
            del held
            print(f"\n{count:,} splats, harmonics of degree 3")
            print(f"{'':24}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}")
            for act, names in (("read", ("nothing", *OURS, *FOREIGN)), ("write", OURS)):
                for kind in names:
                    if "by rows" in kind and count > 400_000:
                        continue
                    found = measured(folder, act, kind)
                    if found is not None:
                        row = f"{found[0]:9.2f}{found[1]:9.2f}{found[2]:9.0f}"
                        print(f"{act + ' ' + kind:24}{row}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        main([int(word) for word in sys.argv[1:]] or [400_000])
