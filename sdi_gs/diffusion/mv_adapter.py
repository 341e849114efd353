# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion and SDXL with MV-Adapter (arXiv 2412.03632) beside them: six views of one shape
at once, from the folder of the model and one file of the adapter's weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import stable, stable_xl
from .base import Condition
from .family import OfLatents
from .folder import ModelError, naming, read_header
from .latents import Prior
from .mv_layers import RayEncoder, RowAttention, features_of, put
from .plain_layers import join_all
from .schedule import less_signal
from .source import Opened
from .stable import StableDiffusion
from .stable_xl import StableDiffusionXL
from .together import nowhere

VIEWS = 6
"""Of a group: the adapters were taught with six, and their authors advise against other numbers."""
NOISE = 8.0
"""How many times less signal for its noise the schedule has at its end under which they were
taught, and are sampled."""
FIRST_OF_SD1 = 768
"""Width of the words of Stable Diffusion 1.x, whose layers are as wide as those of 2.1 and divide
them into other heads."""
PUBLISHED = (
    "mvadapter_t2mv_sd21.safetensors for Stable Diffusion 2.1, mvadapter_t2mv_sdxl.safetensors for "
    "SDXL"
)

_ATTENTION = re.compile(r"^(.*\.attn1)\.processor\.to_(q|k|v|out)_mv\.(.*)$")
_OF_A_PICTURE = re.compile(r"\.to_(q|k|v|out)_ref\.")
_OF_GEOMETRY = re.compile(r"[it]g2mv", re.IGNORECASE)


class Adapted(OfLatents):
    """A family whose network has :class:`~.mv_layers.RayEncoder` as ``rays``, and is told of
    cameras through it. A condition has a part ``camera``, the pose [B, 16], row by row."""

    def seen_from(self, condition: Condition, camera_to_world: Tensor) -> Condition:
        """``condition`` for pictures of those cameras [B, 4, 4]."""
        return Condition({**condition.parts, "camera": camera_to_world.flatten(1).float()})

    def _beside(
        self, network: Any, x_t: Tensor, condition: Condition, camera: Tensor | None
    ) -> dict[str, Any]:
        if camera is None:  # ours, not a copy that learns
            camera = condition.parts.get("camera", nowhere(len(x_t), x_t))
        size = [side * self.latents.stride for side in x_t.shape[-2:]]
        return {"down_intrablock_additional_residuals": features_of(network.rays, camera, size)}


class AdaptedStable(Adapted, StableDiffusion):
    """Stable Diffusion that sees six views at once."""

    def __init__(
        self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any
    ) -> None:
        """``unet`` has the adapter already; see :func:`add`."""
        super().__init__(unet, vae, text_encoder, tokenizer, _noisier(scheduler))
        self.views_together = VIEWS


class AdaptedXL(Adapted, StableDiffusionXL):
    """SDXL that sees six views at once, at three quarters of its own size: 768 pixels."""

    def __init__(
        self, unet: Any, vae: Any, readers: Any, scheduler: Any, zeros_for_empty: bool = True
    ) -> None:
        """``unet`` has the adapter already; see :func:`add`."""
        super().__init__(unet, vae, readers, _noisier(scheduler), zeros_for_empty)
        self.views_together = VIEWS
        self.image_size = self.image_size * 3 // 4


def _noisier(scheduler: Any) -> Any:
    table = less_signal(scheduler.alphas_cumprod, NOISE)
    return SimpleNamespace(alphas_cumprod=table, config=scheduler.config)


def _stable(found: Opened) -> Prior:
    unet, vae, *others = stable.networks(found)
    _load(found, unet, vae)
    return AdaptedStable(unet, vae, *others)


def _xl(found: Opened) -> Prior:
    unet, vae, *others = stable_xl.networks(found)
    _load(found, unet, vae)
    return AdaptedXL(unet, vae, *others)


FAMILIES: dict[str, Callable[[Opened], Prior]] = {
    "StableDiffusionPipeline": _stable,
    "StableDiffusionXLPipeline": _xl,
}
"""By the name of the pipeline of the model that the adapter stands beside."""


def of(found: Opened) -> Prior:
    """The model in a folder with the adapter that is asked for. ModelError where one of them is
    none, or they do not go together."""
    with naming(f"the model {found.name} with its adapter"):
        model = FAMILIES[str(found.index["_class_name"])](found)
        model.try_out()
    return model


