# SPDX-License-Identifier: Apache-2.0
"""mini: a small, real latent text-to-image diffusion model that ships with the package."""

from __future__ import annotations

from pathlib import Path

MINI_DIR = Path(__file__).parent / "weights"
"""The weights, in the folder layout that diffusers reads."""

FOLDERS = {"mini": MINI_DIR, "mini_mv": MINI_DIR.with_name("weights_mv")}
"""The models that ship with the package. mini_mv takes what is not its own from mini's folder."""


def words() -> list[str]:
    """Every word that mini was taught."""
    from .corpus import vocabulary

    return vocabulary()


def kinds() -> list[str]:
    """The objects that mini was taught, in the order of the alphabet."""
    from .corpus import KINDS

    return sorted(KINDS)


def colors() -> list[str]:
    """The colours that mini was taught."""
    from .corpus import COLORS

    return list(COLORS)


def split_words(prompt: str) -> list[str]:
    """The words of ``prompt`` in order, small, without signs."""
    return "".join(c if c.isalnum() else " " for c in prompt.lower()).split()


def known_words(prompt: str) -> list[str]:
    """The object and colour words of ``prompt`` that mini was taught, in order."""
    from .corpus import COLORS, KINDS

    return [word for word in split_words(prompt) if word in KINDS or word in COLORS]
