# SPDX-License-Identifier: Apache-2.0
"""From the class that a model's ``model_index.json`` names to the denoiser that reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .folder import ModelError
from .latents import Prior
from .pixel import PixelDiffusion
from .source import INDEX, How, Opened, opened
from .stable import StableDiffusion
from .stable_3 import StableDiffusion3
from .stable_xl import StableDiffusionXL

FAMILIES: dict[str, Callable[[Opened], Prior]] = {
    "StableDiffusionPipeline": StableDiffusion.of,
    "StableDiffusionXLPipeline": StableDiffusionXL.of,
    "StableDiffusion3Pipeline": StableDiffusion3.of,
    "IFPipeline": PixelDiffusion.of,
}
"""By the name of the pipeline that a folder was saved as."""


def load_prior(source: str | Path, how: How) -> Prior:
    """The model that ``source`` names, by the family that it is of.

    Raises:
        ModelError: nothing there, a family that is not known here, or parts that do not go together
            or do not load.
    """
    found = opened(source, how)
    name = str(found.index.get("_class_name"))
    if name not in FAMILIES:
        raise ModelError(
            f"{found.folder / INDEX} names the class {name!r}, which is not known here: known are "
            f"{', '.join(FAMILIES)}. Your own code can make a prior of it: see docs/extend.md"
        )
    return FAMILIES[name](found)
