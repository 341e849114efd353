# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a rectified flow, a transformer, and up to three
text encoders, each of which may be missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import parts
from .base import Condition
from .family import OfLatents
from .flow import FlowTable, flow_times
from .folder import ModelError, naming, read_json
from .latents import Autoencoder, require_numbers
from .lora import Place
from .parts import Part
from .plain_layers import join_all
from .source import INDEX, Opened
from .words import Reader, given_away, read_clip_before_last, read_t5

LOG = logging.getLogger(__name__)

TRANSFORMER = Part("transformer", "diffusers", "SD3Transformer2DModel")
TEXTS = (
    Part("text_encoder", "transformers", "CLIPTextModelWithProjection"),
    Part("text_encoder_2", "transformers", "CLIPTextModelWithProjection"),
    Part("text_encoder_3", "transformers", "T5EncoderModel"),
)
CLIP_WORDS = 77  # of a sentence where no CLIP is there to say so
T5_WORDS = 256  # that the model was taught with

Readers = tuple[Reader | None, Reader | None, Reader | None]


class WithCamera(nn.Module):
    """The embedding of time and sentence of a transformer, and of a pose behind the sentence."""

    def __init__(self, inner: Any, camera: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.camera = camera

    def forward(self, time: Tensor, pooled: Tensor) -> Tensor:
        """time [B], pooled [B, width + 16] -> [B, width of the network]"""
        out: Tensor = self.inner(time, pooled[:, :-16])
        beside: Tensor = self.camera(pooled[:, -16:])
        return out + beside


class BesideTime:
    """Where an :class:`SD3Transformer2DModel` learns of the camera; see :class:`~.lora.Place`."""

    def width(self, network: Any) -> int:
        return int(network.time_text_embed.timestep_embedder.linear_2.out_features)

    def put(self, network: Any, camera: nn.Module) -> None:
        network.time_text_embed = WithCamera(network.time_text_embed, camera)


class StableDiffusion3(OfLatents):
    """SD 3 and 3.5 behind the :class:`~sdi_gs.diffusion.base.Denoiser` protocol.

    A condition has ``hidden`` (the words of CLIP, then those of T5) and ``pooled``. A text encoder
    that is missing says zeros: the model was taught with each of them left out at times.
    """

    place: Place = BesideTime()

    def __init__(
        self, transformer: Any, vae: Any, readers: Readers, total: int = 1000, shift: float = 3.0
    ) -> None:
        """``total`` times of the flow, moved towards noise by ``shift``."""
        self.transformer = transformer.eval().requires_grad_(False)
        self.latents = Autoencoder(vae)
        self._readers = tuple(reader and reader.frozen() for reader in readers)
        self.device: torch.device = next(transformer.parameters()).device
        self.total = total
        self.table = FlowTable(flow_times(total, shift)).to(self.device, torch.float32)
        self.alpha_bar: Tensor = self.table.alpha_bar
        self.views_together = 1
        self.image_size = int(transformer.config.sample_size) * self.latents.stride
        self.rows: int | None = None  # network samples asked at once; None: all of a call

    @staticmethod
    def of(found: Opened) -> StableDiffusion3:
        """The model in a folder. ModelError where its files are none."""
        texts = [part for part in TEXTS if _is_there(part.name, found)]
        if not texts:
            raise ModelError(
                f"the model in {found.folder} has no text encoder: at least one of "
                f"{', '.join(part.name for part in TEXTS)} is needed, with its tokenizer"
            )
        words = [part.name.replace("text_encoder", "tokenizer") for part in texts]
        parts.check(
            found,
            ("transformer", "vae", "scheduler", *(part.name for part in texts), *words),
        )
        total, shift = _schedule(found)
        readers: dict[str, Reader] = {}
        for part, name in zip(texts, words, strict=True):
            encoder = parts.network(part, found).to(found.how.device)
            if part is TEXTS[2]:
                readers[part.name] = Reader(parts.t5_tokenizer(name, found, encoder), encoder)
            else:
                readers[part.name] = Reader(parts.clip_tokenizer(name, found, encoder), encoder)
        parts.require_noise_alone(found, "transformer")
        transformer, vae = (parts.network(part, found) for part in (TRANSFORMER, parts.VAE))
        _agree(found, transformer.config, {name: r.encoder.config for name, r in readers.items()})
        networks = {name: reader.encoder for name, reader in readers.items()}
        parts.adapt(found, {"transformer": transformer, **networks})
        for module in (transformer, vae):
            join_all(module.to(found.how.device))
        one, two, three = (readers.get(part.name) for part in TEXTS)
        with naming(f"the model {found.name}"):
            model = StableDiffusion3(transformer, vae, (one, two, three), total, shift)
            model.try_out()
        return model

    @property
    def network(self) -> Any:
        return self.transformer

    @property
    def readers(self) -> tuple[Any, ...]:
        return tuple(reader.encoder for reader in self._readers if reader is not None)

    @torch.no_grad()
    def try_out(self) -> None:
        """Every network once, on a picture as small as they take. ModelError where that makes no
        numbers."""
        small = 2 * self.latents.stride * int(self.transformer.config.patch_size)
        grey = torch.full((1, 3, small, small), 0.5, device=self.device)
        z = self.latents.encode(grey)
        require_numbers("vae", self.decode(z), grey.shape)
        words = self.embed(["a mug"])
        for part in ("hidden", "pooled"):
            require_numbers("text encoders", words[part], words[part].shape)
        t = torch.full((1,), len(self.alpha_bar) // 2, device=self.device)
        require_numbers("transformer", self.predict_noise(z, t, words), z.shape)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        if not self.readers:
            raise given_away()
        config = self.transformer.config
        *clips, t5 = self._readers
        read = [reader and read_clip_before_last(reader, prompts, self.device) for reader in clips]
        known = [one for one in read if one is not None]
        words = known[0].hidden.shape[1] if known else CLIP_WORDS
        said = sum(one.pooled.shape[1] for one in known)
        missing = config.pooled_projection_dim - said  # of the one that is not there
        zeros = torch.zeros(len(prompts), words, missing, device=self.device)
        hidden = [zeros if one is None else one.hidden for one in read]
        pooled = [zeros[:, 0] if one is None else one.pooled for one in read]
        if not known:
            hidden, pooled = [zeros], [zeros[:, 0]]
        wide = torch.cat(hidden, dim=-1)
        wide = F.pad(wide, (0, config.joint_attention_dim - wide.shape[-1]))
        if t5 is None:
            more = wide.new_zeros(len(prompts), T5_WORDS, config.joint_attention_dim)
        else:
            more = read_t5(t5, prompts, self.device, T5_WORDS, masked=False)
        return Condition(
            {"hidden": torch.cat([wide, more], dim=1), "pooled": torch.cat(pooled, dim=1)}
        )

    def forget_words(self) -> None:
        """Free the text encoders: a run embeds its words once."""
        self._readers = (None, None, None)

    def _noise(
        self,
        transformer: Any,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        camera: Tensor | None = None,
    ) -> Tensor:
        dtype = next(transformer.parameters()).dtype
        pooled = condition["pooled"]
        if camera is not None:
            pooled = torch.cat([pooled, camera.to(pooled)], dim=1)

        def velocity(z: Tensor, s: Tensor) -> Tensor:
            out: Tensor = transformer(
                hidden_states=z.to(dtype),
                timestep=s * self.total,
                encoder_hidden_states=condition["hidden"].to(dtype),
                pooled_projections=pooled.to(dtype),
            ).sample
            return out.to(z.dtype)

        return self.table.noise(velocity, x_t, t)


def _is_there(part: str, found: Opened) -> bool:
    """Whether a text encoder is in the folder; a warning where only the index says so."""
    if found.part(part).is_dir():
        return True
    if any(found.index.get(part) or ()):
        LOG.warning(
            "%s names %s, which is not in the folder: the model is told nothing in its place",
            found.folder / INDEX, part,
        )  # fmt: skip
    return False


def _agree(found: Opened, transformer: Any, texts: dict[str, Any]) -> None:
    """ModelError where the transformer was made for other text encoders."""
    t5 = texts.get("text_encoder_3")
    if t5 is not None:
        told = ("transformer", "joint_attention_dim", transformer.joint_attention_dim)
        parts.agree(found, told, ("text_encoder_3", "d_model", t5.d_model))
    clips = [texts[part.name] for part in TEXTS[:2] if part.name in texts]
    if len(clips) == 2:
        told = ("transformer", "pooled_projection_dim", transformer.pooled_projection_dim)
        both = sum(clip.projection_dim for clip in clips)
        parts.agree(
            found, told, ("text_encoder and text_encoder_2", "projection_dim together", both)
        )


def _schedule(found: Opened) -> tuple[int, float]:
    """The number of times and their shift."""
    path = found.part("scheduler") / "scheduler_config.json"
    config = read_json(path)
    if config.get("use_dynamic_shifting"):
        raise ModelError(
            f"{path} has use_dynamic_shifting=true: how far the times of this model move depends "
            "on the size of its pictures, which is not known here; known is a fixed 'shift'"
        )
    return int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0))
