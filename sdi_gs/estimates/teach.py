# SPDX-License-Identifier: Apache-2.0
"""The estimator of mini's world, taught the true depth of the corpus's objects.

``python -m sdi_gs.estimates.teach train --cache DIR``, then ``... save`` and ``... measure``. Half
of its pictures are blurred, faint, noisy or half-formed: so are the shapes that it is asked about
while they are made.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from representations.cameras import orbit

from ..mini.batches import step_rng
from ..mini.corpus import COLORS, DISTANCE, FOV_Y_DEG, KINDS, SIZE, sample_elevation
from ..mini.data import to_float
from ..mini.geometry import depth_of
from ..mini.halfformed import blurred, splat_cloud
from ..mini.render import cast
from ..mini.shapes import Builder
from .agreement import disagreement
from .small import WEIGHTS, Mini, SmallDepth

VIEWS_OF_A_SHAPE = 6


def build(seed: int, shapes: int) -> dict[str, np.ndarray]:
    """Pictures [N, 3, 64, 64] uint8 and their depth [N, 1, 64, 64] float16, of random objects."""
    rng = np.random.default_rng([seed, 404])
    images, depths = [], []
    for kind in KINDS.values():
        for _ in range(shapes):
            builder = Builder(rng)
            kind(builder)
            solid = builder.finish()
            count = VIEWS_OF_A_SHAPE
            cameras = orbit(
                torch.from_numpy(rng.uniform(-180.0, 180.0, count)).float(),
                torch.tensor([sample_elevation(rng) for _ in range(count)]),
                torch.full((count,), DISTANCE),
                torch.full((count,), FOV_Y_DEG),
                (SIZE, SIZE),
            )
            depths.append(depth_of(solid, cameras).numpy().astype(np.float16))
            for view in cast(solid, cameras):
                color = list(COLORS.values())[rng.integers(len(COLORS))]
                images.append((view.paint(solid.palette(color)) * 255 + 0.5).astype(np.uint8))
    return {"images": np.stack(images), "depth": np.concatenate(depths)}


def load(cache: Path, name: str, seed: int, shapes: int) -> dict[str, np.ndarray]:
    """The pictures of that name, built once."""
    path = cache / f"depth_{name}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pictures = build(seed, shapes)
        np.savez(path, images=pictures["images"], depth=pictures["depth"])
    with np.load(path) as data:
        return {key: data[key] for key in data.files}


def unfinished(images: Tensor, rng: torch.Generator) -> Tensor:
    """What shapes look like while they are made: soft, faint, noisy, or behind a few splats."""
    count = len(images)
    strength = torch.rand(count, 1, 1, 1, generator=rng)
    choice = torch.randint(4, (count, 1, 1, 1), generator=rng)
    soft = blurred(images, 0.5 + 2.5 * strength.flatten())
    faint = 1.0 - (1.0 - soft) * (0.4 + 0.6 * strength)
    noisy = images + 0.1 * strength * torch.randn(images.shape, generator=rng)
    behind = torch.stack([_behind_splats(image, rng) for image in images])
    out = torch.where(choice == 0, soft, torch.where(choice == 1, faint, noisy))
    return torch.where(choice == 3, behind, out).clamp(0.0, 1.0)


def _behind_splats(image: Tensor, rng: torch.Generator) -> Tensor:
    palette = image.flatten(1).T
    inside = palette[palette.amin(1) < 0.97]
    rgb, alpha = splat_cloud(12, image.shape[-1], inside, (0.8, 3.0), rng)
    return rgb + (1.0 - alpha) * image


def train(args: argparse.Namespace) -> None:
    """AdamW with a cosine on ``1 - rho``."""
    data = load(args.cache, "train", 0, args.shapes)
    torch.manual_seed(0)
    model, path = SmallDepth(), args.cache / "depth.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    model.train()
    began, shown = time.time(), 0.0
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            cosine = 0.5 + 0.5 * float(np.cos(np.pi * step / args.steps))
            group["lr"] = args.lr * min(1.0, (step + 1) / 100) * max(cosine, 0.01)
        loss = _loss(model, data, args.batch, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        shown += float(loss.detach()) / 100
        if (step + 1) % 100 == 0:
            seconds = (time.time() - began) / (step + 1 - first)
            print(
                f"depth {step + 1}/{args.steps} loss {shown:.4f} {seconds:.3f} s/step", flush=True
            )
            shown = 0.0
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step + 1}, path.with_suffix(".part"))  # fmt: skip
            path.with_suffix(".part").replace(path)


def _loss(model: SmallDepth, data: dict[str, np.ndarray], batch: int, step: int) -> Tensor:
    index = step_rng(404, step).integers(len(data["images"]), size=batch)
    rng = torch.Generator().manual_seed(step)
    images, depth = to_float(data["images"][index]), torch.from_numpy(data["depth"][index]).float()
    half = batch // 2
    images = torch.cat([unfinished(images[:half], rng), images[half:]])
    if step % 2:
        images, depth = images.flip(-1), depth.flip(-1)
    loss: Tensor = disagreement(depth, model(images), (depth > 0).float()).mean()
    return loss


def save(args: argparse.Namespace) -> None:
    """Write the weights, float16."""
    from safetensors.torch import save_file

    state = torch.load(args.cache / "depth.pt", weights_only=True)
    half = {name: value.half().contiguous() for name, value in state["model"].items()}
    save_file(half, args.out)
    args.out.chmod(0o644)
    print(f"depth: wrote {args.out}, {args.out.stat().st_size:,} bytes, {state['step']} steps")


@torch.no_grad()
def measure(args: argparse.Namespace) -> None:
    """On objects of another seed: the correlation, of true pictures and of unfinished ones."""
    data = load(args.cache, "heldout", 1, 8)
    estimator = Mini(torch.device("cpu"), args.out)
    images, depth = to_float(data["images"]), torch.from_numpy(data["depth"]).float()
    cover = (depth > 0).float()
    rng = torch.Generator().manual_seed(5)
    for name, pictures in (("true", images), ("unfinished", unfinished(images, rng))):
        found = torch.cat([estimator(part) for part in pictures.split(64)])
        rho = 1.0 - disagreement(depth, found, cover)
        print(f"{name:10} {len(rho)} pictures: correlation {rho.mean():.3f}, "
              f"a tenth below {rho.quantile(0.1):.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "save", "measure"])
    parser.add_argument("--cache", type=Path, default=Path(".cache/depth"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--shapes", type=int, default=60, help="of each kind, in six views each")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    {"train": train, "save": save, "measure": measure}[args.what](args)


if __name__ == "__main__":
    main()
