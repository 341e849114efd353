# SPDX-License-Identifier: Apache-2.0
"""Train mini: ``python -m sdi_gs.mini.train vae``, then ``... unet``, then ``... save``.

Every stage resumes from its last checkpoint, appends its losses to ``losses-STAGE.jsonl`` and
shows progress. The learning rate is constant and falls linearly over the last ``--cooldown``
steps, so a run can be prolonged by asking for more steps before it cools.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import networks
from .data import DataSizes, encode_all, load_corpus, load_half_formed, to_float

WEIGHTS = Path(__file__).parent / "weights"


class Average:
    """Exponential moving average of a module's parameters (what is saved and sampled)."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.decay = decay
        self.modules = modules
        self.shadow = [copy.deepcopy(m).requires_grad_(False).eval() for m in modules]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for module, shadow in zip(self.modules, self.shadow, strict=True):
            for p, s in zip(module.parameters(), shadow.parameters(), strict=True):
                s.lerp_(p, 1.0 - decay)


class Stage:
    """The loop that both networks share: schedule, checkpoint, resume, log, progress."""

    def __init__(self, name: str, modules: list[nn.Module], args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.path = args.cache / f"{name}.pt"
        self.modules = modules
        self.average = Average(modules, 0.999)
        parameters = [p for m in modules for p in m.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3
        )
        self.parameters = parameters
        self.step = 0
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.path, map_location=self.args.device, weights_only=True)
        for module, weights in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(weights)
        for module, weights in zip(self.average.shadow, state["average"], strict=True):
            module.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        print(f"{self.name}: continues from step {self.step}", flush=True)

    def save(self) -> None:
        temporary = self.path.with_suffix(".part")
        torch.save(
            {
                "modules": [m.state_dict() for m in self.modules],
                "average": [m.state_dict() for m in self.average.shadow],
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
            },
            temporary,
        )
        temporary.replace(self.path)

    def _rate(self) -> float:
        left = (self.args.steps - self.step) / max(self.args.cooldown, 1)
        rate: float = self.args.lr * min(1.0, (self.step + 1) / 200, max(left, 0.02))
        return rate

    def run(self, loss_of: Callable[[int], dict[str, Tensor]]) -> None:
        """``loss_of(step)`` returns named scalars; "loss" is the one that is minimised."""
        totals: dict[str, float]
        began, totals, count = time.time(), {}, 0
        while self.step < self.args.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            losses = loss_of(self.step)
            losses["loss"].backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"{self.name}: gradient not finite at step {self.step}")
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.average.update(self.step)
            count += 1
            for key, value in losses.items():
                totals[key] = totals.get(key, 0.0) + float(value.detach())
            if self.step % 50 == 0 or self.step == self.args.steps:
                row: dict[str, float] = {k: v / count for k, v in totals.items()}
                row |= {"step": self.step, "seconds_per_step": (time.time() - began) / count}
                with open(self.args.cache / f"losses-{self.name}.jsonl", "a") as file:
                    file.write(json.dumps(row) + "\n")
                left = row["seconds_per_step"] * (self.args.steps - self.step) / 60
                shown = " ".join(f"{k} {v:.5f}" for k, v in row.items() if k != "step")
                print(f"{self.name} {self.step}/{self.args.steps} {shown} left {left:.0f} min",
                      flush=True)  # fmt: skip
                began, totals, count = time.time(), {}, 0
            if self.step % 250 == 0 or self.step == self.args.steps:
                self.save()


def _step_rng(seed: int, step: int) -> np.random.Generator:
    """A fresh generator per step, so that a resumed run draws what an unbroken one would."""
    return np.random.default_rng([seed, step])


