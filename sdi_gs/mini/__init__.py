# SPDX-License-Identifier: Apache-2.0
"""mini: a small, real latent text-to-image diffusion model that ships with the package."""

from __future__ import annotations

from pathlib import Path

MINI_DIR = Path(__file__).parent / "weights"
"""The weights, in the folder layout that diffusers reads."""


def words() -> list[str]:
    """Every word that mini was taught."""
    from .corpus import vocabulary

    return vocabulary()


def known_words(prompt: str) -> list[str]:
    """The object and colour words of ``prompt`` that mini was taught, in order."""
    from .corpus import COLORS, KINDS

    cleaned = "".join(c if c.isalnum() else " " for c in prompt.lower())
    return [w for w in cleaned.split() if w in KINDS or w in COLORS]
