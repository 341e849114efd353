# SPDX-License-Identifier: Apache-2.0
"""A whole model in one ``.safetensors`` file, as other programs keep them: the weights of each part
by the names that diffusers and transformers have for them.

Such a file has no settings and no tokenizers, which come from a folder of the same architecture.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from .folder import ModelError, read_header

NETWORK = ("model.diffusion_model.",)
AUTOENCODER = ("first_stage_model.", "vae.")
CLIP = {
    # by the name of the part: how those begin that are kept as transformers has them
    "text_encoder": (
        "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": ("text_encoders.clip_g.transformer.",),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
}  # fmt: skip
OPEN_CLIP = {
    # and those that are kept as OpenCLIP has them
    "text_encoder": ("cond_stage_model.model.",),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
CONVERTED = {
    "UNet2DConditionModel": "convert_ldm_unet_checkpoint",
    "AutoencoderKL": "convert_ldm_vae_checkpoint",
    "SD3Transformer2DModel": "convert_sd3_transformer_checkpoint_to_diffusers",
}


def weights_of(path: Path, part: str, cls: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a part in ``path``, for the published class ``cls`` with those settings; none
    where the file does not hold that part. ModelError where the file is none."""
    names = list(read_header(path))
    if cls in CONVERTED:
        prefixes = AUTOENCODER if part == "vae" else NETWORK
        found = _chosen(path, names, prefixes)
        if not found:
            return {}
        utils: Any = importlib.import_module("diffusers.loaders.single_file_utils")
        made: dict[str, Tensor] = getattr(utils, CONVERTED[cls])(
            checkpoint=found, config=dict(config)
        )
        return made
    for prefix in CLIP.get(part, ()):
        found = _chosen(path, names, (prefix,))
        if found:
            return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    for prefix in OPEN_CLIP.get(part, ()):
        found = _chosen(path, names, (prefix,))
        if found:
            utils = importlib.import_module("diffusers.loaders.single_file_utils")
            like = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
            opened: dict[str, Tensor] = utils.convert_open_clip_checkpoint(like, found, prefix)
            return opened
    return {}


def renamed_unet(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a UNet by the names of the original code, each with :data:`NETWORK` before it, by
    those of diffusers."""
    utils: Any = importlib.import_module("diffusers.loaders.single_file_utils")
    made: dict[str, Tensor] = utils.convert_ldm_unet_checkpoint(dict(state), dict(config))
    return made


def _chosen(path: Path, names: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import safe_open

    wanted = [name for name in names if name.startswith(prefixes)]
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in wanted}


def require_file(source: str, layout: str | None) -> Path:
    """The file, if it can be read and there is a folder for its settings. ModelError otherwise."""
    path = Path(source).expanduser()
    if path.suffix != ".safetensors":
        raise ModelError(
            f"model.source={source} is a file of another kind: one of .safetensors is read, "
            "together with model.layout=FOLDER, a folder in diffusers layout of the same "
            "architecture, for the settings and the tokenizers"
        )
    if layout is None:
        raise ModelError(
            f"{path} holds weights alone: name a folder in diffusers layout of the same "
            "architecture with model.layout=FOLDER, for the settings and the tokenizers; its "
            "own weights are not needed"
        )
    return path
