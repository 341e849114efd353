# SPDX-License-Identifier: Apache-2.0
"""Low-rank weights from a file (arXiv 2106.09685), added to the networks that they were made for.

``W + scale * (alpha / rank) * up @ down`` takes the place of W: afterwards the model is as fast as
before. The names of diffusers, of peft and of kohya's programs are known, those that count blocks
as the first Stable Diffusion did among them. A weight that belongs nowhere is refused: half of a
LoRA is another picture.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .folder import ModelError, naming, read_header

PREFIXES = {
    # how a file begins the names of what belongs to a part
    "lora_unet_": "unet", "lora_transformer_": "transformer", "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3",
    "unet.": "unet", "transformer.": "transformer", "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3",
}  # fmt: skip
ROLES = (
    # how a file ends the name of a weight; the first that fits
    (r"\.lora_A(\.default)?\.weight$", "down"), (r"\.lora_B(\.default)?\.weight$", "up"),
    (r"\.lora\.down\.weight$", "down"), (r"\.lora\.up\.weight$", "up"),
    (r"\.lora_linear_layer\.down\.weight$", "down"), (r"\.lora_linear_layer\.up\.weight$", "up"),
    (r"\.lora_down\.weight$", "down"), (r"\.lora_up\.weight$", "up"),
    (r"_lora\.down\.weight$", "down"), (r"_lora\.up\.weight$", "up"), (r"\.alpha$", "alpha"),
)  # fmt: skip
LAYERS = {
    # of a residual block of the first Stable Diffusion
    "in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}  # fmt: skip


class Place(NamedTuple):
    """A layer of a part, by its name without dots."""

    part: str
    layer: str


def merge(
    path: Path, scale: float, networks: Mapping[str, Any], layers_per_block: int | Sequence[int] = 2
) -> int:
    """Add what ``path`` holds, times ``scale``, to ``networks`` (by the name of their part); how
    many layers it has changed. ``layers_per_block``: of the UNet, which tells its blocks apart.

    Raises:
        ModelError: no LoRA, one of another model, or of a kind that is no product of two matrices.
    """
    found = _read(path)
    if not found:
        raise ModelError(f"{path} holds no low-rank weights (lora_A and lora_B, or up and down)")
    alphas = _alphas_of_metadata(path)
    layers = {part: _by_flat_name(network) for part, network in networks.items()}
    if not isinstance(layers_per_block, int):
        layers_per_block = layers_per_block[0]
    lost = []
    for place, weights in found.items():
        names = (place.layer, _of_blocks(place.layer, layers_per_block))
        known = layers.get(place.part, {})
        module = next((known[name] for name in names if name in known), None)
        if module is None or weights.keys() - {"alpha"} != {"up", "down"}:
            lost.append(f"{place.part}: {place.layer}")
        else:
            alpha = weights.get("alpha", alphas.get(place.part))
            with naming(f"{path}, {place.layer} of the {place.part},"):
                _add(module, weights["up"], weights["down"], alpha, scale)
    if lost:
        raise ModelError(
            f"{path} changes {len(found)} layers, of which {len(lost)} are not in this model "
            f"({lost[0]}, ...): it was made for another one, or trained something else; the parts "
            f"of this one are {', '.join(networks)}"
        )
    return len(found)


def _read(path: Path) -> dict[Place, dict[str, Tensor]]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"model.lora={path} does not exist: give a .safetensors file")
    if path.suffix != ".safetensors":
        raise ModelError(f"model.lora={path}: only .safetensors files are read")
    read_header(path)
    found: dict[Place, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        place, role = _place_of(name, path)
        found.setdefault(place, {})[role] = tensor
    return found


def _place_of(name: str, path: Path) -> tuple[Place, str]:
    for ending, role in ROLES:
        short = re.sub(ending, "", name)
        if short == name:
            continue
        short = short.removeprefix("base_model.model.")
        prefix = max((p for p in PREFIXES if short.startswith(p)), key=len, default="")
        layer = short.removeprefix(prefix).replace(".processor.", ".").replace(".", "_")
        layer = layer.removeprefix("text_model_")
        if ".processor." in short and layer.endswith("_to_out"):
            layer += "_0"
        return Place(PREFIXES.get(prefix, "unet"), layer), role
    raise ModelError(
        f"{path} holds {name}, which is no part of a LoRA of two matrices (LoHa, LoKr, DoRA and "
        "others are not read)"
    )


def _alphas_of_metadata(path: Path) -> dict[str, Tensor]:
    """alpha of each part, where diffusers wrote it beside the weights."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    text = header.get("__metadata__", {}).get("lora_adapter_metadata")
    told = json.loads(text) if text else {}
    return {
        key.rpartition(".")[0]: torch.tensor(float(value))
        for key, value in told.items()
        if key.endswith(".lora_alpha")
    }


def _by_flat_name(network: Any) -> dict[str, nn.Module]:
    def named() -> Iterator[tuple[str, nn.Module]]:
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                yield name.replace(".", "_").removeprefix("text_model_"), module

    return dict(named())


def _of_blocks(layer: str, per_block: int) -> str:
    """The name that diffusers has for a layer whose block the first Stable Diffusion counts."""
    match = re.match(r"(input_blocks|output_blocks|middle_block)_(\d+)_(?:(\d+)_)?(.*)", layer)
    if match is None:
        return layer
    kind, first, second, rest = match[1], int(match[2]), match[3], match[4]
    if kind == "middle_block":
        rest = f"{second}_{rest}" if second is not None else rest
        where = (
            f"mid_block_attentions_0_{rest}" if first == 1 else f"mid_block_resnets_{first // 2}"
        )
        return where if first == 1 else f"{where}_{LAYERS.get(rest, rest)}"
    side = "down" if kind == "input_blocks" else "up"
    block, k = divmod(first - 1 if side == "down" else first, per_block + 1)
    if rest == "op":
        return f"down_blocks_{block}_downsamplers_0_conv"
    if rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    if second == "0":
        return f"{side}_blocks_{block}_resnets_{k}_{LAYERS.get(rest, rest)}"
    return f"{side}_blocks_{block}_attentions_{k}_{rest}"


@torch.no_grad()
def _add(module: Any, up: Tensor, down: Tensor, alpha: Tensor | None, scale: float) -> None:
    """Onto a linear layer or a convolution; the sum is made in float32."""
    rank = down.shape[0]
    strength = scale * (1.0 if alpha is None else float(alpha) / rank)
    delta = up.float().flatten(1) @ down.float().flatten(1)
    weight = module.weight
    if delta.numel() != weight.numel() or up.shape[0] != weight.shape[0]:
        raise ValueError(
            f"it has {tuple(up.shape)} x {tuple(down.shape)} for a layer of {tuple(weight.shape)}"
        )
    weight.copy_((weight.float() + strength * delta.reshape(weight.shape)).to(weight.dtype))
