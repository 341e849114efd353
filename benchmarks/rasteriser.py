# SPDX-License-Identifier: Apache-2.0
"""Splatting on the CPU: numba kernels against plain torch, one table.

    python benchmarks/rasteriser.py [--threads 2] [--repeats 7]

Both draw the same scene, forward and backward, projection and sorting included, in float32, with
the same number of threads; that they agree is checked in the same run. The scene is a ball of
radius 0.8 filled evenly with round splats of opacity 0.2, seen from a distance of 2.5 with a field
of view of 60 degrees.
"""

from __future__ import annotations

import os

import machine
from machine import best_of

ROWS = ((1_000, 64), (4_000, 64), (10_000, 128), (10_000, 256))  # splats, pixels
BAR = ((10_000, 128), 15.0)  # the ratio that one row must reach


def main() -> None:
    parser = machine.options(__doc__, 7)
    options = parser.parse_args()
    machine.begin(options.threads, options.repeats)

    import torch

    from representations.cameras import orbit
    from representations.gaussians import GaussianConfig, InitConfig, initialise
    from representations.ops.splats import SplatOps, Splats, splat_ops

    def draw(ops: SplatOps, splats: Splats, features: torch.Tensor, cameras, pull: torch.Tensor):  # type: ignore[no-untyped-def]
        leaves = [t.detach().clone().requires_grad_() for t in (*splats, features)]
        out = ops.splat(Splats(*leaves[:4]), leaves[4], cameras)
        picture = torch.cat([out.features, out.depth, out.alpha], dim=1)
        return picture, torch.autograd.grad((picture * pull).sum(), leaves)

    print(f"{'splats':>7} {'pixels':>7} {'torch ms':>9} {'numba ms':>9} {'ratio':>6}  agreement")
    for count, size in ROWS:
        cloud = initialise(
            GaussianConfig(count=count, max_count=count, init=InitConfig(radius=0.8, opacity=0.2))
        )
        splats = Splats(
            cloud.means, cloud.quat_wxyz, cloud.log_scale.exp(), cloud.opacity_logit.sigmoid()
        )
        angles = (torch.tensor([v]) for v in (20.0, 15.0, 2.5, 60.0))
        cameras = orbit(*angles, (size, size))
        generator = torch.Generator().manual_seed(0)
        features = torch.rand(1, count, 6, generator=generator)  # colour and normal
        pull = torch.randn(1, 8, size, size, generator=generator)
        slow, fast = splat_ops("cpu", "reference"), splat_ops("cpu", "cpu")

        picture_a, gradients_a = draw(slow, splats, features, cameras, pull)
        picture_b, gradients_b = draw(fast, splats, features, cameras, pull)
        value = float((picture_a - picture_b).detach().abs().max())
        gradient = max(
            float((a - b).norm() / a.norm().clamp(min=1e-12))
            for a, b in zip(gradients_a, gradients_b, strict=True)
            if float(a.norm()) > 1e-3  # round splats have no gradient by rotation
        )
        repeats = options.repeats
        fast_ms = best_of(lambda: draw(fast, splats, features, cameras, pull), 3 * repeats)  # noqa: B023
        slow_ms = best_of(lambda: draw(slow, splats, features, cameras, pull), repeats)  # noqa: B023
        ratio = slow_ms / fast_ms
        agree = value < 2e-2 and gradient < 5e-3
        note = f"value {value:.0e}, gradient {gradient:.0e} {'ok' if agree else 'DISAGREE'}"
        if (count, size) == BAR[0]:
            note += f"; bar {BAR[1]:.0f}x {'reached' if ratio >= BAR[1] else 'MISSED'}"
        print(f"{count:>7} {size:>4}^2 {slow_ms:>9.1f} {fast_ms:>9.2f} {ratio:>6.1f}  {note}")
    print(f"load {os.getloadavg()[0]:.2f} at end")


if __name__ == "__main__":
    main()