def train_vae(args: argparse.Namespace) -> None:
    corpus = load_corpus(args.cache, args.sizes)
    pool, _ = load_half_formed(args.cache, corpus, args.sizes)
    torch.manual_seed(args.sizes.seed)
    vae = networks.make_vae().to(args.device)
    stage = Stage("vae", [vae], args)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = _step_rng(args.sizes.seed, step)
        torch.manual_seed(step)
        formed = int(0.35 * args.batch)
        images = np.concatenate(
            [
                corpus.images[rng.integers(len(corpus), size=args.batch - formed)],
                pool[rng.integers(len(pool), size=formed)],
            ]
        )
        x = to_float(images).to(args.device) * 2 - 1
        with torch.autocast(args.device.type, dtype=torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = decoded.float() - x
        edge = sum(torch.diff(error, dim=d).square().mean() for d in (2, 3))
        # Nats per latent dimension. A strong pull first makes the latents smooth enough for a
        # small denoiser; a weak one afterwards gives detail and colour back.
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        kl_weight = 1e-3 if step < 2600 else 5e-5
        mse = error.square().mean()
        clean = error[: args.batch - formed].square().mean()
        return {"loss": mse + 0.5 * edge + 0.05 * error.abs().mean() + kl_weight * kl,
                "mse_clean": clean, "mse": mse, "kl": kl}  # fmt: skip

    stage.run(loss_of)


def load_vae(args: argparse.Namespace) -> Any:
    """The averaged VAE with the scaling factor that gives its latents unit deviation."""
    vae = networks.make_vae().to(args.device).eval().requires_grad_(False)
    state = torch.load(args.cache / "vae.pt", map_location=args.device, weights_only=True)
    vae.load_state_dict(state["average"][0])
    images = load_corpus(args.cache, args.sizes).images[::40]
    vae.register_to_config(scaling_factor=1.0)
    latents = encode_all(vae, images, args.device).float()
    vae.register_to_config(scaling_factor=round(float(1.0 / latents.std()), 5))
    return vae


def load_latents(args: argparse.Namespace, vae: Any) -> tuple[Tensor, Tensor]:
    """Latents of the corpus and of the pool, cached beside the VAE that made them."""
    path = args.cache / "latents.pt"
    key = float(vae.config.scaling_factor)
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["key"] == key:
            return state["corpus"], state["pool"]
    corpus = load_corpus(args.cache, args.sizes)
    pool, _ = load_half_formed(args.cache, corpus, args.sizes)
    state = {
        "key": key,
        "corpus": encode_all(vae, corpus.images, args.device),
        "pool": encode_all(vae, pool, args.device),
    }
    torch.save(state, path)
    return state["corpus"], state["pool"]


def half_formed_share(t: Tensor) -> Tensor:
    """Chance that a sample at time ``t`` is half-formed: 0.5 up to t = 500, none from 800."""
    return 0.5 * ((800.0 - t.float()) / 300.0).clamp(0.0, 1.0)


def _alpha_bar() -> Tensor:
    table: Tensor = networks.make_scheduler().alphas_cumprod
    return table


def train_unet(args: argparse.Namespace) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    corpus = load_corpus(args.cache, args.sizes)
    pool, pool_source = load_half_formed(args.cache, corpus, args.sizes)
    plain = plain_borders(pool)
    corpus_latents, pool_latents = load_latents(args, load_vae(args))
    torch.manual_seed(args.sizes.seed)
    tokenizer = networks.make_tokenizer()
    text = networks.make_text_encoder(tokenizer).to(args.device)
    unet = networks.make_unet().to(args.device)
    # The fused attention's backward is many times slower than plain products on some CPUs.
    unet.set_attn_processor(AttnProcessor())
    stage = Stage("unet", [unet, text], args)
    alpha_bar = _alpha_bar().to(args.device)
    half_formed = HalfFormed(pool_latents, pool_source, plain)
    draws = _draw_batches(args, corpus, corpus_latents, half_formed, stage.step)

    def predict(net: Any, encoder: Any, x: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        with torch.autocast(args.device.type, dtype=torch.bfloat16):
            hidden = encoder(ids.input_ids.to(args.device)).last_hidden_state
            eps: Tensor = net(x, t, encoder_hidden_states=hidden).sample.float()
            return eps

    @torch.no_grad()
    def one_step_denoised(z: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        """What score distillation pulls a rendering towards at noisier times than ``t``: the
        model's own one-step estimates. They are the half-formed images that matter most."""
        later = (t + (980 - t) * torch.rand(t.shape)).long().clamp(max=980)
        a = alpha_bar[later].view(-1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * torch.randn_like(z)
        net, encoder = stage.average.shadow
        eps = predict(net, encoder, x, later, captions)
        return ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-4.5, 4.5)

    def loss_of(step: int) -> dict[str, Tensor]:
        z, t, formed, captions = next(draws)
        z, t = z.to(args.device), t.to(args.device)
        if step >= args.self_after:  # replace a share of the pool's pictures by own estimates
            mine = (formed & (torch.rand(t.shape) < 0.4)).nonzero()[:, 0]
            if len(mine):
                words = [captions[i] for i in mine.tolist()]
                z[mine] = one_step_denoised(z[mine], t[mine], words)
        noise = torch.randn_like(z)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        prediction = predict(unet, text, a.sqrt() * z + (1 - a).sqrt() * noise, t, captions)
        error = (prediction - noise).square().mean(dim=(1, 2, 3))
        clean = error[~formed]
        return {"loss": error.mean(), "clean": clean.mean()}

    stage.run(loss_of)


class HalfFormed(NamedTuple):
    """The pool as the UNet sees it."""

    latents: Tensor  # [P, 4, h, w]
    source: np.ndarray  # [P] index of the corpus image whose caption it keeps
    plain: np.ndarray  # indices of those that stand on white


def plain_borders(pool: np.ndarray) -> np.ndarray:
    """Indices of the pool's pictures whose border is white to 4 % on average."""
    border = [pool[:, :, :2], pool[:, :, -2:]]
    sides = [pool[..., :2], pool[..., -2:]]
    dark = sum(255.0 - part.mean(axis=(1, 2, 3)) for part in (*border, *sides)) / 4
    return np.flatnonzero(dark < 0.04 * 255)


def _draw_batches(
    args: argparse.Namespace,
    corpus: Any,
    corpus_latents: Tensor,
    half_formed: HalfFormed,
    first_step: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, list[str]]]:
    """Latents, times, which samples may be half-formed, captions; one batch per step.

    From ``--narrow-after`` on, three quarters of the half-formed pictures stand on white, and half
    of them lose their caption: guidance then leads away from the unfinished.
    """
    step = first_step
    while True:
        rng = _step_rng(args.sizes.seed + 1, step)
        torch.manual_seed(step)
        t = torch.from_numpy(rng.integers(0, 1000, size=args.batch))
        formed = torch.from_numpy(rng.random(args.batch)) < half_formed_share(t)
        index = rng.integers(len(corpus_latents), size=args.batch)
        pool = rng.integers(len(half_formed.latents), size=args.batch)
        narrow = step >= args.narrow_after
        if narrow:
            plain = rng.choice(half_formed.plain, size=args.batch)
            pool = np.where(rng.random(args.batch) < 0.75, plain, pool)
        index = np.where(formed.numpy(), half_formed.source[pool], index)
        z = torch.where(
            formed[:, None, None, None], half_formed.latents[pool], corpus_latents[index]
        ).float()
        captions = corpus.captions(index, rng)
        if narrow:
            silent = formed.numpy() & (rng.random(args.batch) < 0.5)
            captions = ["" if s else c for s, c in zip(silent, captions, strict=True)]
        yield z, t, formed, captions
        step += 1


def save(args: argparse.Namespace) -> None:
    """Write the averaged networks as a diffusers pipeline folder, float16 safetensors."""
    from diffusers import StableDiffusionPipeline

    tokenizer = networks.make_tokenizer()
    text, unet = networks.make_text_encoder(tokenizer), networks.make_unet()
    state = torch.load(args.cache / "unet.pt", map_location="cpu", weights_only=True)
    unet.load_state_dict(state["average"][0])
    text.load_state_dict(state["average"][1])
    StableDiffusionPipeline(
        vae=load_vae(args).half(),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=networks.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(args.out, safe_serialization=True)
    size = sum(p.stat().st_size for p in Path(args.out).rglob("*") if p.is_file())
    print(f"mini: wrote {args.out}, {size / 1e6:.2f} MB, after {state['step']} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "unet", "save"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/mini"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--cooldown", type=int, default=800)
    parser.add_argument("--self-after", type=int, default=2000)
    parser.add_argument("--narrow-after", type=int, default=2750)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    defaults = {"vae": (3800, 16, 1e-3), "unet": (9000, 64, 6e-4), "save": (0, 0, 0.0)}
    for name, value in zip(("steps", "batch", "lr"), defaults[args.stage], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.sizes = DataSizes()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    {"vae": train_vae, "unet": train_unet, "save": save}[args.stage](args)


if __name__ == "__main__":
    main()
