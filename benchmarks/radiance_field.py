# SPDX-License-Identifier: Apache-2.0
"""A radiance field on the CPU: numba kernels against plain torch, part by part and whole.

    python benchmarks/radiance_field.py [--threads 2] [--repeats 5] [--steps 40]

Four views of 64 x 64 pixels with at most 64 samples per ray, the field of ``--config mini_nerf``
at the start of a run (a soft ball), float32, forward and backward, the same number of threads;
that both agree is checked in the same run. "render" is the whole of it: rays, march, encoding with
its derivative by position, heads, normals, compositing, regularisers' channels. Below the table:
the share of each stage in a step of ``sdi-gs generate "a red mug" --config mini_nerf``.
"""

from __future__ import annotations

import os

import machine
from machine import best_of

WARM_UP = 5  # steps: compilation, caches


def main() -> None:
    parser = machine.options(__doc__, 5)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    machine.begin(options.threads, options.repeats)

    parts(options.repeats)
    step_shares(options.steps, options.threads)
    print(f"load {os.getloadavg()[0]:.2f} at end")


def parts(repeats: int) -> None:
    """One row per part: milliseconds of either back-end, forward and backward."""
    import dataclasses

    import torch

    from representations.cameras import orbit, rays
    from representations.instant_ngp import InstantNGPRenderer
    from representations.ops.fields.ray_types import Rays
    from sdi_gs.config import load

    chosen = load("mini_nerf").representation
    angles = (torch.tensor(v) for v in ([20.0, 110.0, 200.0, 290.0], [15.0, 0.0, 30.0, 45.0]))
    cameras = orbit(*angles, torch.full((4,), 3.0), torch.full((4,), 30.0), (64, 64))
    origins, directions = rays(cameras)
    beam = Rays(origins.reshape(-1, 3).contiguous(), directions.reshape(-1, 3).contiguous())
    jitter = torch.zeros(len(beam.origins))
    generator = torch.Generator().manual_seed(0)
    pull = torch.randn(4, 8, 64, 64, generator=generator)
    fields = []
    for backend in ("reference", "cpu"):
        field = InstantNGPRenderer(dataclasses.replace(chosen, backend=backend))
        for step in range(16):
            field.occupancy.update(step, field.field.density, torch.Generator().manual_seed(step))
        fields.append(field)
    slow, fast = fields
    samples = slow.ops.march(beam, slow.occupancy.occupied, slow.march_spec, jitter)
    assert bool((slow.occupancy.occupied == fast.occupancy.occupied).all())
    unit = slow.field._unit(samples.positions(beam))
    sigma = torch.rand(len(samples.ray), generator=generator).requires_grad_()
    values = torch.rand(len(samples.ray), 9, generator=generator).requires_grad_()
    print(
        f"{len(beam.origins):,} rays, {len(samples.ray):,} samples, "
        f"{slow.occupancy.count:,} of {slow.occupancy.occupied.numel():,} cells occupied\n"
        f"{'':<22} {'torch ms':>9} {'numba ms':>9} {'ratio':>6}  agreement"
    )

    def march(field):  # type: ignore[no-untyped-def]
        found = field.ops.march(beam, field.occupancy.occupied, field.march_spec, jitter)
        return [found.start, found.end]

    def encode(field):  # type: ignore[no-untyped-def]
        table = field.field.table
        out = field.ops.encode_jacobian(table, unit, field.field.spec, field.field.active)
        loss = out.features.square().sum() + out.jacobian.square().sum()
        return [out.features, *torch.autograd.grad(loss, [table])]

    def composite(field):  # type: ignore[no-untyped-def]
        out = field.ops.composite(sigma, values, samples, len(beam.origins))
        loss = out.features.square().sum() + out.opacity.square().sum()
        return [out.features, *torch.autograd.grad(loss, [sigma, values])]

    def render(field):  # type: ignore[no-untyped-def]
        field.step = 0  # the same jitter every time
        drawn, _ = field.render(cameras, torch.ones(4, 3))
        picture = torch.cat([drawn.rgb, drawn.alpha, drawn.depth, drawn.normal], dim=1)
        return [picture, *torch.autograd.grad((picture * pull).sum(), [field.field.table])]

    for name, function in (("march (forward)", march), ("encode with jacobian", encode),
                           ("composite", composite), ("render", render)):  # fmt: skip
        results = [[t.detach() for t in function(field)] for field in (slow, fast)]
        error = max(float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True))
        times = [best_of(lambda: function(slow), repeats),  # noqa: B023
                 best_of(lambda: function(fast), 3 * repeats)]  # noqa: B023  # fmt: skip
        note = f"{error:.0e} {'ok' if error < 1e-3 else 'DISAGREE'}"
        print(f"{name:<22} {times[0]:>9.1f} {times[1]:>9.2f} {times[0] / times[1]:>6.1f}  {note}")


def step_shares(steps: int, threads: int) -> None:
    """Where a training step spends its time."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.trainer import train_step

    config = load("mini_nerf", ["prompt=a red mug", f"threads={threads}"])
    training = build.training(config)
    sums: dict[str, float] = {}
    for index in range(steps + WARM_UP):
        report = train_step(training, min(index, config.steps - 1))
        if index >= WARM_UP:
            for stage, seconds in report.seconds.items():
                sums[stage] = sums.get(stage, 0.0) + seconds
    total = sum(sums.values())
    shares = ", ".join(f"{name} {100 * s / total:.0f} %" for name, s in sums.items())
    print(f"a step of mini_nerf: {1e3 * total / steps:.0f} ms; {shares} (mean of {steps} steps)")


if __name__ == "__main__":
    main()
