# SPDX-License-Identifier: Apache-2.0
"""From the class that a model's ``model_index.json`` names to the denoiser that reads it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from . import mv_adapter, mvdream, parts
from .folder import ModelError, read_json
from .latents import Prior
from .multi_view import MultiView
from .pixel import PixelDiffusion
from .source import INDEX, How, Opened, cached, is_hub_id, opened
from .stable import StableDiffusion
from .stable_3 import StableDiffusion3
from .stable_xl import StableDiffusionXL

FAMILIES: dict[str, Callable[[Opened], Prior]] = {
    "StableDiffusionPipeline": StableDiffusion.of,
    "StableDiffusionXLPipeline": StableDiffusionXL.of,
    "StableDiffusion3Pipeline": StableDiffusion3.of,
    "IFPipeline": PixelDiffusion.of,
    "MultiViewStableDiffusionPipeline": MultiView.of,
    "MVDreamPipeline": mvdream.of,
}
"""By the name of the pipeline that a folder was saved as."""

LOG = logging.getLogger(__name__)

INSTEAD = "use the model that it was made from"
_GUIDED = (
    "the network has learned guidance of its own, so that there is no prediction without words to "
    "compare with, and what it predicts is no score of noisy pictures"
)
DISTILLED = {
    "FluxPipeline": f"{_GUIDED} (FLUX.1-dev), or it was made for few steps (FLUX.1-schnell)",
    "LatentConsistencyModelPipeline": _GUIDED,
}
_FEW_STEPS = re.compile(r"turbo|lightning|schnell|hyper-?sd|\blcm\b|[-_]lcm|lcm[-_]", re.IGNORECASE)


def load_prior(source: str | Path, how: How) -> Prior:
    """The model that ``source`` names, by the family that it is of.

    Raises:
        ModelError: nothing there, a family that is not known here, or parts that do not go together
            or do not load.
    """
    found = opened(source, how)
    family = _family(found)
    _require_scores(found)
    return family(found)


_PARTS = ("unet", "transformer", "vae", "text_encoder")


def look(source: str | Path, how: How) -> str | None:
    """Whether a model is there, without loading or fetching anything: None where it is, else a
    sentence. ModelError where it cannot be."""
    if is_hub_id(str(source)) and cached(str(source)) is None:
        return f"model {source!r} is not in the local cache: a machine's first run fetches it"
    found = opened(source, how)
    _family(found)
    if found.weights is None:
        named = [part for part in _PARTS if any(found.index.get(part) or ())]
        parts.check(found, named)
    return None


def _family(found: Opened) -> Callable[[Opened], Prior]:
    name = str(found.index.get("_class_name"))
    if name in DISTILLED:
        raise ModelError(f"{found.folder} holds a {name}: {DISTILLED[name]}; {INSTEAD}")
    if name not in FAMILIES:
        raise ModelError(
            f"{found.folder / INDEX} names the class {name!r}, which is not known here: known are "
            f"{', '.join(FAMILIES)}. Your own code can make a prior of it: see docs/extend.md"
        )
    if found.how.adapter is not None:
        mv_adapter.check(found)
        return mv_adapter.of
    return FAMILIES[name]


def _require_scores(found: Opened) -> None:
    """Refuse a network that is told the strength of its guidance; warn of one that seems to have
    learned to do with few steps, which nothing in its files says for certain."""
    for part, key in (("unet", "time_cond_proj_dim"), ("transformer", "guidance_embeds")):
        path = found.part(part) / "config.json"
        if path.is_file() and read_json(path).get(key):
            raise ModelError(f"{path} has {key}: {_GUIDED}; {INSTEAD}")
    scheduler = found.part("scheduler") / "scheduler_config.json"
    steps = read_json(scheduler).get("_class_name") if scheduler.is_file() else None
    word = _FEW_STEPS.search(f"{found.name} {found.how.lora or ''}")
    if word or steps in ("LCMScheduler", "TCDScheduler"):
        LOG.warning(
            "%s seems to be made for few steps (%s): what such a network says of a noisy picture "
            "is no score of it, and shapes come out worse; %s",
            found.name, word[0] if word else steps, INSTEAD,
        )  # fmt: skip
