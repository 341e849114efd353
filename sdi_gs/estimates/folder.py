# SPDX-License-Identifier: Apache-2.0
"""Networks that estimate depth from a picture, in the layout of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.folder import ModelError, check_part, loaded, naming, read_json
from ..diffusion.source import is_hub_id
from ..errors import first_line
from .small import Mini, at_size

FOR_EXAMPLE = "depth-anything/Depth-Anything-V2-Small-hf"
"""A network that is known for this."""

FILES = ["*.json", "*.safetensors"]
"""What is fetched of a model of the hub."""

MINI = "mini"
"""The word for the estimator of mini's world, which ships with the package."""

Estimator = Callable[[Tensor], Tensor]
"""Pictures [B, 3, H, W] in [0, 1] -> closeness [B, 1, H, W]: larger is nearer, in any unit."""

SAYS_DISTANCE = {
    "depth_pro": False, "dpt": False, "glpn": True, "tipsv2_dpt": True, "zoedepth": True,
}  # fmt: skip
"""Whether ``predicted_depth`` of these kinds of network is a distance, or closeness up to scale and
offset. Depth Pro's is closeness, for all that it is metric: its processor turns it round. Of the
kinds of Depth Anything their settings say it (``depth_estimation_type``)."""

NEAREST = 1e-3
"""A distance that a network says is taken to be no smaller."""


def closeness_of(said: Tensor, metric: bool) -> Tensor:
    """What a network says as closeness; ``metric``: it says a distance."""
    return 1.0 / said.clamp(min=NEAREST) if metric else said


class DepthNetwork:
    """A network for monocular depth as an :data:`Estimator`; without gradient.

    Args:
        model: an ``AutoModelForDepthEstimation``.
        pictures: what its ``preprocessor_config.json`` says of mean, deviation and size.
        metric: whether it says a distance.
    """

    def __init__(self, model: Any, pictures: dict[str, Any], metric: bool) -> None:
        self.model = model
        self.metric = metric
        like = next(model.parameters())
        mean, std = (pictures.get(key) or [0.5] * 3 for key in ("image_mean", "image_std"))
        self._mean, self._std = (like.new_tensor(x).reshape(1, 3, 1, 1) for x in (mean, std))
        self._size = _side(pictures.get("size"))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        said = at_size(pictures.to(self._mean), self._size, self._said)
        return closeness_of(said, self.metric).to(pictures)

    def _said(self, x: Tensor) -> Tensor:
        said: Tensor = self.model(pixel_values=(x - self._mean) / self._std).predicted_depth
        return said[:, None]


def _side(size: Any) -> tuple[int, int] | None:
    """Height and width that the network wants; None: those of the picture."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    return None


def load(source: str, device: torch.device) -> Estimator:
    """Mini's estimator, or the network of that folder. ValueError where it cannot be had."""
    if source == MINI:
        return Mini(device)
    folder = _found(source)
    from transformers import AutoConfig, AutoModelForDepthEstimation
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def read() -> Any:
        return AutoModelForDepthEstimation.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )

    try:
        with naming(f"the network for depth in {folder}"):
            check_part(folder)
            config = AutoConfig.from_pretrained(folder)
            build = lambda: AutoModelForDepthEstimation.from_config(config)  # noqa: E731
            model = loaded(folder, str(folder), build, read)
            path = folder / "preprocessor_config.json"
            pictures = read_json(path) if path.is_file() else {}
            network = DepthNetwork(
                model.eval().requires_grad_(False).to(device), pictures, _is_metric(config)
            )
            _try_out(network, device)
    except ModelError as error:
        raise ValueError(
            f"estimator.source={source} is no network for monocular depth: "
            f"{str(error).rstrip('.')}. Write mini, or a copy of {FOR_EXAMPLE}"
        ) from error
    return network


def _found(source: str) -> Path:
    """The folder of that name; of a hub id its copy in the hub's cache, fetched where it is not
    there yet. ValueError where there is neither."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        raise ValueError(
            f"estimator.source={source}: no such folder. Write mini, or a folder with config.json, "
            f"model.safetensors and preprocessor_config.json, a copy of {FOR_EXAMPLE} for example"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=FILES))
    except Exception as error:
        raise ValueError(
            f"estimator.source={source} is no folder here, and cannot be fetched as a model of the "
            f"hub ({first_line(error)}): name the folder of a copy, or write mini"
        ) from error


def _is_metric(config: Any) -> bool:
    """ModelError for a kind that is not known: the wrong one would turn faces inwards."""
    said = getattr(config, "depth_estimation_type", None)
    if said is not None:
        return bool(said == "metric")
    if config.model_type not in SAYS_DISTANCE:
        raise ModelError(
            f"whether a network of the kind {config.model_type} says a distance or closeness is "
            f"not known here; known are depth_anything, {', '.join(SAYS_DISTANCE)}"
        )
    return SAYS_DISTANCE[config.model_type]


def _try_out(network: DepthNetwork, device: torch.device) -> None:
    """One picture: what does not go together shows here."""
    seen = network(torch.full((1, 3, 64, 64), 0.5, device=device))
    if seen.shape != (1, 1, 64, 64) or not bool(torch.isfinite(seen).all()):
        raise ModelError(f"a picture becomes {tuple(seen.shape)}, or no numbers: it is damaged")
