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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import networks
from .batches import HalfFormed, batches, loss_weight, plain_borders, step_rng
from .data import DataSizes, encode_all, load_corpus, load_half_formed, to_float

WEIGHTS = Path(__file__).parent / "weights"
OWN_SHARE = 0.4  # of the half-formed samples are the model's own one-step estimates


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
            torch._foreach_lerp_(list(shadow.parameters()), list(module.parameters()), 1.0 - decay)


def published(folder: Path, part: str) -> dict[str, Tensor]:
    """The weights of one network of a saved model, float32."""
    from safetensors.torch import load_file

    (path,) = (folder / part).glob("*.safetensors")
    return {key: value.float() for key, value in load_file(path).items()}


class Stage:
    """The loop that both networks share: schedule, checkpoint, resume, log, progress."""

    def __init__(self, name: str, modules: dict[str, nn.Module], args: argparse.Namespace) -> None:
        """``modules``: the networks by their folder in a saved model."""
        self.name, self.args = name, args
        self.path = args.cache / f"{name}.pt"
        self.modules = list(modules.values())
        if args.init and not self.path.exists():
            for part, module in modules.items():
                module.load_state_dict(published(args.init, part))
        self.average = Average(self.modules, 0.999)
        parameters = [p for m in self.modules for p in m.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
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


def train_vae(args: argparse.Namespace) -> None:
    corpus = load_corpus(args.cache, args.sizes)
    pool, _ = load_half_formed(args.cache, corpus, args.sizes)
    torch.manual_seed(args.sizes.seed)
    vae = networks.make_vae().to(args.device)
    stage = Stage("vae", {"vae": vae}, args)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = step_rng(args.sizes.seed, step)
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
    if not (args.cache / "vae.pt").exists() and args.init:
        vae.load_state_dict(published(args.init, "vae"))
        config = json.loads((args.init / "vae" / "config.json").read_text())
        vae.register_to_config(scaling_factor=config["scaling_factor"])
        return vae
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


def _alpha_bar() -> Tensor:
    table: Tensor = networks.make_scheduler().alphas_cumprod
    return table


def train_unet(args: argparse.Namespace) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    corpus = load_corpus(args.cache, args.sizes)
    pool, pool_source = load_half_formed(args.cache, corpus, args.sizes)
    corpus_latents, pool_latents = load_latents(args, load_vae(args))
    torch.manual_seed(args.sizes.seed)
    tokenizer = networks.make_tokenizer()
    text = networks.make_text_encoder(tokenizer).to(args.device)
    unet = networks.make_unet().to(args.device)
    # The fused attention's backward is many times slower than plain products on some CPUs.
    unet.set_attn_processor(AttnProcessor())
    stage = Stage("unet", {"unet": unet, "text_encoder": text}, args)
    alpha_bar = _alpha_bar().to(args.device)
    weight = loss_weight(alpha_bar)
    half_formed = HalfFormed(pool_latents, pool_source, plain_borders(pool))
    seed = args.sizes.seed + 1
    draws = batches(corpus, corpus_latents, half_formed, args.batch, seed, stage.step)

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
        later = (t + (980 - t) * torch.rand(t.shape, device=t.device)).long().clamp(max=980)
        a = alpha_bar[later].view(-1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * torch.randn_like(z)
        net, encoder = stage.average.shadow
        eps = predict(net, encoder, x, later, captions)
        return ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-4.5, 4.5)

    def loss_of(step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        batch = next(draws)
        z, t = batch.latents.to(args.device), batch.t.to(args.device)
        # A share of the pool's pictures gives way to the model's own estimates.
        mine = (batch.half_formed & (torch.rand(len(t)) < OWN_SHARE)).nonzero()[:, 0]
        if len(mine):
            words = [batch.truth[i] for i in mine.tolist()]
            z[mine] = one_step_denoised(z[mine], t[mine], words)
        noise = torch.randn_like(z)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        error = (predict(unet, text, x, t, batch.captions) - noise).square().mean(dim=(1, 2, 3))
        said = torch.tensor([bool(c) for c in batch.captions], device=args.device)
        return {
            "loss": (weight[t] * error).mean(),
            "captioned": error[said].mean(),
            "captioned_500_up": error[said & (t >= 500)].mean(),
        }

    stage.run(loss_of)


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
    parser.add_argument("--init", type=Path, help="start from this saved model's weights")
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
