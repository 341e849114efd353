# SPDX-License-Identifier: Apache-2.0
"""MVDream in a folder of the class ``MVDreamPipeline``, as its published conversions are.

Such a folder brings a network of a class of its own, as a program. That is not run: the network is
Stable Diffusion's UNet with the poses of cameras beside the time, its weights under the names of
the original code, and is read as such. Its world has the front towards -y.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import parts, plain_unet
from .folder import ModelError, loaded, naming
from .multi_view import MultiView
from .single_file import NETWORK, renamed_unet
from .source import REMEDY, Opened
from .stable import networks
from .together import POSE
from .weights import weights

VIEWS = 4
_WORLD = torch.tensor(
    [[0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)  # from ours, where the front is towards +x
_KNOWN = {
    # settings of the original code that change the arithmetic, as they are known here
    "camera_dim": (POSE,),
    "conv_resample": (True,),
    "dims": (2,),
    "dropout": (0, 0.0),
    "ip_dim": (0,),
    "n_embed": (None,),
    "num_classes": (None,),
    "resblock_updown": (False,),
    "use_scale_shift_norm": (False,),
    "disable_self_attentions": (None,),
    "num_attention_blocks": (None,),
    "disable_middle_self_attn": (False,),
    "adm_in_channels": (None,),
}
_NUMBERS = ("image_size", "in_channels", "out_channels", "model_channels", "num_res_blocks",
            "context_dim")  # fmt: skip


def of(found: Opened) -> MultiView:
    """The model in a folder. ModelError where it is none, or one that is told a picture."""
    config = settings(found.config("unet"), str(found.folder / "unet" / "config.json"))
    with naming(f"the model {found.name}"):
        model = MultiView(*networks(found, _network(found, config)), VIEWS, _WORLD)
        model.try_out()
    return model


def settings(raw: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The settings of a ``UNet2DConditionModel`` of the same arithmetic. ModelError for those that
    have none."""
    for key, allowed in _KNOWN.items():
        if key in raw and raw[key] not in allowed:
            why = ": a model that is told a picture beside the words" if key == "ip_dim" else ""
            raise ModelError(f"{path} has {key}={raw[key]!r}, which is not known here{why}")
    numbers = {key: raw.get(key) for key in _NUMBERS}
    shares, at = raw.get("channel_mult"), raw.get("attention_resolutions")
    if any(not isinstance(v, int) or v < 1 for v in numbers.values()) or not shares or not at:
        raise ModelError(
            f"{path} does not say all of {', '.join(_NUMBERS)}, channel_mult and "
            "attention_resolutions: it is no network of MVDream's"
        )
    widths = [int(raw["model_channels"] * share) for share in shares]
    seen = [2**i in at for i in range(len(widths))]
    each = raw.get("num_head_channels", -1)
    heads = [w // each if each > 0 else raw["num_heads"] for w in widths]
    return {
        "sample_size": raw["image_size"],
        "in_channels": raw["in_channels"],
        "out_channels": raw["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": raw["num_res_blocks"],
        "down_block_types": [plain_unet.DOWN[int(s)] for s in seen],
        "up_block_types": [plain_unet.UP[int(s)] for s in reversed(seen)],
        "attention_head_dim": heads,
        "cross_attention_dim": raw["context_dim"],
        "transformer_layers_per_block": raw.get("transformer_depth", 1),
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": raw.get("camera_dim", POSE),
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }


def _network(found: Opened, config: Mapping[str, Any]) -> nn.Module:
    """The UNet, by the arithmetic of this package or by diffusers' class."""
    own = found.part("unet")
    with naming(f"the unet of the model in {found.folder}", REMEDY):
        source = weights("unet", "diffusion_pytorch_model", "UNet2DConditionModel", found)

        def build() -> nn.Module:
            if found.how.engine != "diffusers":
                return plain_unet.PlainUNet(config)
            from diffusers import UNet2DConditionModel

            made: nn.Module = UNet2DConditionModel(**config)
            return made

        def load() -> tuple[nn.Module, dict[str, Any]]:
            state = renamed_unet(dict(_original(source.files)), config)
            dtype = found.how.torch_dtype
            return parts.filled(build, {name: tensor.to(dtype) for name, tensor in state.items()})

        network: nn.Module = loaded(own, str(own), build, load)
        return network


def _original(files: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights by the names of the original code, the embedding of poses by that of a class."""
    from safetensors.torch import load_file

    for path in files:
        for name, tensor in load_file(path).items():
            bare = name.removeprefix(NETWORK[0]).replace("camera_embed.", "label_emb.0.")
            yield NETWORK[0] + bare, tensor
