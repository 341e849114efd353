# SPDX-License-Identifier: Apache-2.0
"""Which settings stand for a representation and a method, where many runs name them by a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .config import REPRESENTATIONS, Config, load
from .errors import UserError, nearest
from .origin import Origin, origin_of

PRESETS = {
    "mini": {"gaussians": "mini", "instant_ngp": "mini_nerf"},
    "sdi": {"gaussians": "sdi_gaussians", "instant_ngp": "sdi_nerf"},
}
"""Which preset holds a representation, by family; any other preset or file goes by its name."""


def require_family(family: str) -> None:
    """UserError for a family that there is not."""
    if family not in PRESETS:
        raise UserError(f"family={family}: {nearest(family, PRESETS)}")


def configure(
    family: str,
    representation: str,
    guidance: str,
    settings: Sequence[str],
    upper: Mapping[str, Any],
) -> Config:
    """The settings of one of many runs: a representation, preset or file by its word, with a
    method, ``key=value`` settings and plain data over all. UserError for anything that no run could
    use."""
    require_family(family)
    settings = list(settings)
    if _foreign(family, representation):
        settings.insert(0, f"representation.kind={representation}")
    return load(_preset(family, representation), settings, guidance, upper)


def made_of(family: str, representation: str, guidance: str) -> Origin | None:
    """What the settings of such a run are made of, before its own are laid over them."""
    return origin_of(_preset(family, representation), guidance)


def _foreign(family: str, representation: str) -> bool:
    """Whether it is another's representation, in the family's surroundings."""
    return representation in REPRESENTATIONS.table and representation not in PRESETS[family]


def _preset(family: str, representation: str) -> str:
    presets = PRESETS[family]
    if _foreign(family, representation):
        return next(iter(presets.values()))
    return presets.get(representation, representation)
