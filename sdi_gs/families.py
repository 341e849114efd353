# SPDX-License-Identifier: Apache-2.0
"""Which settings stand for a representation and a method, where many runs name them by a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .config import REPRESENTATIONS, Config, load
from .errors import UserError, nearest

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
    presets, settings = PRESETS[family], list(settings)
    preset = presets.get(representation, representation)
    if representation in REPRESENTATIONS.table and representation not in presets:
        # Another's representation, in the family's surroundings.
        preset = next(iter(presets.values()))
        settings.insert(0, f"representation.kind={representation}")
    return load(preset, settings, guidance, upper)
