# SPDX-License-Identifier: Apache-2.0
"""The hash encoding on the CPU: numba kernels against plain torch, one table.

    python benchmarks/hash_grid.py [--threads 2] [--repeats 7]

Both look the same random points up in the same table and pull the same gradient back onto it, in
float32, with the same number of threads; that they agree is checked in the same run. "jacobian" is
the look-up with its derivative by position. Random points are the worst case for the caches: those
of a picture lie side by side along rays.
"""

from __future__ import annotations

import os

import machine
from machine import best_of

POINTS = 65_536
# name -> (levels, log2_size, max_resolution, with the jacobian)
ROWS = {
    "16 x 2, 2^19": (16, 19, 4096, False),
    "16 x 2, 2^19, jacobian": (16, 19, 4096, True),
    "8 x 2, 2^16": (8, 16, 256, False),
    "8 x 2, 2^16, jacobian": (8, 16, 256, True),
}
BAR = ("16 x 2, 2^19", 20.0)  # the ratio, forward and backward, that one row must reach


def main() -> None:
    parser = machine.options(__doc__, 7)
    options = parser.parse_args()
    machine.begin(options.threads, options.repeats)

    import torch

    from representations.ops.fields import hash_cpu, hash_grid

    print(
        f"{POINTS} points; ms forward, backward, both\n"
        f"{'':<23} {'torch':>21} {'numba':>21} {'ratio':>6}  agreement"
    )
    for name, (levels, log2_size, max_resolution, jacobian) in ROWS.items():
        spec = hash_grid.HashGridSpec.reaching(max_resolution, levels=levels, log2_size=log2_size)
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(spec.entries, spec.features, generator=generator).requires_grad_()
        x = torch.rand(POINTS, 3, generator=generator)
        pulls = [torch.randn(POINTS, spec.width, generator=generator)]
        if jacobian:
            pulls.append(torch.randn(POINTS, spec.width, 3, generator=generator))

        def forward(module):  # type: ignore[no-untyped-def]
            if jacobian:  # noqa: B023
                return list(module.encode_jacobian(table, x, spec))  # noqa: B023
            return [module.encode(table, x, spec)]  # noqa: B023

        def backward(outputs):  # type: ignore[no-untyped-def]
            return torch.autograd.grad(outputs, table, pulls, retain_graph=True)[0]  # noqa: B023

        times, results = [], []
        for module, repeats in ((hash_grid, options.repeats), (hash_cpu, 3 * options.repeats)):
            outputs = forward(module)
            results.append([*(out.detach() for out in outputs), backward(outputs)])
            times.append(
                (
                    best_of(lambda: forward(module), repeats),  # noqa: B023
                    best_of(lambda: backward(outputs), repeats),  # noqa: B023
                    best_of(lambda: backward(forward(module)), repeats),  # noqa: B023
                )
            )
        error = max(float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True))
        ratio = times[0][2] / times[1][2]
        note = f"{error:.0e} {'ok' if error < 1e-5 else 'DISAGREE'}"
        if name == BAR[0]:
            note += f"; bar {BAR[1]:.0f}x {'reached' if ratio >= BAR[1] else 'MISSED'}"
        columns = " ".join("".join(f"{ms:>7.1f}" for ms in three) for three in times)
        print(f"{name:<23} {columns} {ratio:>6.1f}  {note}")
    print(f"load {os.getloadavg()[0]:.2f} at end")


if __name__ == "__main__":
    main()
