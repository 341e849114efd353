# SPDX-License-Identifier: Apache-2.0
"""Train mini_mv: ``python -m sdi_gs.mini.train_views unet``, then ``... save``.

mini's UNet goes on learning with groups of four views of one shape side by side: attention over
all of them, and the pose of each camera beside the time. VAE and text encoder stay mini's. The run
resumes from its last checkpoint; see :mod:`~sdi_gs.mini.train` for what the two share.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from representations.cameras import camera_to_world, look_at, spherical_to_position

from ..diffusion.together import POSE, poses, see_together
from . import networks
from .batches import HALF_FORMED, SILENT_SHARE, half_formed_share, loss_weight, step_rng
from .corpus import Corpus
from .data import encode_all
from .groups import VIEWS, captions, half_formed_groups, load_groups
from .train import OWN_SHARE, WEIGHTS, Stage, load_vae, published

FOLDER = WEIGHTS.with_name("weights_mv")
SEED = 5


class Groups(NamedTuple):
    """What the UNet learns from."""

    corpus: Corpus
    latents: Tensor  # [G, 4, 4, h, w] of finished groups
    formed: Tensor  # [P, 4, 4, h, w] of half-formed groups
    source: np.ndarray  # [P] the groups whose cameras and captions they keep
    pose: Tensor  # [G, 4, 16]


class Drawn(NamedTuple):
    """A batch of groups."""

    latents: Tensor  # [B, 4, 4, h, w]
    t: Tensor  # [B], the same for the views of a group
    half_formed: Tensor  # [B] bool
    pose: Tensor  # [B, 4, 16]
    captions: list[str]  # 4 B
    truth: list[str]  # the same before half-formed groups lost theirs


def _form(job: tuple[Corpus, np.ndarray, int]) -> np.ndarray:
    torch.set_num_threads(1)
    return half_formed_groups(*job)


def load(args: argparse.Namespace) -> Groups:
    """Groups, half-formed groups, and their latents under mini's VAE; built once."""
    corpus = load_groups(args.cache, args.shapes, args.threads)
    path = args.cache / f"group-latents-{args.shapes}.pt"
    if not path.exists():
        rng = np.random.default_rng([SEED, 77])
        source = rng.integers(len(corpus) // VIEWS, size=len(corpus) // VIEWS)
        jobs = [
            (corpus, part, i) for i, part in enumerate(np.array_split(source, min(32, len(source))))
        ]
        with multiprocessing.get_context("spawn").Pool(args.threads) as pool:
            formed = np.concatenate(pool.map(_form, jobs, chunksize=1))
        vae = load_vae(argparse.Namespace(cache=args.cache, init=WEIGHTS, device=args.device))
        state = {"corpus": encode_all(vae, corpus.images, args.device),
                 "formed": encode_all(vae, formed, args.device),
                 "source": torch.from_numpy(source)}  # fmt: skip
        torch.save(state, path)
    state = torch.load(path, weights_only=True)
    azimuth, elevation = (torch.from_numpy(a) for a in (corpus.azimuth_deg, corpus.elevation_deg))
    position = spherical_to_position(azimuth, elevation, torch.ones_like(azimuth))
    pose = poses(camera_to_world(look_at(position, torch.zeros_like(position))))
    latents, formed = (state[key].unflatten(0, (-1, VIEWS)) for key in ("corpus", "formed"))
    return Groups(corpus, latents, formed, state["source"].numpy(), pose.unflatten(0, (-1, VIEWS)))


def draw(
    groups: Groups, size: int, rng: np.random.Generator, half_formed: float = HALF_FORMED
) -> Drawn:
    """``size`` groups, of which ``half_formed`` are half-formed where the noise is not strong.
    These mostly lose their caption, as in mini's own training."""
    t = torch.from_numpy(rng.integers(0, 1000, size=size))
    formed = torch.from_numpy(rng.random(size)) < half_formed_share(t, half_formed)
    index = rng.integers(len(groups.latents), size=size)
    pick = rng.integers(len(groups.formed), size=size)
    index = np.where(formed.numpy(), groups.source[pick], index)
    which = formed[:, None, None, None, None]
    z = torch.where(which, groups.formed[pick], groups.latents[index]).float()
    truth = [caption for i in index for caption in captions(groups.corpus, int(i), rng)]
    silent = np.repeat(formed.numpy() & (rng.random(size) < SILENT_SHARE), VIEWS)
    said = ["" if s else c for s, c in zip(silent, truth, strict=True)]
    return Drawn(z, t, formed, groups.pose[index], said, truth)


def make_unet(init: Path) -> Any:
    """mini's UNet with a place for poses that says nothing yet, and views that see each other."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    config = {k: v for k, v in networks.make_unet().config.items() if not k.startswith("_")}
    config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": POSE}
    unet: Any = UNet2DConditionModel(**config)
    missing, unexpected = unet.load_state_dict(published(init, "unet"), strict=False)
    if unexpected or any(not name.startswith("class_embedding.") for name in missing):
        raise ValueError(f"{init} holds no UNet like mini's: {missing or unexpected}")
    if missing:
        for parameter in unet.class_embedding.linear_2.parameters():
            torch.nn.init.zeros_(parameter)
    # The fused attention's backward is many times slower than plain products on some CPUs.
    see_together(unet, VIEWS, AttnProcessor())
    return unet


class Lesson:
    """One step of training: the loss of predicting the noise of a batch of groups."""

    def __init__(self, args: argparse.Namespace, groups: Groups, stage: Stage, unet: Any) -> None:
        self.args, self.groups, self.stage, self.unet = args, groups, stage, unet
        self.alpha_bar = networks.make_scheduler().alphas_cumprod.to(args.device)
        self.weight = loss_weight(self.alpha_bar)
        self.tokenizer = networks.make_tokenizer()
        self.text = networks.make_text_encoder(self.tokenizer).to(args.device).eval()
        self.text.load_state_dict(published(WEIGHTS, "text_encoder"))
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def words(self, said: list[str]) -> Tensor:
        """Hidden states [n, tokens, width]; each sentence is read once."""
        for one in set(said) - self.known.keys():
            ids = self.tokenizer(one, padding="max_length", truncation=True, return_tensors="pt")
            read = self.text(ids.input_ids.to(self.args.device)).last_hidden_state
            self.known[one] = read[0]
        return torch.stack([self.known[one] for one in said])

    def predict(self, net: Any, x: Tensor, t: Tensor, said: list[str], pose: Tensor) -> Tensor:
        """Noise [B, 4, c, h, w] of x [B, 4, c, h, w] at t [B]."""
        rows = t.repeat_interleave(VIEWS)
        hidden = self.words(said)
        with torch.autocast(self.args.device.type, dtype=torch.bfloat16):
            out = net(x.flatten(0, 1), rows, encoder_hidden_states=hidden,
                      class_labels=pose.flatten(0, 1)).sample  # fmt: skip
        eps: Tensor = out.float().unflatten(0, (-1, VIEWS))
        return eps

    @torch.no_grad()
    def estimates(self, z: Tensor, t: Tensor, said: list[str], pose: Tensor) -> Tensor:
        """The model's own one-step estimates from noisier times, as distillation shows it."""
        later = (t + (980 - t) * torch.rand(t.shape, device=t.device)).long().clamp(max=980)
        a = self.alpha_bar[later].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * torch.randn_like(z)
        eps = self.predict(self.stage.average.shadow[0], x, later, said, pose)
        x0: Tensor = (x - (1 - a).sqrt() * eps) / a.sqrt()
        return x0.clamp(-4.5, 4.5)

    def __call__(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        rng = step_rng(SEED, step)
        drawn = draw(self.groups, self.args.batch, rng, self.args.half_formed)
        z, t, pose = (each.to(self.args.device) for each in (drawn.latents, drawn.t, drawn.pose))
        mine = (drawn.half_formed & (torch.rand(len(t)) < OWN_SHARE)).nonzero()[:, 0]
        if len(mine):
            said = [drawn.truth[VIEWS * i + k] for i in mine.tolist() for k in range(VIEWS)]
            z[mine] = self.estimates(z[mine], t[mine], said, pose[mine])
        noise = torch.randn_like(z)
        a = self.alpha_bar[t].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        error = self.predict(self.unet, x, t, drawn.captions, pose) - noise
        error = error.square().mean(dim=(1, 2, 3, 4))
        told = torch.tensor([bool(c) for c in drawn.captions[::VIEWS]], device=z.device)
        return {
            "loss": (self.weight[t] * error).mean(),
            "captioned": error[told].mean() if told.any() else error.mean(),
        }


def train_unet(args: argparse.Namespace) -> None:
    groups = load(args)
    unet = make_unet(args.init).to(args.device)
    args.init = None  # what is there was taken
    stage = Stage("unet_mv", {"unet": unet}, args)
    stage.run(Lesson(args, groups, stage, unet))


def save(args: argparse.Namespace) -> None:
    """Write the averaged UNet, float16. The other parts are mini's, in the folder beside it."""
    unet = make_unet(args.init)
    state = torch.load(args.cache / "unet_mv.pt", map_location="cpu", weights_only=True)
    unet.load_state_dict(state["average"][0])
    unet.half().save_pretrained(args.out / "unet", safe_serialization=True)
    index = json.loads((WEIGHTS / "model_index.json").read_text())
    index |= {"_class_name": "MultiViewStableDiffusionPipeline", "views_together": VIEWS}
    index["parts_from"] = f"../{WEIGHTS.name}"  # all but the UNet
    (args.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"mini_mv: wrote {args.out} after {state['step']} steps")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("unet", "save"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/mini"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--init", type=Path, default=WEIGHTS, help="whose UNet goes on")
    parser.add_argument("--shapes", type=int, default=100, help="of each kind")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8, help="groups of four")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--cooldown", type=int, default=1000)
    parser.add_argument("--half-formed", type=float, default=HALF_FORMED, help="largest share")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    return parser


def main() -> None:
    args = parser().parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    {"unet": train_unet, "save": save}[args.stage](args)


if __name__ == "__main__":
    main()