def check(found: Opened) -> None:
    """Refuse what cannot be an adapter, or not beside this model, before anything is loaded.
    Raises ModelError with the reason."""
    path, family = _path(found), str(found.index.get("_class_name"))
    if family not in FAMILIES:
        raise ModelError(
            f"model.adapter={path} is for Stable Diffusion 2.1 and SDXL (folders of class "
            f"{' and '.join(FAMILIES)}), and {found.folder} holds a {family}: leave out "
            "model.adapter, or give the folder of one of those as model.source"
        )
    if found.config("unet").get("cross_attention_dim") == FIRST_OF_SD1:
        raise ModelError(
            f"{found.folder} holds a Stable Diffusion 1.x, whose attention has other heads than "
            "the one that MV-Adapter was taught beside: give a folder of Stable Diffusion 2.1 as "
            "model.source, or leave out model.adapter"
        )
    if not path.is_file():
        raise ModelError(f"model.adapter={path} does not exist: give a file, such as {PUBLISHED}")
    if path.suffix != ".safetensors":
        raise ModelError(f"model.adapter={path}: only .safetensors files are read")
    names = read_header(path)
    if any(_OF_A_PICTURE.search(name) for name in names):
        raise ModelError(
            f"model.adapter={path} is an adapter from a picture to views (i2mv): half of its "
            "layers (to_q_ref and others) read a picture that is given, and there is none beside "
            f"the words here: give one from words to views, {PUBLISHED}"
        )
    if _OF_GEOMETRY.search(path.name):
        raise ModelError(
            f"model.adapter={path} is an adapter from a mesh to views (tg2mv, ig2mv), which is "
            "told the positions and normals of its surface instead of cameras: give one from words "
            f"to views, {PUBLISHED}"
        )
    other = [name for name in names if _renamed(name) is None]
    if other or not names:
        raise ModelError(
            f"model.adapter={path} holds {other[0] if other else 'nothing'}, which is no weight of "
            f"MV-Adapter: give {PUBLISHED}"
        )


def _path(found: Opened) -> Path:
    return Path(str(found.how.adapter)).expanduser()


def _renamed(name: str) -> str | None:
    """A weight of the published files by its name here; None where it is none."""
    if name.startswith("adapter."):
        return name.replace("adapter.", "rays.", 1)
    match = _ATTENTION.match(name)
    return match and f"{match[1]}.across.to_{match[2]}.{match[3]}"


def add(unet: Any, vae: Any) -> None:
    """Put the layers of an adapter, with the weights that torch makes, into a UNet; on the device
    that is the default."""
    stride = 2 ** (len(vae.config.block_out_channels) - 1)
    put(unet, RayEncoder.beside(unet.config, stride), VIEWS)


def _load(found: Opened, unet: Any, vae: Any) -> None:
    """Add the adapter to a UNet, with the weights of its file, where and as the UNet is. ModelError
    where they are not those of this UNet, all of them."""
    from safetensors.torch import load_file

    path = _path(found)
    with torch.device("meta"):
        add(unet, vae)
    wanted = {n: p for n, p in unet.state_dict().items() if p.is_meta}
    given = {_renamed(name): (name, tensor) for name, tensor in load_file(path).items()}
    lacking = [name for name in wanted if name not in given]
    wrong = [
        f"{name} of {tuple(tensor.shape)}"
        for ours, (name, tensor) in given.items()
        if ours not in wanted or wanted[str(ours)].shape != tensor.shape
    ]
    if lacking or wrong:
        raise ModelError(
            f"model.adapter={path} does not fit the model in {found.folder}: of its {len(given)} "
            f"weights {len(wrong)} have no place there, or one of another shape, and "
            f"{len(lacking)} are lacking ({', '.join([*wrong, *lacking][:2])}, ...): give "
            f"{PUBLISHED}"
        )
    like = next(p for p in unet.parameters() if not p.is_meta)
    for ours, (name, tensor) in given.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path} has weights that are no numbers, in {name}: copy it again")
        given[ours] = (name, tensor.to(like))
    state = {str(ours): tensor for ours, (_, tensor) in given.items()}
    unet.load_state_dict(state, strict=False, assign=True)
    for module in unet.modules():
        if isinstance(module, RowAttention):
            join_all(module)
