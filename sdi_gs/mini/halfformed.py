# SPDX-License-Identifier: Apache-2.0
"""Half-formed images: what a 3D shape looks like while it is being made.

A denoiser that has only seen finished renders is a poor prior for a cloud of splats: DDIM
inversion starts at the clean end of the schedule, where such a picture is far from everything
the model knows, and the noise that it infers there is garbage. Large models are broad by nature;
a small one has to be taught. These pictures are mixed in at low noise only, so that the sharp,
captioned distribution at high noise stays what it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("cloud", "cloud_over_object", "blur", "tint", "average", "speckle")


def blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image [B, 3, H, W] with its own ``sigma`` [B] in pixels; white outside."""
    radius = 12
    x = torch.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x[None] / sigma[:, None].clamp_min(0.05)) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [B, K]
    batch, channels, height, width = image.shape
    flat = F.pad(image - 1.0, (radius,) * 4).reshape(1, batch * channels, height + 2 * radius, -1)
    weight = kernel.repeat_interleave(channels, dim=0)
    flat = F.conv2d(flat, weight[:, None, :, None], groups=batch * channels)
    flat = F.conv2d(flat, weight[:, None, None, :], groups=batch * channels)
    return flat.reshape(batch, channels, height, width) + 1.0


def splat_cloud(
    count: int, size: int, palette: Tensor, radius_px: tuple[float, float], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One random cloud of round splats, composited front to back.

    ``palette`` [P, 3] gives the colours to draw from. Returns rgb premultiplied [3, H, W] and
    alpha [1, H, W]. Positions fall in a ball in the middle of the picture, like an
    initialisation seen by a camera.
    """
    u = torch.rand(count, 8, generator=rng)
    direction = torch.randn(count, 3, generator=rng)
    direction = direction / direction.norm(dim=1, keepdim=True)
    reach = (0.12 + 0.36 * float(torch.rand((), generator=rng))) * size
    position = direction[:, :2] * u[:, :1].pow(1 / 3) * reach + 0.5 * size
    low, high = radius_px
    sigma = low * (high / low) ** u[:, 1]
    opacity = u[:, 2] ** (0.5 + 2.5 * float(torch.rand((), generator=rng)))
    color = palette[(u[:, 3] * len(palette)).long()]
    color = (color + 0.15 * (u[:, 4:7] - 0.5)).clamp(0, 1)
    return composite(position, sigma, opacity, color, size)


def composite(
    position: Tensor, sigma: Tensor, opacity: Tensor, color: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Round splats at ``position`` [n, 2] in pixels with ``sigma`` [n] in pixels, the nearest
    first. Returns rgb premultiplied [3, H, W] and alpha [1, H, W]."""
    axis = torch.arange(size, dtype=torch.float32) + 0.5
    gx = torch.exp(-0.5 * ((axis[None] - position[:, :1]) / sigma[:, None]) ** 2)
    gy = torch.exp(-0.5 * ((axis[None] - position[:, 1:]) / sigma[:, None]) ** 2)
    alpha = (opacity[:, None, None] * gy[:, :, None] * gx[:, None, :]).clamp_max(0.99)
    transmittance = torch.cumprod(1.0 - alpha, dim=0)
    weight = alpha * torch.cat([torch.ones_like(alpha[:1]), transmittance[:-1]])
    return torch.einsum("nhw,nc->chw", weight, color), 1.0 - transmittance[-1:]


def smooth_noise(batch: int, size: int, rng: torch.Generator) -> Tensor:
    """Coloured noise of random grain, [B, 3, H, W], roughly unit amplitude."""
    out = []
    for _ in range(batch):
        grid = int(2 ** float(torch.randint(1, 6, (), generator=rng)))
        coarse = torch.randn(1, 3, grid, grid, generator=rng)
        out.append(F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False))
    return torch.cat(out)


def half_form(images: Tensor, siblings: Tensor, rng: torch.Generator) -> Tensor:
    """Turn finished renders into half-formed ones.

    Args:
        images: [B, 3, H, W] in [0, 1], finished renders.
        siblings: [B, S, 3, H, W], other renders under the same caption (for averages).
        rng: source of every choice.

    Returns: [B, 3, H, W] in [0, 1].
    """
    batch, _, size, _ = images.shape
    out = images.clone()
    kind = torch.randint(len(KINDS), (batch,), generator=rng)
    strength = torch.rand(batch, generator=rng)

    for i in range(batch):
        name = KINDS[int(kind[i])]
        if name in ("cloud", "cloud_over_object"):
            inside = (images[i].amin(dim=0) < 0.97).nonzero()
            if len(inside) and float(torch.rand((), generator=rng)) < 0.7:
                pick = inside[torch.randint(len(inside), (24,), generator=rng)]
                palette = images[i][:, pick[:, 0], pick[:, 1]].T
            else:
                palette = torch.rand(12, 3, generator=rng)
            count = int(10 ** float(1.0 + 1.6 * torch.rand((), generator=rng)))
            rgb, alpha = splat_cloud(count, size, palette, (0.8, 7.0), rng)
            under = torch.ones(3, size, size)
            if name == "cloud_over_object":
                fade = float(strength[i])
                under = images[i] * fade + under * (1 - fade)
                keep = float(torch.rand((), generator=rng))
                rgb, alpha = rgb * keep, alpha * keep
            out[i] = rgb + (1 - alpha) * under
        elif name == "average":
            used = 1 + int(torch.randint(siblings.shape[1], (), generator=rng))
            out[i] = torch.cat([images[i : i + 1], siblings[i, :used]]).mean(dim=0)

    sigma = torch.where(
        kind == KINDS.index("blur"),
        0.4 + 4.0 * strength**1.5,
        torch.where(torch.rand(batch, generator=rng) < 0.4, 1.2 * strength, 0.0 * strength),
    )
    out = blurred(out, sigma)
    noisy = (kind == KINDS.index("tint")) | (torch.rand(batch, generator=rng) < 0.2)
    amplitude = torch.where(noisy, 0.16 * torch.rand(batch, generator=rng), torch.zeros(batch))
    out = out + amplitude[:, None, None, None] * smooth_noise(batch, size, rng)
    grain = torch.where(kind == KINDS.index("speckle"), 0.12 * strength, torch.zeros(batch))
    out = out + grain[:, None, None, None] * torch.randn(out.shape, generator=rng)
    return out.clamp(0.0, 1.0)
