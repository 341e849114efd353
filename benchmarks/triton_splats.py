# SPDX-License-Identifier: Apache-2.0
"""What can be known of the speed of our splat kernels without a card: they are compiled for each
kind of card, and counted is what they need of one.

    python benchmarks/triton_splats.py [--capabilities 75,80,90] [--sweep]

registers, spilled bytes and shared memory are the assembler's; occupancy is the share of a
multiprocessor's warps that can be resident with them. instructions is the length of the loop over
the list of a tile, of all its warps, per splat: what a multiprocessor has to issue for one splat in
one tile of 16 x 16 pixels, waiting not included. ``--sweep`` tries other group sizes and numbers of
warps of the rasteriser.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# Kernels are compiled here, never interpreted; asked when Triton is imported.
os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).parents[1]))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from representations.ops.splats import (
    triton_project,
    triton_raster,
    triton_splats,
    triton_tiles,
)

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
CHANNELS = 8  # three of colour, three of a normal and the depth, rounded up
WHOLE = {"starts": "*i64", "offsets": "*i64", "counts": "*i64", "keys": "*i64"} | dict.fromkeys(
    ("ids", "radii", "latest", "splats"), "*i32"
)


class Card(NamedTuple):
    """What a multiprocessor has (CUDA C++ Programming Guide, compute capabilities)."""

    warps: int
    programs: int
    shared_kib: int


CARDS = {
    75: Card(32, 16, 64), 80: Card(64, 32, 164), 86: Card(48, 16, 100), 89: Card(48, 24, 100),
    90: Card(64, 32, 228), 100: Card(64, 32, 228), 120: Card(48, 24, 100),
}  # fmt: skip
REGISTERS = 65536  # of a multiprocessor of each of them; given to warps by 256


class Variant(NamedTuple):
    """A kernel with its constants."""

    name: str
    kernel: Any
    warps: int
    constants: dict[str, Any]
    group: int = 0  # splats of one turn of its loop; 0 = no such loop


class Counted(NamedTuple):
    """What a compiled kernel needs."""

    registers: int
    spilled: int  # bytes per thread
    shared: int  # bytes per program
    occupancy: float
    instructions: float | None  # per splat and tile, of all warps


def raster(kind: str, kernel: Any, channels: int, group: int, warps: int) -> Variant:
    """A kernel of the rasteriser."""
    constants = {"CHANNELS": channels, "SPLATS": group, "TILE": triton_splats.TILE}
    name = f"{kind}, {channels} channels, {group} splats, {warps} warps"
    return Variant(name, kernel, warps, constants, group)


def shipped(channels: tuple[int, ...] = (4, CHANNELS, 16)) -> list[Variant]:
    """The kernels as they are launched."""
    lanes, tile = triton_splats.LANES, triton_splats.TILE
    listing = {"TILE": tile, "BLOCK": triton_splats.LIST_LANES}
    found = [
        Variant("projection", triton_project.project_forward, 4, {"BLOCK": lanes}),
        Variant("projection, backward", triton_project.project_backward, 4, {"BLOCK": lanes}),
        Variant("tiles, counted", triton_tiles.deal_out, 1, {"WRITE": False, **listing}),
        Variant("tiles, written", triton_tiles.deal_out, 1, {"WRITE": True, **listing}),
    ]
    for kind, kernel, how in (
        ("picture", triton_raster.raster_forward, triton_splats.FORWARD),
        ("picture, backward", triton_raster.raster_backward, triton_splats.BACKWARD),
    ):
        shape = (how["SPLATS"], how["num_warps"])
        found += [raster(kind, kernel, count, *shape) for count in channels]
    return found


def sweep() -> list[Variant]:
    """The rasteriser in other shapes."""
    kernels = {
        "picture": triton_raster.raster_forward,
        "picture, backward": triton_raster.raster_backward,
    }
    return [
        raster(kind, kernel, CHANNELS, group, warps)
        for kind, kernel in kernels.items()
        for group in (1, 2, 4, 8)
        for warps in (1, 2, 4, 8)
    ]


def compiled(variant: Variant, capability: int) -> Any:
    """Machine code of a kernel for a compute capability (90 is 9.0), as Triton has it."""
    names = variant.kernel.arg_names
    pointers = [(i, name) for i, name in enumerate(names) if name.endswith("_ptr")]
    signature = {name: "constexpr" if name.isupper() else "i32" for name in names}
    signature |= {name: WHOLE.get(name.removesuffix("_ptr"), "*fp32") for _, name in pointers}
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        # Memory from torch begins at multiples of 16 bytes.
        attrs={(i,): [["tt.divisibility", 16]] for i, _ in pointers},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": variant.warps})


def counted(variant: Variant, made: Any, capability: int) -> Counted:
    """Read the machine code with the tools that Triton brings."""
    used = _tool("--dump-resource-usage", made)
    figures = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", used)}
    registers, shared = figures["REG"], made.metadata.shared
    loop = _loop(_tool("-sass", made)) if variant.group else None
    return Counted(
        registers,
        figures["STACK"] + figures["LOCAL"],
        shared,
        _occupancy(registers, shared, variant.warps, CARDS[capability]),
        loop and loop * variant.warps / variant.group,
    )


def _tool(option: str, made: Any) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        done = subprocess.run(
            [program, option, file.name], capture_output=True, text=True, check=True
        )
    return done.stdout


def _occupancy(registers: int, shared: int, warps: int, card: Card) -> float:
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = card.shared_kib * 1024 // (shared + 1024)  # the system takes one of its own
    programs = min(by_registers, by_shared, card.warps // warps, card.programs)
    return programs * warps / card.warps


def _loop(assembly: str) -> int | None:
    """Instructions of the longest loop: from a jump back to where it goes."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", assembly)
    back = []
    for at, line in lines:
        to = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", line)
        if to and int(to.group(1), 16) < int(at, 16):
            back.append((int(at, 16) - int(to.group(1), 16)) // 16 + 1)
    return max(back, default=None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capabilities", default=",".join(map(str, CAPABILITIES)))
    parser.add_argument("--sweep", action="store_true", help="other shapes of the rasteriser")
    args = parser.parse_args(arguments)
    print(f"Triton {triton.__version__}\n")
    print("| card | kernel | registers | spilled | shared | occupancy | instructions |")
    print("|---|---|---|---|---|---|---|")
    for capability in map(int, args.capabilities.split(",")):
        for variant in sweep() if args.sweep else shipped():
            n = counted(variant, compiled(variant, capability), capability)
            length = "" if n.instructions is None else f"{n.instructions:.0f}"
            print(
                f"| {capability / 10:.1f} | {variant.name} | {n.registers} | {n.spilled} "
                f"| {n.shared} | {n.occupancy:.0%} | {length} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
